/** What a run leaves on the heap, and how often all of it had to be looked through. */
import { PerformanceObserver, constants } from 'node:perf_hooks'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Sample } from './figures'

setFlagsFromString('--expose-gc')
const collect = runInNewContext('gc') as () => void

/** Counts from its construction on, which collects what was there before. */
export class HeapWatch implements Disposable {
  readonly #before: number
  readonly #started: number
  readonly #observer: PerformanceObserver
  #major = 0

  constructor() {
    collect()
    this.#before = process.memoryUsage().heapUsed
    this.#started = performance.now()
    this.#observer = new PerformanceObserver((list) => {
      for (const entry of list.getEntries()) {
        const { kind } = (entry as unknown as { readonly detail: { readonly kind: number } }).detail
        if (kind === constants.NODE_PERFORMANCE_GC_MAJOR && entry.startTime > this.#started) {
          this.#major += 1
        }
      }
    })
    this.#observer.observe({ entryTypes: ['gc'] })
  }

  /** Growth that a collection leaves, and major collections that were not asked for. */
  async sample(packets: number): Promise<Sample> {
    // Entries are delivered in a turn of their own.
    await sleep(10)
    const majorGcs = this.#major
    collect()
    const grown = process.memoryUsage().heapUsed - this.#before
    return { packets, heapBytesPerPacket: grown / packets, majorGcs }
  }

  [Symbol.dispose](): void {
    this.#observer.disconnect()
  }
}

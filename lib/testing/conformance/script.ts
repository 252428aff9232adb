/**
 * One script of operations, done to any device, told in the same words.
 *
 * A device is asked to read or write pages; what it asks, what it was given and where it stopped is
 * the telling. It reads through its transmitting ring and writes through its receiving one.
 */
import type { Access } from '../../address'
import { BUFFERS, PAGE, RX, TX } from './bench'
import type { Bench, BenchRing } from './bench'
import { testFrame } from './frames'

/** Buffer pages are counted from 0; rings are always mapped. */
export type Operation =
  | {
      readonly do: 'update'
      readonly first: number
      readonly last: number
      readonly access: Access
    }
  | { readonly do: 'invalidate'; readonly first: number; readonly last: number }
  /** The device reads a page: it is offered, and the queue kicked. */
  | { readonly do: 'read'; readonly page: number }
  /** The device writes to a page: it is offered, and the queue kicked. */
  | { readonly do: 'write'; readonly page: number }
  | { readonly do: 'kick'; readonly queue: 'read' | 'write' }
  /** The questions are read, and not answered. */
  | { readonly do: 'drain' }

/** The state after an operation. */
export interface Telling {
  /** Accesses done so far, and ticks of the error eventfds so far, receiving ring first. */
  readonly read: number
  readonly wrote: number
  readonly errors: readonly [number, number]
  /** What was drained: `'read 5'` for a read of page 5. */
  readonly asked?: readonly string[]
}

export interface ScriptedDevice {
  perform(operation: Operation): Telling
}

/** What the device told after each operation, in words. */
export function tell(device: ScriptedDevice, script: readonly Operation[]): string[] {
  return script.map((operation) => {
    const { read, wrote, errors, asked } = device.perform(operation)
    const questions = asked === undefined ? '' : `, asked ${listed(asked)}`
    return `read ${read}, wrote ${wrote}, errors ${errors.join('/')}${questions}`
  })
}

export function listed(words: readonly string[]): string {
  return words.length === 0 ? 'nothing' : words.join(' ')
}

/** Waiting for the receiving ring: more than a script has writes. */
const FRAMES = 50
const QUEUES = { write: RX, read: TX } as const

/** A script done to a bare device. Frames wait in the tap from the beginning. */
export class ScriptedBench implements ScriptedDevice {
  readonly #bench: Bench
  readonly #rings: readonly [BenchRing, BenchRing]
  #errors: [number, number] = [0, 0]
  #number = 0

  /** @param bench is closed by whoever made it */
  constructor(bench: Bench) {
    this.#bench = bench
    bench.device.receive(FRAMES)
    this.#rings = [this.#bench.runningRing(RX), this.#bench.runningRing(TX)]
    this.#bench.flush()
  }

  perform(operation: Operation): Telling {
    const bench = this.#bench
    let asked: string[] | undefined
    switch (operation.do) {
      case 'update':
        bench.mapBuffers(operation.first, operation.last - operation.first + 1, operation.access)
        break
      case 'invalidate': {
        const bytes = (operation.last - operation.first + 1) * PAGE
        bench.invalidate(BUFFERS + BigInt(operation.first * PAGE), bytes)
        break
      }
      case 'read':
        this.#rings[TX].send(operation.page, testFrame(this.#number++))
        this.#rings[TX].kick()
        break
      case 'write':
        this.#rings[RX].push(BUFFERS + BigInt(operation.page * PAGE), PAGE)
        this.#rings[RX].kick()
        break
      case 'kick':
        this.#rings[QUEUES[operation.queue]].kick()
        break
      case 'drain':
        asked = bench.asked()
        break
    }
    bench.flush()
    for (const queue of [RX, TX] as const) this.#errors[queue] += this.#rings[queue].errors()
    const [rx, tx] = this.#rings
    const errors: [number, number] = [...this.#errors]
    const state = { read: tx.completed, wrote: rx.completed, errors }
    return asked === undefined ? state : { ...state, asked }
  }
}

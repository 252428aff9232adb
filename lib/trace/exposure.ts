/**
 * How much of a guest's memory its device can reach, how much of it needs to be, and for how long a
 * buffer can still be reached that the guest took back.
 *
 * It stands at two places: between a driver and its DMA (what is in flight), and between a device
 * and its channel (what the device holds). A page is *stale* from the moment that the guest has
 * unmapped it (the call has returned, and it may use the page for something else), as long as the
 * device holds it: until an INVALIDATE or an eviction ends that, or until it is mapped again. In
 * strict mode no page ever is; where unmapping does nothing (static, pass-through), it is for good.
 * Without an IOMMU there is no channel, and nothing is measured. Times are those of the clock that
 * is passed in.
 */
import type { InspectOptions } from 'node:util'
import { PAGE_SIZE, accessBits, pageOf } from '../address'
import type { AccessBits, Iova, Range } from '../address'
import type { DmaPool, GuestDma } from '../guest/dma'
import { shown, summary } from '../inspect'
import type { IotlbChannel } from '../iotlb/channel'
import { Shadow } from '../iotlb/shadow'

/** Sums and means since the meter began, or since `restart()`. */
export interface Exposure {
  readonly seconds: number
  /** Bytes that were stale, each as often as it became so. */
  readonly staleBytes: number
  /** Bytes times seconds of being stale. */
  readonly byteSeconds: number
  /** The longest time that a page was stale, in seconds, to now. */
  readonly longest: number
  /**
   * Means over time: what the device could reach, and what was mapped for a transfer or as a ring.
   */
  readonly reachableBytes: number
  readonly inFlightBytes: number
}

/** Seconds, from any beginning. */
export type SecondsClock = () => number

export class ExposureMeter {
  readonly #clock: SecondsClock
  readonly #tables: Shadow[] = []
  readonly #inFlight = new Set<number>()
  /** Pages that were unmapped and not mapped again, and the device does not hold. */
  readonly #gone = new Set<number>()
  /** Pages that were unmapped and that the device holds, since when. */
  readonly #stale = new Map<number, number>()
  #started: number
  #last: number
  #stalePages = 0
  #longest = 0
  /** Pages times seconds. */
  #staleArea = 0
  #reachableArea = 0
  #inFlightArea = 0

  constructor(clock: SecondsClock = () => performance.now() / 1000) {
    this.#clock = clock
    this.#started = clock()
    this.#last = this.#started
  }

  /** Between a driver and the DMA that it uses. */
  dma(inner: GuestDma): GuestDma {
    const made: GuestDma = {
      mode: inner.mode,
      enable: () => {
        inner.enable()
      },
      disable: () => {
        inner.disable()
      },
      flush: () => {
        inner.flush()
      },
      mapPages: (gpaPage, count, access) => {
        const page = inner.mapPages(gpaPage, count, access)
        this.#mapped(page, count)
        return page
      },
      unmapPages: (page, count) => {
        inner.unmapPages(page, count)
        this.#unmapped(page, count)
      },
    }
    if (inner.pool === undefined) return made
    return { ...made, pool: (gpaPage, count) => this.#pool(inner.pool!(gpaPage, count), count) }
  }

  /** Between a miss handler and its channel: the option `channel` of `VhostNet.open`. */
  readonly channel = (inner: IotlbChannel): IotlbChannel => {
    const table = new Shadow(inner.limit)
    this.#tables.push(table)
    return {
      limit: inner.limit,
      drain: () => inner.drain(),
      onReadable: (listener) => inner.onReadable(listener),
      update: (range, hva, access) => {
        const [first, last] = [pageOf(range.first), pageOf(range.last)]
        this.#held(table, first, last, pageOf(hva), accessBits(access))
        inner.update(range, hva, access)
      },
      invalidate: (range: Range<Iova>) => {
        inner.invalidate(range)
        this.#released(table, pageOf(range.first), pageOf(range.last))
      },
      updatePages: (first, last, hvaPage, access) => {
        this.#held(table, first, last, hvaPage, access)
        inner.updatePages(first, last, hvaPage, access)
      },
      invalidatePages: (first, last) => {
        inner.invalidatePages(first, last)
        this.#released(table, first, last)
      },
    }
  }

  read(): Exposure {
    this.#advance()
    const seconds = this.#last - this.#started
    const mean = (area: number): number => (seconds > 0 ? (area * PAGE_SIZE) / seconds : 0)
    let longest = this.#longest
    for (const since of this.#stale.values()) longest = Math.max(longest, this.#last - since)
    return {
      seconds,
      staleBytes: this.#stalePages * PAGE_SIZE,
      byteSeconds: this.#staleArea * PAGE_SIZE,
      longest,
      reachableBytes: mean(this.#reachableArea),
      inFlightBytes: mean(this.#inFlightArea),
    }
  }

  /** Counts from now on; what is stale now counts from now. */
  restart(): void {
    this.#advance()
    this.#started = this.#last
    this.#stalePages = this.#stale.size
    this.#longest = 0
    this.#staleArea = 0
    this.#reachableArea = 0
    this.#inFlightArea = 0
    for (const page of this.#stale.keys()) this.#stale.set(page, this.#last)
  }

  [shown](depth: number, options: InspectOptions): string {
    return summary('ExposureMeter', { ...this.read() }, depth, options)
  }

  #pool(inner: DmaPool, count: number): DmaPool {
    const pages = new Float64Array(count)
    return {
      map: (index, access) => {
        pages[index] = inner.map(index, access)
        this.#mapped(pages[index], 1)
        return pages[index]
      },
      unmap: (first, many) => {
        inner.unmap(first, many)
        for (let index = first; index < first + many; index++) this.#unmapped(pages[index], 1)
      },
      close: () => {
        inner.close()
      },
    }
  }

  #mapped(first: number, count: number): void {
    this.#advance()
    for (let page = first; page < first + count; page++) {
      this.#inFlight.add(page)
      this.#gone.delete(page)
      this.#end(page)
    }
  }

  #unmapped(first: number, count: number): void {
    this.#advance()
    for (let page = first; page < first + count; page++) {
      this.#inFlight.delete(page)
      if (this.#holds(page)) this.#begin(page)
      else this.#gone.add(page)
    }
  }

  /** Before the device can use it. */
  #held(table: Shadow, first: number, last: number, hvaPage: number, access: AccessBits): void {
    this.#advance()
    const { evictions } = table
    table.remove(first, last)
    table.insert(first, last, hvaPage, access)
    if (table.evictions !== evictions) this.#review()
    for (const page of within(this.#gone, first, last)) {
      this.#gone.delete(page)
      this.#begin(page)
    }
  }

  /** When the device uses it no more. */
  #released(table: Shadow, first: number, last: number): void {
    this.#advance()
    if (table.remove(first, last) > 0) this.#review()
  }

  /** Ends what the device no longer holds. */
  #review(): void {
    for (const page of [...this.#stale.keys()]) {
      if (this.#holds(page)) continue
      this.#end(page)
      this.#gone.add(page)
    }
  }

  #begin(page: number): void {
    this.#stale.set(page, this.#last)
    this.#stalePages++
  }

  #end(page: number): void {
    const since = this.#stale.get(page)
    if (since === undefined) return
    this.#longest = Math.max(this.#longest, this.#last - since)
    this.#stale.delete(page)
  }

  #holds(page: number): boolean {
    return this.#tables.some((table) => table.find(page) >= 0)
  }

  /** Adds the time since the last change to all areas. */
  #advance(): void {
    const now = this.#clock()
    const passed = now - this.#last
    this.#last = now
    if (passed <= 0) return
    this.#staleArea += this.#stale.size * passed
    this.#inFlightArea += this.#inFlight.size * passed
    for (const { pages } of this.#tables) this.#reachableArea += pages * passed
  }
}

/** Those of the pages that are in a range; the range itself is walked where that is shorter. */
function within(pages: ReadonlySet<number>, first: number, last: number): readonly number[] {
  if (pages.size === 0) return []
  if (last - first >= pages.size) {
    return [...pages].filter((page) => page >= first && page <= last)
  }
  const found: number[] = []
  for (let page = first; page <= last; page++) if (pages.has(page)) found.push(page)
  return found
}

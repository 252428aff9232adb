/**
 * Our exact model of the device's IOTLB: what it holds, in the order in which it will lose it.
 *
 * It is exact because the device's rules are few: an UPDATE appends an entry, a full table first
 * retires the entry inserted longest ago, hits or not (drivers/vhost/iotlb.c,
 * vhost_iotlb_add_range_ctx), an INVALIDATE deletes every entry that it touches, whole
 * (vhost_iotlb_del_range). Entries here never overlap, because the kernel's would be ambiguous:
 * there the older one wins. It writes no messages; `miss-handler.ts` keeps it true.
 *
 * What depends on it: an invalidation of pages that are not here is not sent. So it may hold
 * more than the device does, never less, and `limit` must not be below the device's own.
 */
import type { InspectOptions } from 'node:util'
import { PAGE_SHIFT, accessOf, iovaRange } from '../address'
import type { Access, AccessBits, Hva, Iova, Range } from '../address'
import { plain, shown, summary } from '../inspect'
import { IntervalMap, widened } from '../memory/interval-map'

/** Slots to begin with: the kernel's default `max_iotlb_entries`. */
const USUAL_LIMIT = 2048

/** One entry as a snapshot. */
export interface ShadowEntry {
  readonly iova: Range<Iova>
  /** Where `iova.first` is in this process. */
  readonly hva: Hva
  readonly access: Access
}

export class Shadow {
  readonly #map: IntervalMap
  #hvaPage: Float64Array
  #access: Uint8Array
  #turn: Float64Array
  #evictions = 0

  /** @param limit the entries the device holds before it evicts; at least 1 */
  constructor(readonly limit: number) {
    if (!Number.isInteger(limit) || limit < 1) {
      throw new RangeError(`a device holds at least one entry: ${limit}`)
    }
    const slots = Math.min(limit, USUAL_LIMIT)
    this.#map = new IntervalMap(slots)
    this.#hvaPage = new Float64Array(slots)
    this.#access = new Uint8Array(slots)
    this.#turn = new Float64Array(slots)
  }

  get entries(): number {
    return this.#map.size
  }

  get pages(): number {
    return this.#map.pages
  }

  /** How often the device gave up an entry for a newer one, since the beginning. */
  get evictions(): number {
    return this.#evictions
  }

  get full(): boolean {
    return this.#map.size >= this.limit
  }

  /** The slot of the entry that holds a page, or -1. Valid until the next change. */
  find(page: number): number {
    return this.#map.find(page)
  }

  /** The slot of the entry that goes next, or -1. */
  get oldest(): number {
    return this.#map.oldest
  }

  /** The slot of the lowest entry that ends at or after a page, or -1. */
  findFrom(page: number): number {
    return this.#map.at(this.#map.position(page))
  }

  /** The slot of the highest entry that begins at or before a page, or -1. */
  findUpTo(page: number): number {
    const position = this.#map.position(page)
    const slot = this.#map.at(position)
    return slot >= 0 && this.#map.firstPage(slot) <= page ? slot : this.#map.at(position - 1)
  }

  firstPage(slot: number): number {
    return this.#map.firstPage(slot)
  }

  lastPage(slot: number): number {
    return this.#map.lastPage(slot)
  }

  /** The host page of the entry's first page. */
  hvaPage(slot: number): number {
    return this.#hvaPage[slot]
  }

  access(slot: number): AccessBits {
    return this.#access[slot] as AccessBits
  }

  /** The turn that inserted the entry. */
  turn(slot: number): number {
    return this.#turn[slot]
  }

  /** What the device may do with a page without asking: 0 when it holds nothing there. */
  granted(page: number): AccessBits {
    const slot = this.#map.find(page)
    return slot < 0 ? 0 : (this.#access[slot] as AccessBits)
  }

  touches(firstPage: number, lastPage: number): boolean {
    return this.#map.touches(firstPage, lastPage)
  }

  /**
   * What an UPDATE does, eviction included.
   * @param turn any number that the caller wants to find again
   * @throws RangeError when the range touches an entry: it must be invalidated first
   */
  insert(firstPage: number, lastPage: number, hvaPage: number, access: AccessBits, turn = 0): void {
    const map = this.#map
    if (map.size >= this.limit && !map.touches(firstPage, lastPage)) {
      map.remove(map.oldest)
      this.#evictions++
    }
    const slot = map.insert(firstPage, lastPage)
    if (slot < 0) {
      throw new RangeError(`pages ${firstPage} to ${lastPage} touch an entry: invalidate it first`)
    }
    if (slot >= this.#hvaPage.length) this.#widen()
    this.#hvaPage[slot] = hvaPage
    this.#access[slot] = access
    this.#turn[slot] = turn
  }

  /** What an INVALIDATE does. @returns how many entries went */
  remove(firstPage: number, lastPage: number): number {
    return this.#map.removeTouching(firstPage, lastPage)
  }

  /** The device's table was emptied. */
  clear(): void {
    this.#map.clear()
  }

  /** All entries, the oldest first. */
  snapshot(): readonly ShadowEntry[] {
    const map = this.#map
    const entries: ShadowEntry[] = []
    for (let slot = map.oldest; slot >= 0; slot = map.newerThan(slot)) {
      entries.push({
        iova: iovaRange(map.firstPage(slot), map.lastPage(slot)),
        hva: (BigInt(this.#hvaPage[slot]) << BigInt(PAGE_SHIFT)) as Hva,
        access: accessOf(this.#access[slot] as AccessBits),
      })
    }
    return entries
  }

  [shown](depth: number, options: InspectOptions): string {
    const fields = {
      entries: this.entries,
      limit: this.limit,
      pages: this.pages,
      evictions: this.evictions,
      ranges: this.snapshot().map(({ iova, access }) =>
        plain(`0x${iova.first.toString(16)}-0x${iova.last.toString(16)} ${access}`),
      ),
    }
    return summary('Shadow', fields, depth, options)
  }

  #widen(): void {
    const slots = this.#map.capacity
    this.#hvaPage = widened(this.#hvaPage, new Float64Array(slots))
    this.#access = widened(this.#access, new Uint8Array(slots))
    this.#turn = widened(this.#turn, new Float64Array(slots))
  }
}

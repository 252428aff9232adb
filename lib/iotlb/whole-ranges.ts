/**
 * The ranges that are answered whole: ring parts, which a vhost worker finds without a search only
 * if one entry covers them (K12).
 *
 * A few, forgotten oldest first. To keep one too long costs nothing but a larger answer.
 */
import { IntervalMap } from '../memory/interval-map'

/** A device has three ranges a queue. */
const CAPACITY = 64

export class WholeRanges {
  readonly #map = new IntervalMap(CAPACITY)

  get size(): number {
    return this.#map.size
  }

  /** Adds a range, as one with those that it shares a page with. */
  add(firstPage: number, lastPage: number): void {
    const map = this.#map
    let first = firstPage
    let last = lastPage
    for (let at = map.position(firstPage), slot = map.at(at); slot >= 0; slot = map.at(++at)) {
      if (map.firstPage(slot) > lastPage) break
      first = Math.min(first, map.firstPage(slot))
      last = Math.max(last, map.lastPage(slot))
    }
    map.removeTouching(first, last)
    if (map.size === CAPACITY) map.remove(map.oldest)
    map.insert(first, last)
  }

  clear(): void {
    this.#map.clear()
  }

  /** A slot for `firstPage` and `lastPage`, or -1 when the page is in no range. */
  find(page: number): number {
    return this.#map.find(page)
  }

  firstPage(slot: number): number {
    return this.#map.firstPage(slot)
  }

  lastPage(slot: number): number {
    return this.#map.lastPage(slot)
  }

  /** The lowest page of `[firstPage, lastPage]` that is in a range, or -1. */
  firstWithin(firstPage: number, lastPage: number): number {
    const slot = this.#map.at(this.#map.position(firstPage))
    if (slot < 0 || this.#map.firstPage(slot) > lastPage) return -1
    return Math.max(firstPage, this.#map.firstPage(slot))
  }
}

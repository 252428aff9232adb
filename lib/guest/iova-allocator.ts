/**
 * Iovas as Linux gives them out (drivers/iommu/iova.c): from the top down, aligned to their size,
 * below 4 GiB as long as there is room, and the usual sizes from a cache of what was freed last.
 *
 * It counts pages and knows nothing of tables. When a range may be freed, and so used again, is
 * the caller's to decide: after the invalidation (`intel-iommu-driver.ts`).
 */
import type { InspectOptions } from 'node:util'
import { InvalidState } from '../errors'
import { shown, summary } from '../inspect'

/** Sizes of 2^0 to 2^5 pages are cached (IOVA_RANGE_CACHE_MAX_SIZE). */
const CACHED_ORDERS = 6
const FOUR_GIB_PAGES = 2 ** 20

export interface IovaAllocatorOptions {
  /** Lowest page to give out; default 1, so that no iova is 0. */
  readonly firstPage?: number
  /** Highest page to give out: what the tables reach. */
  readonly lastPage: number
}

/** Free ranges of one size that may be used again at once: a stack. */
class Cache {
  #first = new Float64Array(64)
  count = 0

  push(first: number): void {
    if (this.count === this.#first.length) {
      const larger = new Float64Array(2 * this.count)
      larger.set(this.#first)
      this.#first = larger
    }
    this.#first[this.count] = first
    this.count += 1
  }

  pop(): number {
    this.count -= 1
    return this.#first[this.count]
  }
}

export class IovaAllocator {
  readonly #caches: readonly Cache[] = Array.from({ length: CACHED_ORDERS }, () => new Cache())
  /** Free extents, ascending, never adjacent: first and last page of each. */
  readonly #first: number[]
  readonly #last: number[]

  constructor(options: IovaAllocatorOptions) {
    const firstPage = options.firstPage ?? 1
    if (!(firstPage >= 0 && options.lastPage >= firstPage)) {
      throw new RangeError(`no pages from ${firstPage} to ${options.lastPage}`)
    }
    this.#first = [firstPage]
    this.#last = [options.lastPage]
  }

  [shown](depth: number, options: InspectOptions): string {
    const extents = this.#first.map((first, i) => ({ first, last: this.#last[i] }))
    const cached = this.#caches.reduce((sum, { count }) => sum + count, 0)
    return summary('IovaAllocator', { freePages: extents, cachedRanges: cached }, depth, options)
  }

  /**
   * Takes pages out for good, such as the window where interrupts go. Inclusive; pages that are
   * not free are left alone.
   */
  reserve(firstPage: number, lastPage: number): void {
    for (let at = this.#first.length - 1; at >= 0; at--) {
      const first = this.#first[at]
      const last = this.#last[at]
      if (last < firstPage || first > lastPage) continue
      this.#cut(at, Math.max(first, firstPage), Math.min(last, lastPage))
    }
  }

  /**
   * @param pages 1 or more
   * @returns the first page of a range aligned to its size, rounded up to a power of two
   * @throws InvalidState ERR_EXHAUSTED
   */
  allocate(pages = 1): number {
    const order = orderOf(pages)
    if (order < CACHED_ORDERS) {
      const cache = this.#caches[order]
      if (cache.count > 0) return cache.pop()
    }
    return this.#search(pages, order)
  }

  /**
   * The range may be given out again from now on.
   * @param pages as it was asked for
   */
  free(firstPage: number, pages = 1): void {
    const order = orderOf(pages)
    if (order < CACHED_ORDERS) this.#caches[order].push(firstPage)
    else this.#insert(firstPage, firstPage + pages - 1)
  }

  #search(pages: number, order: number): number {
    const span = order < CACHED_ORDERS ? 2 ** order : pages
    const alignment = 2 ** order
    const found =
      this.#topDown(span, alignment, FOUR_GIB_PAGES - 1) ?? this.#topDown(span, alignment, Infinity)
    if (found !== undefined) return found
    if (this.#drain()) return this.#search(pages, order)
    throw new InvalidState('ERR_EXHAUSTED', `no ${pages} contiguous pages of iova are free`)
  }

  #topDown(span: number, alignment: number, limit: number): number | undefined {
    for (let at = this.#first.length - 1; at >= 0; at--) {
      const last = Math.min(this.#last[at], limit)
      const first = Math.floor((last - span + 1) / alignment) * alignment
      if (first < this.#first[at]) continue
      this.#cut(at, first, first + span - 1)
      return first
    }
    return undefined
  }

  /** Gives the cached ranges back to the extents. @returns whether there were any */
  #drain(): boolean {
    let any = false
    for (const [order, cache] of this.#caches.entries()) {
      while (cache.count > 0) {
        const first = cache.pop()
        this.#insert(first, first + 2 ** order - 1)
        any = true
      }
    }
    return any
  }

  /** Takes `[first, last]` out of the extent that holds it. */
  #cut(at: number, first: number, last: number): void {
    const before = this.#first[at]
    const after = this.#last[at]
    if (before < first && last < after) {
      this.#last[at] = first - 1
      this.#first.splice(at + 1, 0, last + 1)
      this.#last.splice(at + 1, 0, after)
    } else if (before < first) {
      this.#last[at] = first - 1
    } else if (last < after) {
      this.#first[at] = last + 1
    } else {
      this.#first.splice(at, 1)
      this.#last.splice(at, 1)
    }
  }

  /** @throws RangeError for pages that are free already */
  #insert(first: number, last: number): void {
    const at = this.#after(first)
    const overlaps =
      (at > 0 && this.#last[at - 1] >= first) ||
      (at < this.#first.length && this.#first[at] <= last)
    if (overlaps) throw new RangeError(`iova pages ${first} to ${last} are free already`)
    const joinsBefore = at > 0 && this.#last[at - 1] === first - 1
    const joinsAfter = at < this.#first.length && this.#first[at] === last + 1
    if (joinsBefore && joinsAfter) {
      this.#last[at - 1] = this.#last[at]
      this.#first.splice(at, 1)
      this.#last.splice(at, 1)
    } else if (joinsBefore) {
      this.#last[at - 1] = last
    } else if (joinsAfter) {
      this.#first[at] = first
    } else {
      this.#first.splice(at, 0, first)
      this.#last.splice(at, 0, last)
    }
  }

  /** Index of the first extent that begins after a page. */
  #after(page: number): number {
    let low = 0
    let high = this.#first.length
    while (low < high) {
      const middle = (low + high) >>> 1
      if (this.#first[middle] > page) high = middle
      else low = middle + 1
    }
    return low
  }
}

/** Rounded up: 3 pages are of order 2. */
function orderOf(pages: number): number {
  if (pages === 1) return 0
  if (!Number.isInteger(pages) || pages < 1) throw new RangeError(`not a number of pages: ${pages}`)
  return pages <= 2 ** 31 ? 32 - Math.clz32(pages - 1) : Math.ceil(Math.log2(pages))
}

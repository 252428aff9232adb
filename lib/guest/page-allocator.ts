/**
 * Pages of guest memory for whoever plays the guest: tables, rings and buffers.
 *
 * A buddy allocator, so that blocks for 2 MiB and 1 GiB leaves are there and come back whole. It
 * hands out gpa page numbers and never looks at what is in the pages.
 */
import type { InspectOptions } from 'node:util'
import { PAGE_SIZE } from '../address'
import { InvalidState } from '../errors'
import { shown, summary } from '../inspect'
import type { GuestMemory } from '../memory/guest-memory'

/** Largest block: 2^18 pages, 1 GiB. */
const MAX_ORDER = 18

/** What the allocator needs to know of guest memory. */
export type Extents = Pick<GuestMemory, 'regions'>

export class PageAllocator {
  static readonly #shared = new WeakMap<object, PageAllocator>()
  /** Free blocks of 2^order pages by first page; the sets are stacks in order of insertion. */
  readonly #blocks: readonly Set<number>[] = Array.from(
    { length: MAX_ORDER + 1 },
    () => new Set<number>(),
  )
  readonly #extents: readonly Extent[]
  #free = 0

  /**
   * The whole of the memory, but for the page at gpa 0, so that no address is 0.
   * `PageAllocator.of` is what keeps two users of the same memory apart.
   */
  constructor(memory: Extents) {
    this.#extents = memory.regions.map(({ range, bytes }) => {
      const first = Number(range.first) / PAGE_SIZE
      return { first, pages: bytes / PAGE_SIZE, used: new Uint8Array(bytes / PAGE_SIZE).fill(1) }
    })
    for (const { first, pages } of this.#extents) {
      const skipped = first === 0 ? 1 : 0
      if (pages > skipped) this.free(first + skipped, pages - skipped)
    }
  }

  /** The allocator that everybody shares who plays a guest in this memory. */
  static of(memory: Extents): PageAllocator {
    let found = PageAllocator.#shared.get(memory)
    if (found === undefined) {
      found = new PageAllocator(memory)
      PageAllocator.#shared.set(memory, found)
    }
    return found
  }

  /** Pages that are free, not necessarily together. */
  get freePages(): number {
    return this.#free
  }

  /**
   * Contiguous pages, aligned to their number rounded up to a power of two. Not cleared.
   * @param pages 1 to 2^18
   * @returns the first gpa page
   * @throws InvalidState ERR_EXHAUSTED
   */
  allocate(pages = 1): number {
    if (!Number.isInteger(pages) || pages < 1 || pages > 2 ** MAX_ORDER) {
      throw new RangeError(`a block has 1 to ${2 ** MAX_ORDER} pages: ${pages}`)
    }
    const wanted = pages === 1 ? 0 : 32 - Math.clz32(pages - 1)
    let order = wanted
    while (order <= MAX_ORDER && this.#blocks[order].size === 0) order++
    if (order > MAX_ORDER) {
      throw new InvalidState(
        'ERR_EXHAUSTED',
        `no ${pages} contiguous pages of guest memory are free (${this.#free} pages are, in all)`,
      )
    }
    const first = take(this.#blocks[order])
    for (let half = order - 1; half >= wanted; half--) this.#blocks[half].add(first + 2 ** half)
    this.#mark(first, 2 ** wanted, 1)
    this.#free -= 2 ** wanted
    if (pages < 2 ** wanted) this.free(first + pages, 2 ** wanted - pages)
    return first
  }

  /**
   * @param first gpa page that `allocate` gave, or one after it
   * @throws RangeError for pages that are not allocated
   */
  free(first: number, pages = 1): void {
    this.#mark(first, pages, 0)
    this.#free += pages
    let at = first
    let left = pages
    while (left > 0) {
      let order = Math.min(trailingZeros(at), MAX_ORDER)
      while (2 ** order > left) order--
      this.#insert(at, order)
      at += 2 ** order
      left -= 2 ** order
    }
  }

  /** Adds a free block and joins it with its buddies. */
  [shown](depth: number, options: InspectOptions): string {
    const fields = {
      freePages: this.freePages,
      extents: this.#extents.map(({ first, pages }) => ({ first, pages })),
    }
    return summary('PageAllocator', fields, depth, options)
  }

  #insert(first: number, order: number): void {
    let at = first
    let size = order
    while (size < MAX_ORDER) {
      const span = 2 ** size
      const buddy = Math.floor(at / span) % 2 === 0 ? at + span : at - span
      if (!this.#blocks[size].delete(buddy)) break
      at = Math.min(at, buddy)
      size++
    }
    this.#blocks[size].add(at)
  }

  #mark(first: number, pages: number, used: 0 | 1): void {
    const extent = this.#extents.find((each) => first >= each.first && isIn(each, first, pages))
    if (extent === undefined) throw new RangeError(`pages ${first} + ${pages} are not memory`)
    const from = first - extent.first
    for (let at = from; at < from + pages; at++) {
      if (extent.used[at] === used)
        throw new RangeError(`page ${first + at - from} is free already`)
    }
    extent.used.fill(used, from, from + pages)
  }
}

interface Extent {
  readonly first: number
  readonly pages: number
  /** One byte for each page: 1 while it is allocated. */
  readonly used: Uint8Array
}

function isIn(extent: Extent, first: number, pages: number): boolean {
  return pages > 0 && first + pages <= extent.first + extent.pages
}

function take(blocks: Set<number>): number {
  for (const first of blocks) {
    blocks.delete(first)
    return first
  }
  throw new RangeError('no block')
}

function trailingZeros(value: number): number {
  if (value === 0) return MAX_ORDER
  let zeros = 0
  let rest = value
  while (rest % 2 === 0 && zeros < MAX_ORDER) {
    rest /= 2
    zeros++
  }
  return zeros
}

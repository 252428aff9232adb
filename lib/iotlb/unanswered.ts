/**
 * Misses that were read and not answered: the device waits for them, so they must not be lost.
 *
 * Bounded, because a guest can make as many as it likes. What is pushed out is counted; the kernel
 * still holds its own note of it, and any later UPDATE of the page wakes the queue.
 */
import { accessOf, iovaOfPage } from '../address'
import type { Access, AccessBits, Iova } from '../address'

/**
 * translation: the tables refuse, with the reason's code. memory: they grant what is not guest
 * memory. refused: the device took no UPDATE. unsettled: an invalidation came in at each try.
 */
export type MissCause = 'translation' | 'memory' | 'refused' | 'unsettled'

export interface UnansweredMiss {
  /** The first byte of the page. */
  readonly iova: Iova
  readonly wanted: Access
  readonly cause: MissCause
  /** The reason's code (VT-d 4.1 7.1.3) where the cause is `translation`, 0 otherwise. */
  readonly code: number
}

/** What was refused, and by whom. */
export function unansweredMiss(
  page: number,
  wanted: AccessBits,
  cause: MissCause,
  code: number,
): UnansweredMiss {
  return { iova: iovaOfPage(page), wanted: accessOf(wanted), cause, code }
}

export class UnansweredMisses {
  readonly #entries: {
    readonly page: number
    readonly wanted: AccessBits
    miss: UnansweredMiss
  }[] = []

  constructor(readonly capacity: number) {}

  get size(): number {
    return this.#entries.length
  }

  page(index: number): number {
    return this.#entries[index].page
  }

  wanted(index: number): AccessBits {
    return this.#entries[index].wanted
  }

  /** Adds a miss, each page and access once. @returns false when the oldest had to go for it */
  add(page: number, wanted: AccessBits, miss: UnansweredMiss): boolean {
    const known = this.#entries.find((entry) => entry.page === page && entry.wanted === wanted)
    if (known !== undefined) {
      known.miss = miss
      return true
    }
    const room = this.#entries.length < this.capacity
    if (!room) this.#entries.shift()
    this.#entries.push({ page, wanted, miss })
    return room
  }

  /** Takes out those with a page in the range: an UPDATE wakes them, whatever they wanted. */
  remove(firstPage: number, lastPage: number): void {
    for (let i = this.#entries.length - 1; i >= 0; i--) {
      const { page } = this.#entries[i]
      if (page >= firstPage && page <= lastPage) this.#entries.splice(i, 1)
    }
  }

  clear(): void {
    this.#entries.length = 0
  }

  snapshot(): readonly UnansweredMiss[] {
    return this.#entries.map(({ miss }) => miss)
  }
}

/**
 * The misses of one turn, each page and access once (K7), with what became of them.
 *
 * They are copied here because a channel reuses its `Miss` objects, and because all that is
 * pending must be read before the first answer is written: an UPDATE wakes only what was read.
 */
import type { AccessBits } from '../address'
import { widened } from '../memory/interval-map'

/** A batch is full when a further drain of the channel might not fit. */
const CAPACITY = 256
const DRAIN = 64

export class MissBatch {
  #page = new Float64Array(CAPACITY)
  #wanted = new Uint8Array(CAPACITY)
  #size = 0

  get size(): number {
    return this.#size
  }

  get full(): boolean {
    return this.#size > CAPACITY - DRAIN
  }

  page(index: number): number {
    return this.#page[index]
  }

  wanted(index: number): AccessBits {
    return this.#wanted[index] as AccessBits
  }

  /** @returns false when the same miss is in the batch already */
  add(page: number, wanted: AccessBits): boolean {
    for (let i = 0; i < this.#size; i++) {
      if (this.#page[i] === page && this.#wanted[i] === wanted) return false
    }
    if (this.#size === this.#page.length) this.#widen()
    this.#page[this.#size] = page
    this.#wanted[this.#size] = wanted
    this.#size++
    return true
  }

  clear(): void {
    this.#size = 0
  }

  #widen(): void {
    const capacity = this.#page.length * 2
    this.#page = widened(this.#page, new Float64Array(capacity))
    this.#wanted = widened(this.#wanted, new Uint8Array(capacity))
  }
}

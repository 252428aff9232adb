/**
 * A pool whose pages are mapped one at a time wherever the driver's allocator puts them: what any
 * `GuestDma` can do. One that can keep a pool's pages together does better (`GuestDma.pool`).
 */
import type { AccessBits } from '../address'
import type { DmaPool, GuestDma } from './dma'

export class PagePool implements DmaPool {
  readonly #dma: GuestDma
  readonly #gpaPage: number
  readonly #devicePage: Float64Array

  constructor(dma: GuestDma, gpaPage: number, count: number) {
    this.#dma = dma
    this.#gpaPage = gpaPage
    this.#devicePage = new Float64Array(count)
  }

  map(index: number, access: AccessBits): number {
    const page = this.#dma.mapPages(this.#gpaPage + index, 1, access)
    this.#devicePage[index] = page
    return page
  }

  unmap(first: number, count: number): void {
    for (let index = first; index < first + count; index++) {
      this.#dma.unmapPages(this.#devicePage[index], 1)
    }
  }

  close(): void {
    // Nothing is kept for pages that are not mapped.
  }
}

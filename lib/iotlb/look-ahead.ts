/**
 * Reads what a driver has offered before the device does, and grants it in advance.
 *
 * A miss costs a wake-up, a walk costs nothing beside it: the way to speed is not to be asked. An
 * ATS device may ask for translations that it never uses, so granting what stands in an available
 * ring is no more than the device could have asked for itself. Everything read here is a guest's
 * allegation: work is bounded by the ring's size and by a number of pages, and nothing is recorded
 * where the tables refuse. It takes no chain; those are the device's.
 */
import { LAST_PAGE, PAGE_SIZE } from '../address'
import { Chain, SplitQueue } from '../virtio/split-queue'
import type { DmaView } from '../virtio/dma-view'
import type { RingAddresses } from '../virtio/ring-layout'

/**
 * on-miss: when the device asks for one page, all that is offered by then is granted with it.
 * on-kick: also when the driver offers, before the device can see it; a driver that says so in the
 * same turn never causes a miss.
 */
export type LookAheadMode = 'off' | 'on-miss' | 'on-kick'

/** What is granted through: `MissHandler`. */
export interface Granter {
  /** @returns the last page that the device holds from `page` on without a gap, or -1 */
  prefetch(page: number): number
  /** The first page of the entry that the last `prefetch` found or made. */
  readonly prefetchedFrom: number
}

/** Pages asked for in one run, granted or not: 64 chains of 64 KiB, or 1024 of one page. */
const PAGES = 1024
const INDEX_MASK = 0xffff
/** Buffers of one chain that are looked at: a frame of 64 KiB in pages, and as much again. */
const SEGMENTS = 64

export class LookAhead {
  readonly #granter: Granter
  readonly #queue: SplitQueue
  readonly #chain = new Chain(SEGMENTS)
  readonly #size: number
  /** Free-running index of the first chain that was not looked at. */
  #position: number
  #left = 0
  /** What the device holds since a page of this run was asked for: buffers follow one another. */
  #heldFirst = 0
  #heldLast = -1

  /**
   * @param view how the device's addresses lead to memory; must record no faults
   * @param availIndex the first chain that the device will take
   * @throws RangeError for a size that no ring has
   */
  constructor(granter: Granter, view: DmaView, ring: RingAddresses, availIndex: number) {
    this.#granter = granter
    this.#queue = new SplitQueue(view, ring, { availIndex, segments: SEGMENTS })
    this.#size = ring.size
    this.#position = availIndex
  }

  /**
   * Grants what is offered and was not looked at before.
   * @throws SystemError when the device refuses
   */
  offered(): void {
    const index = this.#queue.offeredIndex()
    if (index >= 0) this.upTo(index)
  }

  /**
   * The device asked for something. Grants all that it has not completed, also what was looked at
   * before: an invalidation of everything, as a lazy guest sends it, took that back.
   * @throws SystemError when the device refuses
   */
  missed(): void {
    const completed = this.#queue.completedIndex()
    if (completed >= 0) this.#position = completed
    this.offered()
  }

  /**
   * Grants the chains up to a free-running index, which need not be visible to the device yet.
   * @throws SystemError when the device refuses
   */
  upTo(index: number): void {
    const behind = (index - this.#position) & INDEX_MASK
    // More than a ring holds: it was overtaken, or the guest wrote nonsense. The ring is the bound.
    const chains = Math.min(behind, this.#size)
    this.#position = index
    this.#left = PAGES
    this.#heldLast = -1
    // Backwards, so that what the device waits for comes last: it finds all the rest in place.
    for (let i = 1; i <= chains && this.#left > 0; i++) this.#grant((index - i) & INDEX_MASK)
  }

  /**
   * Whether a chain that is offered and not completed uses a page. Also true where that can't be
   * said: the ring or one of the chains can't be read.
   */
  mayUse(page: number): boolean {
    const from = this.#queue.completedIndex()
    const to = this.#queue.offeredIndex()
    if (from < 0 || to < 0) return true
    const chains = Math.min((to - from) & INDEX_MASK, this.#size)
    for (let i = 0; i < chains; i++) {
      if (!this.#queue.peek((from + i) & INDEX_MASK, this.#chain)) return true
      if (uses(this.#chain, page)) return true
    }
    return false
  }

  #grant(index: number): void {
    const chain = this.#chain
    if (!this.#queue.peek(index, chain) && chain.count === 0) return
    for (let i = chain.count - 1; i >= 0; i--) {
      this.#pages(chain.page[i], chain.offset[i] + chain.length[i])
    }
    if (chain.indirectBytes > 0) {
      this.#pages(chain.indirectPage, chain.indirectOffset + chain.indirectBytes)
    }
  }

  /** The pages from `page` on that `bytes` reach into. A gap ends it: the device will ask. */
  #pages(page: number, bytes: number): void {
    const last = Math.min(LAST_PAGE, page + Math.floor((bytes - 1) / PAGE_SIZE))
    for (let next = page; next <= last && this.#left > 0;) {
      this.#left--
      if (next < this.#heldFirst || next > this.#heldLast) {
        const granted = this.#granter.prefetch(next)
        if (granted < 0) return
        this.#heldFirst = Math.min(this.#granter.prefetchedFrom, next)
        this.#heldLast = granted
      }
      next = this.#heldLast + 1
    }
  }
}

function uses(chain: Chain, page: number): boolean {
  const { indirectPage, indirectOffset, indirectBytes } = chain
  if (indirectBytes > 0 && reaches(indirectPage, indirectOffset, indirectBytes, page)) return true
  for (let i = 0; i < chain.count; i++) {
    if (reaches(chain.page[i], chain.offset[i], chain.length[i], page)) return true
  }
  return false
}

function reaches(firstPage: number, offset: number, bytes: number, page: number): boolean {
  return page >= firstPage && page <= firstPage + Math.floor((offset + bytes - 1) / PAGE_SIZE)
}

/** A ring that is looked into, for as long as it runs. */
export interface RingOutlook extends Disposable {
  /**
   * The driver kicked, and the device has not heard of it yet (look-ahead `on-kick`).
   * @throws SystemError when the device refuses a grant
   */
  kicked(): void
  /** Chains up to this free-running index are about to become visible; else as `kicked`. */
  offering(availIndex: number): void
}

/** All rings of a device that are looked into. */
export class Outlooks {
  readonly #rings = new Set<LookAhead>()

  constructor(
    private readonly granter: Granter,
    private readonly mode: LookAheadMode = 'on-miss',
  ) {}

  /** @see LookAhead for the arguments */
  add(view: DmaView, ring: RingAddresses, availIndex: number): RingOutlook {
    const ahead = new LookAhead(this.granter, view, ring, availIndex)
    this.#rings.add(ahead)
    return {
      kicked: () => {
        if (this.mode === 'on-kick') ahead.offered()
      },
      offering: (index) => {
        if (this.mode === 'on-kick') ahead.upTo(index)
      },
      [Symbol.dispose]: () => void this.#rings.delete(ahead),
    }
  }

  /** Whether the device can be waiting for a page. Without rings nobody knows, so it may. */
  mayUse(page: number): boolean {
    if (this.#rings.size === 0) return true
    for (const ring of this.#rings) if (ring.mayUse(page)) return true
    return false
  }

  /** The device asked for something: grants what is offered by now. @param failed takes errors */
  offered(failed: (error: unknown) => void): void {
    if (this.mode === 'off') return
    for (const ring of this.#rings) {
      try {
        ring.missed()
      } catch (error) {
        failed(error)
      }
    }
  }
}

/**
 * What stands at the head of a ring that stopped, and whether it can be mended.
 *
 * Where the device holds a page with too little permission it asks nothing; it ticks the ring's
 * error eventfd and waits (K2). So the chains that it could have failed at are read, page by page
 * compared with what it holds, and replaced where the tables grant more by now. What the guest got
 * wrong is reported and left alone: nothing here can loop, because each repair changes an entry.
 */
import { PAGE_SIZE, iovaOfPage } from '../address'
import type { AccessBits, Iova } from '../address'
import type { MissHandler } from '../iotlb/miss-handler'
import type { DmaView } from '../virtio/dma-view'
import { Chain, SplitQueue } from '../virtio/split-queue'
import type { ChainRefusal } from '../virtio/split-queue'
import type { Vring } from './vring'

/** What was found when the error eventfd of a ring ticked. */
export interface StallReport {
  /** The index of the queue, as for `kick`. */
  readonly queue: number
  /** The free-running index of the chain at which the device stands. */
  readonly availIndex: number
  /** The descriptor that heads that chain; undefined where nothing is offered. */
  readonly head?: number
  /** Entries that were replaced because they granted less than the tables do. */
  readonly repaired: number
  /** Pages that the tables refuse: the guest's mistake. At most 16. */
  readonly refused: readonly Iova[]
  /** Why the first chain can't be read, where it can't. */
  readonly chain?: ChainRefusal
}

/** Chains looked at for one report: a received packet of 64 KiB takes that many small buffers. */
const CHAINS = 64
/** Pages looked at for one report. */
const PAGES = 4096
const REFUSED = 16

/** Reads, repairs, and reports. The caller kicks the ring where something was repaired. */
export function examine(
  vring: Vring,
  queue: number,
  availIndex: number,
  view: DmaView,
  handler: MissHandler | undefined,
): StallReport {
  const ring = vring.ring
  if (ring === undefined) return { queue, availIndex, repaired: 0, refused: [] }
  const work = new Work(handler)
  for (const { firstPage, lastPage, wanted } of vring.parts()) {
    work.pages(firstPage, lastPage, wanted)
  }
  const split = new SplitQueue(view, ring, { availIndex })
  const chain = new Chain(1024)
  const offered = Math.min(split.pending(), CHAINS)
  let head: number | undefined
  let refusal: ChainRefusal | undefined
  for (let i = 0; i < offered; i++) {
    const readable = split.peek((availIndex + i) & 0xffff, chain)
    if (i === 0) {
      head = chain.head
      refusal = chain.refusal
    }
    work.chain(chain)
    if (!readable) break
  }
  return {
    queue,
    availIndex,
    repaired: work.repaired,
    refused: work.refused,
    ...(head === undefined ? {} : { head }),
    ...(refusal === undefined ? {} : { chain: refusal }),
  }
}

/**
 * The heads of the chains from `availIndex` to the first that uses a page; none when no chain that
 * is offered does. The device takes chains in this order, so it stands at or before that one.
 */
export function headsUpTo(
  page: number,
  vring: Vring,
  availIndex: number,
  view: DmaView,
): readonly number[] {
  if (vring.ring === undefined) return []
  const split = new SplitQueue(view, vring.ring, { availIndex })
  const chain = new Chain(1024)
  const offered = Math.min(split.pending(), CHAINS)
  const heads: number[] = []
  for (let i = 0; i < offered; i++) {
    split.peek((availIndex + i) & 0xffff, chain)
    if (chain.refusal === 'unmapped' && chain.indirectPage < 0) return []
    heads.push(chain.head)
    if (uses(chain, page)) return heads
  }
  return []
}

function uses(chain: Chain, page: number): boolean {
  if (chain.refusal === 'unmapped' && chain.refusedPage === page) return true
  for (let i = 0; i < chain.count; i++) {
    if (page >= chain.page[i] && page <= lastPageOf(chain, i)) return true
  }
  return false
}

function lastPageOf(chain: Chain, i: number): number {
  return chain.page[i] + Math.floor((chain.offset[i] + chain.length[i] - 1) / PAGE_SIZE)
}

class Work {
  repaired = 0
  readonly refused: Iova[] = []
  #left = PAGES

  constructor(private readonly handler: MissHandler | undefined) {}

  chain(chain: Chain): void {
    if (chain.indirectPage >= 0) this.#page(chain.indirectPage, 1)
    for (let i = 0; i < chain.count; i++) {
      this.pages(chain.page[i], lastPageOf(chain, i), chain.writable[i] === 1 ? 2 : 1)
    }
  }

  pages(firstPage: number, lastPage: number, wanted: AccessBits): void {
    for (let page = firstPage; page <= lastPage && this.#left > 0; page++) this.#page(page, wanted)
  }

  /** A page that the device does not hold is no stall: it asks for that by itself. */
  #page(page: number, wanted: AccessBits): void {
    this.#left--
    if (this.handler === undefined || this.handler.shadow.granted(page) === 0) return
    const outcome = this.handler.repair(page, wanted)
    if (outcome === 'repaired') this.repaired++
    else if (outcome === 'fault' && this.refused.length < REFUSED) {
      this.refused.push(iovaOfPage(page))
    }
  }
}

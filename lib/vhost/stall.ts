/**
 * Why a ring stands still, and whether it can be mended.
 *
 * A ring is looked at when its error eventfd ticked, which is all that the device says where it
 * holds a page with too little permission (K2), or when it owes work and nothing was heard of it
 * for a time (`watchdog.ts`). The chains that the device could have failed at are read, and their
 * pages compared with what it holds and with what the tables say. What the guest got wrong is
 * reported and left alone; how much is read and written for one report is bounded.
 */
import { PAGE_SIZE, iovaOfPage } from '../address'
import type { AccessBits, Iova } from '../address'
import type { DmaView } from '../virtio/dma-view'
import { Chain, SplitQueue } from '../virtio/split-queue'
import type { ChainRefusal } from '../virtio/split-queue'
import type { MissLoop } from './miss-worker'
import type { Vring } from './vring'

/**
 * permission: the device holds a page with less than the tables grant by now (K2). stale-entry: it
 * holds what the shadow does not know of, an older entry that wins (K3). unanswered-miss: it waits
 * for a page that the tables grant (K1). fault: the tables refuse what the ring needs (K6).
 * bad-descriptor: the chain can't be followed, or was taken and never completed. tap-down,
 * backend-gone: no frame comes or goes, whatever the ring says. lost-kick: all is in place, so a
 * kick or an answer was lost on the way.
 */
export const STALL_REASONS = [
  'permission',
  'stale-entry',
  'unanswered-miss',
  'fault',
  'bad-descriptor',
  'tap-down',
  'backend-gone',
  'lost-kick',
] as const

export type StallReason = (typeof STALL_REASONS)[number]

/** What was found where a ring stood still. */
export interface StallReport {
  /** The index of the queue, as for `kick`. */
  readonly queue: number
  readonly reason: StallReason
  /** Who noticed: the error eventfd of the ring, or the watchdog. */
  readonly noticed: 'error' | 'watchdog'
  /** The free-running index of the chain at which the device stands. */
  readonly availIndex: number
  /** The descriptor that heads that chain; undefined where nothing is offered. */
  readonly head?: number
  /** Entries that were replaced or added because the tables grant more than the device holds. */
  readonly repaired: number
  /** Whether what could be mended was, and the ring kicked. */
  readonly healed: boolean
  /** Pages that the tables refuse: the guest's mistake. At most 16. */
  readonly refused: readonly Iova[]
  /** Why the first chain can't be read, where it can't. */
  readonly chain?: ChainRefusal
  /** From the beginning of the examination to the kick. */
  readonly microseconds: number
}

/** The report before it is known how long it took. */
export type Finding = Omit<StallReport, 'microseconds'>

/** Where a ring stands, and what has to be known to say why. */
export interface Standing {
  readonly vring: Vring
  readonly queue: number
  readonly availIndex: number
  readonly view: DmaView
  readonly handler: MissLoop | undefined
  readonly noticed: StallReport['noticed']
  /** How often it ticked where it stands although all seemed in place. */
  readonly baffled: number
}

/** Chains looked at for one report: a received packet of 64 KiB takes that many small buffers. */
const CHAINS = 64
/** Pages looked at for one report, and entries written where the device holds none. */
const PAGES = 4096
const RENEWALS = 64
const REFUSED = 16
/** drivers/vhost/net.c: VHOST_NET_VQ_TX. What it takes, it completes at once. */
const TX = 1

/**
 * Reads, repairs, and says what was wrong; undefined for a ring that has a right to stand still.
 * The caller kicks the ring where the finding says `healed`.
 */
export function examine(standing: Standing): Finding | undefined {
  const { vring, queue, availIndex, view, noticed } = standing
  const ring = vring.ring
  if (ring === undefined) return undefined
  const work = new Work(standing)
  for (const { firstPage, lastPage, wanted } of vring.parts()) {
    work.pages(firstPage, lastPage, wanted, true)
  }
  const split = new SplitQueue(view, ring, { availIndex })
  const chain = new Chain(1024)
  const pending = split.pending()
  const offered = Math.min(pending, CHAINS)
  let head: number | undefined
  let refusal: ChainRefusal | undefined
  for (let i = 0; i < offered; i++) {
    const readable = split.peek((availIndex + i) & 0xffff, chain)
    if (i === 0) {
      head = chain.head
      refusal = chain.refusal
    }
    work.chain(chain, i === 0)
    if (!readable) break
  }
  const reason = work.reason(pending, refusal)
  if (reason === undefined) return undefined
  return {
    queue,
    reason,
    noticed,
    availIndex,
    repaired: work.repaired,
    healed: work.repaired > 0 || (reason === 'lost-kick' && standing.baffled < 2),
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
    if (chain.refusal === 'unmapped' && chain.indirectBytes === 0) return []
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
  readonly #handler: MissLoop | undefined
  #left = PAGES
  #renewals = RENEWALS
  #cause: 'permission' | 'stale-entry' | 'unanswered-miss' | undefined

  constructor(private readonly standing: Standing) {
    this.#handler = standing.handler
  }

  /** @param first whether the device stands at this chain, or may be further already */
  chain(chain: Chain, first: boolean): void {
    if (chain.indirectBytes > 0) {
      const bytes = chain.indirectOffset + chain.indirectBytes
      const { indirectPage } = chain
      this.pages(indirectPage, indirectPage + Math.floor((bytes - 1) / PAGE_SIZE), 1, first)
    }
    for (let i = 0; i < chain.count; i++) {
      const wanted = chain.writable[i] === 1 ? 2 : 1
      this.pages(chain.page[i], lastPageOf(chain, i), wanted, first)
    }
    if (first && chain.refusal === 'unmapped') this.#refuse(chain.refusedPage)
  }

  pages(firstPage: number, lastPage: number, wanted: AccessBits, first: boolean): void {
    for (let page = firstPage; page <= lastPage && this.#left > 0; page++) {
      this.#left--
      this.#page(page, wanted, first)
    }
  }

  /** What all of it comes to; undefined where nothing is wrong with a ring that may be idle. */
  reason(pending: number, refusal: ChainRefusal | undefined): StallReason | undefined {
    const { noticed, vring } = this.standing
    if (this.#cause !== undefined) return this.#cause
    if (this.refused.length > 0) return 'fault'
    if (refusal !== undefined || pending < 0) return 'bad-descriptor'
    if (vring.index === TX && pending === 0) return 'bad-descriptor'
    return noticed === 'error' || vring.index === TX ? 'lost-kick' : undefined
  }

  #page(page: number, wanted: AccessBits, first: boolean): void {
    const handler = this.#handler
    if (handler === undefined) return
    const held = handler.shadow.granted(page) !== 0
    const { noticed, baffled } = this.standing
    if (held && !handler.covers(page, page, wanted)) this.#short(handler, page, wanted)
    // It says that it may not, where it was told that it may, or was never told.
    else if (first && noticed === 'error' && baffled === 1) {
      this.#renew(handler, page, wanted, 'stale-entry')
    } else if (!held) this.#missing(handler, page, wanted, first)
  }

  /**
   * A page that the device does not hold is no stall of itself: it asks, and is answered. It is one
   * where it asked before, or where nothing was heard of a ring that has to send.
   */
  #missing(handler: MissLoop, page: number, wanted: AccessBits, first: boolean): void {
    const { noticed, vring } = this.standing
    if (noticed === 'error') return
    if ((first && vring.index === TX) || handler.waits(page)) {
      this.#renew(handler, page, wanted, 'unanswered-miss')
    }
  }

  #short(handler: MissLoop, page: number, wanted: AccessBits): void {
    const outcome = handler.repair(page, wanted)
    if (outcome === 'fault') this.#refuse(page)
    else if (outcome === 'repaired') this.#mended('permission')
  }

  #renew(
    handler: MissLoop,
    page: number,
    wanted: AccessBits,
    cause: 'stale-entry' | 'unanswered-miss',
  ): void {
    if (this.#renewals-- <= 0) return
    if (handler.renew(page, wanted)) this.#mended(cause)
    else this.#refuse(page)
  }

  #mended(cause: 'permission' | 'stale-entry' | 'unanswered-miss'): void {
    this.#cause ??= cause
    this.repaired++
  }

  #refuse(page: number): void {
    if (this.refused.length < REFUSED) this.refused.push(iovaOfPage(page))
  }
}

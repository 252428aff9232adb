/**
 * What a device may hold: walks, and the messages made of them.
 *
 * It exists so that one place keeps a walk and its UPDATE together (R1). It is asked for a page and
 * grants it, or says why not; it takes back what ended. When to do either is decided in
 * `miss-handler.ts`, what is in the device's table is kept by `device-table.ts`.
 *
 * - A walk and the UPDATE made of it are one synchronous turn. Where a walk calls out (a recorded
 *   fault may run the guest's driver at once), `#epoch` tells that an invalidation came in between;
 *   the answer is then made again.
 * - Entries of the device never overlap (K3). An answer that would touch one first invalidates,
 *   which is also how a miss is answered for a page that the device already holds: it may have
 *   missed before it was told (K1), and two equal entries would both count against its limit (K5).
 */
import type { AccessBits } from '../address'
import type { AddressSpace } from '../memory/address-space'
import type { IotlbChannel } from './channel'
import { DeviceTable } from './device-table'
import { Reply } from './reply'
import type { HostMemory } from './reply'
import type { ReplyPolicy } from './reply-policy'
import type { Shadow } from './shadow'
import { count } from './stats'
import type { MissCause } from './unanswered'
import { WholeRanges } from './whole-ranges'

/** How often an answer is made anew because an invalidation came in while it was made. */
const ATTEMPTS = 4

/**
 * miss: the device waits, so an UPDATE must go out. preload: none if the device holds as much.
 * ahead: nobody asked, so a refusal is not recorded.
 */
export type Occasion = 'miss' | 'preload' | 'ahead'

export interface GrantsOptions {
  readonly channel: IotlbChannel
  readonly addressSpace: AddressSpace
  readonly memory: HostMemory
  readonly policy: ReplyPolicy
  readonly counters: Float64Array
  /** Whether the device can still be waiting for a page; asked before a refusal is recorded. */
  readonly awaited: (page: number) => boolean
  /** An UPDATE of these pages was written. */
  readonly granted: (firstPage: number, lastPage: number) => void
}

export class Grants {
  /** After a refusal: whose it was, and the reason code of the tables. obsolete: nobody waits. */
  cause: MissCause | 'obsolete' = 'translation'
  code = 0
  /** The first page of the entry that `ahead` last found or made. */
  aheadFrom = 0
  readonly table: DeviceTable
  readonly whole = new WholeRanges()
  readonly #options: GrantsOptions
  readonly #counters: Float64Array
  readonly #reply: Reply
  /** For answers that may be made while `#reply` is in use. */
  readonly #aside: Reply
  /** Counts invalidations, modulo 2^32. */
  readonly #epoch = new Uint32Array(1)
  /** Counts batches of misses: an entry of this turn has woken all of the batch that it covers. */
  readonly #turn = new Float64Array(1)

  constructor(options: GrantsOptions) {
    const { channel, addressSpace, memory, counters } = options
    this.#options = options
    this.#counters = counters
    this.table = new DeviceTable(channel, counters)
    this.#reply = new Reply(addressSpace, memory, this.shadow, counters)
    this.#aside = new Reply(addressSpace, memory, this.shadow, counters)
  }

  get shadow(): Shadow {
    return this.table.shadow
  }

  /** A batch of misses was read. */
  nextTurn(): void {
    this.#turn[0]++
  }

  /** What was walked before this may not be granted any more. */
  nextEpoch(): void {
    this.#epoch[0]++
  }

  /** Whether an entry of this turn grants a page as wanted: its UPDATE has woken who asked. */
  answered(page: number, wanted: AccessBits): boolean {
    const slot = this.shadow.find(page)
    return (
      slot >= 0 &&
      this.shadow.turn(slot) === this.#turn[0] &&
      (this.shadow.access(slot) & wanted) === wanted
    )
  }

  /** Whether the device may use all pages of the range as wanted without asking. */
  covers(firstPage: number, lastPage: number, wanted: AccessBits): boolean {
    if (this.table.doubtful) return false
    for (let page = firstPage; page <= lastPage;) {
      const slot = this.shadow.find(page)
      if (slot < 0 || (this.shadow.access(slot) & wanted) !== wanted) return false
      page = this.shadow.lastPage(slot) + 1
    }
    return true
  }

  /**
   * Grants what the tables map at a page, if the device does not hold it and has room.
   * @returns the last page that the device holds from `page` on without a gap, or -1
   * @throws SystemError when the device refuses
   */
  ahead(page: number): number {
    const slot = this.table.doubtful ? -1 : this.shadow.find(page)
    if (slot >= 0) {
      this.aheadFrom = this.shadow.firstPage(slot)
      return this.shadow.lastPage(slot)
    }
    if (this.#crowded() || !this.aside(page, 0)) return -1
    this.#counters[count.ahead]++
    this.aheadFrom = this.#aside.firstPage
    return this.#aside.lastPage
  }

  /** As `grant`, ahead of any question, and also while an answer is made. */
  aside(page: number, wanted: AccessBits): boolean {
    return this.#grant(this.#aside, page, wanted, 'ahead')
  }

  /**
   * Walks to a page and writes the UPDATE. On refusal `cause` and `code` say why.
   * @throws SystemError when the device refuses
   */
  grant(page: number, wanted: AccessBits, occasion: Occasion): boolean {
    return this.#grant(this.#reply, page, wanted, occasion)
  }

  /** Grants what is next to a hole, within what was granted there before. @throws SystemError */
  resend(page: number, firstPage: number, lastPage: number): void {
    const reply = this.#aside
    const epoch = this.#epoch[0]
    if (!reply.walk(page, 0, true)) return
    reply.growWithin(firstPage, lastPage)
    if (this.shadow.touches(reply.firstPage, reply.lastPage)) return
    if (this.#send(reply, epoch)) this.#counters[count.resent]++
  }

  #grant(reply: Reply, page: number, wanted: AccessBits, occasion: Occasion): boolean {
    if (this.table.doubtful) this.table.flush()
    if (this.shadow.full && this.whole.size > 0) this.#refreshRings()
    this.cause = 'unsettled'
    this.code = 0
    for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
      const epoch = this.#epoch[0]
      if (!this.#walk(reply, page, wanted, occasion !== 'ahead' && attempt === 0)) {
        if (this.#epoch[0] === epoch) return false
        continue
      }
      const whole = this.whole.find(page)
      if (whole >= 0) reply.growWithin(this.whole.firstPage(whole), this.whole.lastPage(whole))
      if (occasion === 'preload' && this.#holds(reply)) return true
      if (this.shadow.touches(reply.firstPage, reply.lastPage)) {
        this.table.takeBack(reply.firstPage, reply.lastPage)
      }
      if (whole < 0) this.#options.policy(reply)
      if (this.#send(reply, epoch)) return true
    }
    return false
  }

  /**
   * A refusal is recorded as the device's fault only when it is known that the question is not
   * obsolete: its chain may have been completed and unmapped before it was read.
   */
  #walk(reply: Reply, page: number, wanted: AccessBits, asked: boolean): boolean {
    if (reply.walk(page, wanted, true)) return true
    this.cause = reply.refusal
    this.code = reply.reason
    if (!asked) return false
    if (!this.#options.awaited(page)) {
      this.cause = 'obsolete'
      return false
    }
    return reply.refusal === 'translation' && reply.walk(page, wanted, false)
  }

  /** Writes a reply unless, or takes it back if, an invalidation came in since `epoch`. */
  #send(reply: Reply, epoch: number): boolean {
    if (this.#epoch[0] !== epoch) return false
    const { firstPage, lastPage } = reply
    this.table.grant(reply, this.#turn[0])
    this.#options.granted(firstPage, lastPage)
    if (this.#epoch[0] === epoch) return true
    this.table.takeBack(firstPage, lastPage)
    return false
  }

  /** Whether a grant ahead would cost an entry that was granted since the last miss. */
  #crowded(): boolean {
    const { shadow } = this
    return shadow.full && shadow.turn(shadow.oldest) === this.#turn[0]
  }

  /** Whether one entry of the device already says all that a reply would. */
  #holds(reply: Reply): boolean {
    const slot = this.shadow.find(reply.firstPage)
    return (
      slot >= 0 &&
      this.shadow.lastPage(slot) >= reply.lastPage &&
      this.shadow.access(slot) === reply.access
    )
  }

  /**
   * Rings go in first, so a full table would evict them first, and each ring's miss would evict the
   * next (K5). Writing them again puts them behind all others.
   */
  #refreshRings(): void {
    const most = Math.min(this.whole.size, this.shadow.limit >>> 1)
    for (let moved = 0; moved < most && this.shadow.full; moved++) {
      const slot = this.shadow.oldest
      const firstPage = this.shadow.firstPage(slot)
      const lastPage = this.shadow.lastPage(slot)
      const page = this.whole.firstWithin(firstPage, lastPage)
      if (page < 0) return
      this.table.takeBack(firstPage, lastPage)
      if (this.aside(page, 0)) this.#counters[count.refreshed]++
    }
  }
}

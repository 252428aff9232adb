/**
 * The miss loop: answers what a device asks, takes back what its guest takes back.
 *
 * It exists because the rules between the two are few and unforgiving: a miss that is read and not
 * answered stops a queue for ever (K1), an answer that is older than an invalidation is a hole in
 * the isolation (R1). It knows a channel, an address space and guest memory; it is no IOMMU, and
 * it never touches a ring.
 *
 * How the rules hold:
 * - A walk and the UPDATE made of it are one synchronous turn. Where a walk calls out (a recorded
 *   fault may run the guest's driver at once), `#epoch` tells that an invalidation came in between;
 *   the answer is then made again.
 * - An invalidation of what the shadow does not hold is not sent. That is safe because the device
 *   never holds more than the shadow (`device-table.ts`); after a failed write that is in doubt,
 *   and all is flushed before anything else is written or filtered.
 * - A failed INVALIDATE is thrown to the caller, who must not complete the guest's wait (R2). A
 *   failed UPDATE leaves its miss unanswered, in the fault policy's hands (R6); the error comes out
 *   when all other misses of the turn have been dealt with.
 * - Entries of the device never overlap (K3). An answer that would touch one first invalidates,
 *   which is also how a miss is answered for a page that the device already holds: it may have
 *   missed before it was told (K1), and two equal entries would both count against its limit (K5).
 * - Callbacks run between messages, never between a walk and its UPDATE; from within them every
 *   method may be called. `handle()` does nothing there: the loop that called goes on.
 */
import type { InspectOptions } from 'node:util'
import { LAST_PAGE, pageOf } from '../address'
import type { AccessBits, Iova, Range } from '../address'
import { InvalidState } from '../errors'
import { shown, summary } from '../inspect'
import type { InvalidationSource, Notifier } from '../memory/address-space'
import type { DmaView } from '../virtio/dma-view'
import type { RingAddresses } from '../virtio/ring-layout'
import { DeviceTable } from './device-table'
import { Outlooks } from './look-ahead'
import type { RingOutlook } from './look-ahead'
import { MissBatch } from './miss-batch'
import type { MissHandlerOptions } from './miss-options'
import { Reply } from './reply'
import { exact } from './reply-policy'
import type { ReplyPolicy } from './reply-policy'
import type { Shadow } from './shadow'
import { count, namedCounters, newCounters } from './stats'
import type { MissStats } from './stats'
import { Faults } from './unanswered'
import type { MissCause, UnansweredMiss } from './unanswered'
import { WholeRanges } from './whole-ranges'

export type { RingOutlook } from './look-ahead'
export type { MissHandlerOptions, MissPolicy } from './miss-options'
export type { FaultPolicy } from './unanswered'

/** How often an answer is made anew because an invalidation came in while it was made. */
const ATTEMPTS = 4
/** Batches of misses answered in one turn of the event loop. */
const ROUNDS = 64
const ERRORS = 16

/**
 * miss: the device waits, so an UPDATE must go out. preload: none if the device holds as much.
 * ahead: nobody asked, so a refusal is not recorded.
 */
type Occasion = 'miss' | 'preload' | 'ahead'

export class MissHandler implements Notifier, Disposable {
  readonly #options: MissHandlerOptions
  readonly #policy: ReplyPolicy
  readonly #counters = newCounters()
  readonly #table: DeviceTable
  readonly #reply: Reply
  /** For answers that may be made while `#reply` is in use. */
  readonly #aside: Reply
  readonly #batch = new MissBatch()
  readonly #faults: Faults
  readonly #whole = new WholeRanges()
  readonly #outlooks: Outlooks
  readonly #subscriptions: readonly Disposable[]
  /** Counts invalidations, modulo 2^32. */
  readonly #epoch = new Uint32Array(1)
  /** Counts batches of misses: an entry of this turn has woken all of the batch that it covers. */
  readonly #turn = new Float64Array(1)
  readonly #errors: Error[] = []
  #cause: MissCause = 'translation'
  #code = 0
  #busy = false
  #closed = false

  /** @throws TypeError for a fault policy without its callback */
  constructor(options: MissHandlerOptions) {
    const { channel, addressSpace, memory } = options
    this.#options = options
    this.#policy = options.reply ?? exact
    this.#outlooks = new Outlooks(this, options.lookAhead)
    this.#faults = new Faults(options)
    this.#table = new DeviceTable(channel, this.#counters)
    this.#reply = new Reply(addressSpace, memory, this.shadow, this.#counters)
    this.#aside = new Reply(addressSpace, memory, this.shadow, this.#counters)
    const readable = channel.onReadable(() => {
      this.handle()
    })
    this.#subscriptions = [addressSpace.notify(this), readable]
  }

  /** What the device holds. For reading; only the handler may change it. */
  get shadow(): Shadow {
    return this.#table.shadow
  }

  /**
   * Answers all that is pending. The channel calls it; so may anyone who cannot wait for that.
   * @throws SystemError of the channel, unless `onError` takes it
   */
  handle(): void {
    if (this.#busy || this.#closed) return
    this.#busy = true
    try {
      for (let round = 0; round < ROUNDS && this.#read(); round++) this.#answerBatch()
    } finally {
      this.#busy = false
    }
    if (this.#errors.length > 0) this.#raise()
  }

  /**
   * Takes back what the device holds of the range. Returning is completion (K11).
   * @throws SystemError when the device refuses: the invalidation is not complete then
   */
  invalidate(range: Range<Iova>, source: InvalidationSource): void {
    this.invalidatePages(pageOf(range.first), pageOf(range.last), source)
  }

  /** The number twin, inclusive pages. To the device all sources are the same. */
  invalidatePages(firstPage: number, lastPage: number, source: InvalidationSource): void
  invalidatePages(firstPage: number, lastPage: number): void {
    checkPages(firstPage, lastPage)
    if (this.#closed) return
    this.#epoch[0]++
    this.#counters[count.invalidations]++
    if (this.#table.doubtful) {
      this.#table.flush()
    } else if (!this.shadow.touches(firstPage, lastPage)) {
      if (this.#options.paranoid) this.#table.takeBack(firstPage, lastPage, true)
      else this.#counters[count.filtered]++
    } else if (this.#options.split) {
      this.#takeBackOnly(firstPage, lastPage)
    } else {
      this.#table.takeBack(firstPage, lastPage, this.#options.paranoid)
    }
    if (this.#faults.size > 0) this.#quietly(() => this.retry(firstPage, lastPage))
  }

  /**
   * Grants a range before the device asks, in the largest entries there are, and remembers it as
   * one to be answered whole: rings, before SET_BACKEND touches them (K8, K12). Ends at the first
   * page that the tables refuse.
   * @returns whether the device may use all of it as wanted
   * @throws SystemError when the device refuses
   */
  preload(firstPage: number, lastPage: number, wanted: AccessBits): boolean {
    this.#open()
    checkPages(firstPage, lastPage)
    this.#whole.add(firstPage, lastPage)
    for (let page = firstPage; page <= lastPage;) {
      if (!this.#grant(this.#reply, page, wanted, 'preload')) return false
      page = this.shadow.lastPage(this.shadow.find(page)) + 1
    }
    return this.covers(firstPage, lastPage, wanted)
  }

  /**
   * Grants what the tables map at a page, if the device does not hold it and has room: for one who
   * looks ahead. Nothing is recorded where they refuse.
   * @returns the last page that the device holds from `page` on without a gap, or -1
   * @throws SystemError when the device refuses
   */
  prefetch(page: number): number {
    this.#open()
    checkPages(page, page)
    const slot = this.#table.doubtful ? -1 : this.shadow.find(page)
    if (slot >= 0) return this.shadow.lastPage(slot)
    if (this.#crowded() || !this.#grant(this.#aside, page, 0, 'ahead')) return -1
    this.#counters[count.ahead]++
    return this.#aside.lastPage
  }

  /**
   * A ring whose chains may be granted before the device asks for them.
   * @param view how the device's addresses lead to memory; must record no faults
   * @param availIndex the first chain that the device will take
   * @returns what to tell of kicks and offers; disposing it ends the looking
   */
  lookInto(view: DmaView, ring: RingAddresses, availIndex: number): RingOutlook {
    return this.#outlooks.add(view, ring, availIndex)
  }

  /** Whether the device may use all pages of the range as wanted without asking. */
  covers(firstPage: number, lastPage: number, wanted: AccessBits): boolean {
    if (this.#table.doubtful) return false
    for (let page = firstPage; page <= lastPage;) {
      const slot = this.shadow.find(page)
      if (slot < 0 || (this.shadow.access(slot) & wanted) !== wanted) return false
      page = this.shadow.lastPage(slot) + 1
    }
    return true
  }

  /**
   * For a queue that stopped without a miss, because the device holds the page with too little
   * permission (K2). repaired: a new entry is in place; kick the queue, nothing else wakes it.
   * granted: the device may do that already; it may have stopped before, so kick. fault: the
   * tables refuse.
   * @throws SystemError when the device refuses
   */
  repair(page: number, wanted: AccessBits): 'repaired' | 'granted' | 'fault' {
    this.#open()
    checkPages(page, page)
    if (this.covers(page, page, wanted)) return 'granted'
    if (this.#grant(this.#reply, page, wanted, 'miss')) {
      this.#counters[count.repairs]++
      return 'repaired'
    }
    this.#counters[count.faults]++
    this.#faults.mention(page, wanted, this.#cause, this.#code)
    return 'fault'
  }

  /**
   * Takes back what the device holds of a page, known to the shadow or not, and grants what the
   * tables say now, without a recorded fault: for a queue that stands still and says nothing.
   * @returns false where the tables refuse
   * @throws SystemError when the device refuses
   */
  renew(page: number, wanted: AccessBits): boolean {
    this.#open()
    checkPages(page, page)
    this.#epoch[0]++
    this.#table.takeBack(page, page, true)
    if (!this.#grant(this.#aside, page, wanted, 'ahead')) return false
    this.#counters[count.repairs]++
    return true
  }

  /** Whether the device asked for the page, and was not answered. */
  waits(page: number): boolean {
    return this.#faults.has(page)
  }

  /**
   * Answers the unanswered misses whose pages are mapped by now: for a device layer that sees a
   * kick or a timer. An invalidation that covers them does it by itself.
   * @returns how many were answered
   * @throws SystemError when the device refuses
   */
  retry(firstPage = 0, lastPage = LAST_PAGE): number {
    this.#open()
    const faults = this.#faults
    const before = faults.size
    for (let i = before - 1; i >= 0; i--) {
      if (i >= faults.size) continue
      const page = faults.page(i)
      if (page < firstPage || page > lastPage) continue
      this.#grant(this.#aside, page, faults.wanted(i), 'ahead')
    }
    return before - faults.size
  }

  /**
   * Takes everything back.
   * @throws SystemError when the device refuses
   */
  flush(): void {
    this.#open()
    this.#epoch[0]++
    this.#table.flush()
  }

  /** The device's table was emptied by another way (K9): SET_FEATURES, RESET_OWNER. */
  reset(): void {
    this.#epoch[0]++
    this.#table.reset()
    this.#whole.clear()
    this.#faults.rearm()
  }

  /** The device forgot its misses (K9): RESET_OWNER, SET_BACKEND -1. */
  forgetMisses(): void {
    this.#faults.clear()
    this.#faults.rearm()
  }

  /** The misses that wait for a mapping, the oldest first. */
  unanswered(): readonly UnansweredMiss[] {
    return this.#faults.snapshot()
  }

  /** How many misses were read so far, and how many wait for a mapping now. */
  get asked(): number {
    return this.#counters[count.misses]
  }

  get waiting(): number {
    return this.#faults.size
  }

  stats(): MissStats {
    return {
      ...namedCounters(this.#counters),
      evictions: this.shadow.evictions,
      entries: this.shadow.entries,
      pages: this.shadow.pages,
      unanswered: this.#faults.size,
      forgotten: this.#faults.forgotten,
    }
  }

  /** Ends both subscriptions. What the device holds stays: stop it first, or `flush()`. */
  close(): void {
    if (this.#closed) return
    this.#closed = true
    for (const subscription of this.#subscriptions) subscription[Symbol.dispose]()
  }

  [shown](depth: number, options: InspectOptions): string {
    const fields = {
      state: this.#closed ? 'closed' : 'answering',
      lookAhead: this.#options.lookAhead ?? 'off',
      unanswered: this.unanswered().length,
      shadow: this.shadow,
      stats: this.stats(),
    }
    return summary('MissHandler', fields, depth, options)
  }

  [Symbol.dispose](): void {
    this.close()
  }

  /** Reads until there are no more, or the batch is full: an answer wakes only what was read. */
  #read(): boolean {
    const { channel } = this.#options
    const batch = this.#batch
    batch.clear()
    try {
      while (!batch.full && !this.#closed) {
        const misses = channel.drain()
        if (misses.length === 0) break
        this.#counters[count.misses] += misses.length
        for (let i = 0; i < misses.length; i++) {
          const { page, access } = misses[i]
          if (!batch.add(page, access)) this.#counters[count.coalesced]++
        }
      }
    } catch (error) {
      this.#keepError(error)
    }
    return batch.size > 0
  }

  #answerBatch(): void {
    const batch = this.#batch
    this.#turn[0]++
    this.#outlooks.offered(this.#keepError)
    for (let i = 0; i < batch.size && !this.#closed; i++) {
      this.#answer(batch.page(i), batch.wanted(i))
    }
    this.#faults.report(this.#keepError)
  }

  #answer(page: number, wanted: AccessBits): void {
    const slot = this.shadow.find(page)
    if (slot >= 0 && this.shadow.turn(slot) === this.#turn[0]) {
      if ((this.shadow.access(slot) & wanted) === wanted) {
        this.#counters[count.coalesced]++
        return
      }
    }
    try {
      if (this.#grant(this.#reply, page, wanted, 'miss')) return
    } catch (error) {
      this.#keepError(error)
      this.#cause = 'refused'
      this.#code = 0
    }
    this.#counters[count.faults]++
    this.#faults.add(page, wanted, this.#cause, this.#code)
  }

  /** Walks to a page and writes the UPDATE. On refusal `#cause` and `#code` say why. */
  #grant(reply: Reply, page: number, wanted: AccessBits, occasion: Occasion): boolean {
    if (this.#table.doubtful) this.#table.flush()
    if (this.shadow.full && this.#whole.size > 0) this.#refreshRings()
    this.#cause = 'unsettled'
    this.#code = 0
    for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
      const epoch = this.#epoch[0]
      if (!reply.walk(page, wanted, occasion === 'ahead' || attempt > 0)) {
        this.#cause = reply.refusal
        this.#code = reply.reason
        if (this.#epoch[0] === epoch) return false
        continue
      }
      const whole = this.#whole.find(page)
      if (whole >= 0) reply.growWithin(this.#whole.firstPage(whole), this.#whole.lastPage(whole))
      if (occasion === 'preload' && this.#holds(reply)) return true
      if (this.shadow.touches(reply.firstPage, reply.lastPage)) {
        this.#table.takeBack(reply.firstPage, reply.lastPage)
      }
      if (whole < 0) this.#policy(reply)
      if (this.#send(reply, epoch)) return true
    }
    return false
  }

  /** Writes a reply unless, or takes it back if, an invalidation came in since `epoch`. */
  #send(reply: Reply, epoch: number): boolean {
    if (this.#epoch[0] !== epoch) return false
    const { firstPage, lastPage } = reply
    this.#table.grant(reply, this.#turn[0])
    if (this.#faults.size > 0) this.#faults.woken(firstPage, lastPage)
    if (this.#epoch[0] === epoch) return true
    this.#table.takeBack(firstPage, lastPage)
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

  /** Takes a range back, then grants again what was beside it in the same entries. */
  #takeBackOnly(firstPage: number, lastPage: number): void {
    const below = this.shadow.firstPage(this.shadow.findFrom(firstPage))
    const above = this.shadow.lastPage(this.shadow.findUpTo(lastPage))
    this.#table.takeBack(firstPage, lastPage, this.#options.paranoid)
    this.#quietly(() => {
      if (below < firstPage) this.#resend(firstPage - 1, below, firstPage - 1)
      if (above > lastPage) this.#resend(lastPage + 1, lastPage + 1, above)
    })
  }

  /** Grants what is next to a hole, within what was granted there before. */
  #resend(page: number, firstPage: number, lastPage: number): void {
    const reply = this.#aside
    const epoch = this.#epoch[0]
    if (!reply.walk(page, 0, true)) return
    reply.growWithin(firstPage, lastPage)
    if (this.shadow.touches(reply.firstPage, reply.lastPage)) return
    if (this.#send(reply, epoch)) this.#counters[count.resent]++
  }

  /**
   * Rings go in first, so a full table would evict them first, and each ring's miss would evict the
   * next (K5). Writing them again puts them behind all others.
   */
  #refreshRings(): void {
    const most = Math.min(this.#whole.size, this.shadow.limit >>> 1)
    for (let moved = 0; moved < most && this.shadow.full; moved++) {
      const slot = this.shadow.oldest
      const firstPage = this.shadow.firstPage(slot)
      const lastPage = this.shadow.lastPage(slot)
      const page = this.#whole.firstWithin(firstPage, lastPage)
      if (page < 0) return
      this.#table.takeBack(firstPage, lastPage)
      if (this.#grant(this.#aside, page, 0, 'ahead')) this.#counters[count.refreshed]++
    }
  }

  /** For what is done beside an invalidation that is complete: its failure is not the caller's. */
  #quietly(action: () => void): void {
    try {
      action()
    } catch (error) {
      this.#options.onError?.(asError(error))
    }
  }

  readonly #keepError = (error: unknown): void => {
    if (this.#errors.length < ERRORS) this.#errors.push(asError(error))
  }

  #raise(): void {
    const errors = this.#errors.splice(0)
    const { onError } = this.#options
    if (onError === undefined) throw errors[0]
    for (const error of errors) onError(error)
  }

  #open(): void {
    if (this.#closed) throw new InvalidState('ERR_CLOSED', 'this miss handler is closed')
  }
}

function checkPages(firstPage: number, lastPage: number): void {
  if (!(firstPage >= 0 && firstPage <= lastPage && lastPage <= LAST_PAGE)) {
    throw new RangeError(`not an inclusive range of pages: ${firstPage} to ${lastPage}`)
  }
}

function asError(error: unknown): Error {
  return error instanceof Error ? error : new Error(String(error))
}

/**
 * The miss loop: answers what a device asks, takes back what its guest takes back.
 *
 * It exists because the rules between the two are few and unforgiving: a miss that is read and not
 * answered stops a queue for ever (K1), an answer that is older than an invalidation is a hole in
 * the isolation (R1). It knows a channel, an address space and guest memory; it is no IOMMU, and
 * it never touches a ring.
 *
 * How the rules hold:
 * - A walk and the UPDATE made of it are one synchronous turn, and no two entries of the device
 *   overlap: `grants.ts`.
 * - An invalidation of what the shadow does not hold is not sent. That is safe because the device
 *   never holds more than the shadow (`device-table.ts`); after a failed write that is in doubt,
 *   and all is flushed before anything else is written or filtered.
 * - A failed INVALIDATE is thrown to the caller, who must not complete the guest's wait (R2). A
 *   failed UPDATE leaves its miss unanswered, in the fault policy's hands (R6); the error comes out
 *   when all other misses of the turn have been dealt with.
 * - A question may be read when its chain was completed and unmapped already, because the kernel
 *   asks the same more than once (K7). Where the tables refuse it, and no ring that is known offers
 *   a chain with that page, it is obsolete: nobody waits, and nothing is recorded.
 * - Callbacks run between messages, never between a walk and its UPDATE; from within them every
 *   method may be called. `handle()` does nothing there: the loop that called goes on.
 */
import type { InspectOptions } from 'node:util'
import { LAST_PAGE, pageOf } from '../address'
import type { AccessBits, Iova, Range } from '../address'
import { InvalidState, asError } from '../errors'
import { shown, summary } from '../inspect'
import type { InvalidationSource, Notifier } from '../memory/address-space'
import type { DmaView } from '../virtio/dma-view'
import type { RingAddresses } from '../virtio/ring-layout'
import type { DeviceTable } from './device-table'
import { Grants } from './grants'
import { Outlooks } from './look-ahead'
import type { RingOutlook } from './look-ahead'
import { MissBatch } from './miss-batch'
import type { MissHandlerOptions } from './miss-options'
import { exact } from './reply-policy'
import type { Shadow } from './shadow'
import { count, namedCounters, newCounters } from './stats'
import type { MissStats } from './stats'
import { Faults } from './unanswered'
import type { MissCause, UnansweredMiss } from './unanswered'

export type { RingOutlook } from './look-ahead'
export type { MissHandlerOptions, MissPolicy } from './miss-options'
export type { FaultPolicy } from './unanswered'

/** Batches of misses answered in one turn of the event loop. */
const ROUNDS = 64
const ERRORS = 16

export class MissHandler implements Notifier, Disposable {
  readonly #options: MissHandlerOptions
  readonly #counters: Float64Array
  readonly #grants: Grants
  readonly #table: DeviceTable
  readonly #batch = new MissBatch()
  readonly #faults: Faults
  readonly #outlooks: Outlooks
  readonly #subscriptions: readonly Disposable[]
  readonly #errors: Error[] = []
  #busy = false
  #closed = false

  /** @throws TypeError for a fault policy without its callback */
  constructor(options: MissHandlerOptions) {
    const { channel, addressSpace, memory, reply = exact, counters = newCounters() } = options
    this.#options = options
    this.#counters = counters
    this.#outlooks = new Outlooks(this, options.lookAhead)
    this.#faults = new Faults(options)
    this.#grants = new Grants({
      ...{ channel, addressSpace, memory, counters, policy: reply },
      awaited: (page) => this.#awaited(page),
      granted: (firstPage, lastPage) => {
        if (this.#faults.size > 0) this.#faults.woken(firstPage, lastPage)
      },
    })
    this.#table = this.#grants.table
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
    this.#grants.nextEpoch()
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
    this.#grants.whole.add(firstPage, lastPage)
    for (let page = firstPage; page <= lastPage;) {
      if (!this.#grants.grant(page, wanted, 'preload')) return false
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
    return this.#grants.ahead(page)
  }

  /** The first page of the entry that the last `prefetch` found or made. */
  get prefetchedFrom(): number {
    return this.#grants.aheadFrom
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
    return this.#grants.covers(firstPage, lastPage, wanted)
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
    if (this.#grants.grant(page, wanted, 'miss')) {
      this.#counters[count.repairs]++
      return 'repaired'
    }
    this.#refused((cause, code) => {
      this.#faults.mention(page, wanted, cause, code)
    })
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
    this.#grants.nextEpoch()
    this.#table.takeBack(page, page, true)
    if (!this.#grants.aside(page, wanted)) return false
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
      this.#grants.aside(page, faults.wanted(i))
    }
    return before - faults.size
  }

  /**
   * Takes everything back.
   * @throws SystemError when the device refuses
   */
  flush(): void {
    this.#open()
    this.#grants.nextEpoch()
    this.#table.flush()
  }

  /** The device's table was emptied by another way (K9): SET_FEATURES, RESET_OWNER. */
  reset(): void {
    this.#grants.nextEpoch()
    this.#table.reset()
    this.#grants.whole.clear()
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
    this.#grants.nextTurn()
    this.#outlooks.offered(this.#keepError)
    for (let i = 0; i < batch.size && !this.#closed; i++) {
      this.#answer(batch.page(i), batch.wanted(i))
    }
    this.#faults.report(this.#keepError)
  }

  #answer(page: number, wanted: AccessBits): void {
    const grants = this.#grants
    if (grants.answered(page, wanted)) {
      this.#counters[count.coalesced]++
      return
    }
    try {
      if (grants.grant(page, wanted, 'miss')) return
    } catch (error) {
      this.#keepError(error)
      grants.cause = 'refused'
      grants.code = 0
    }
    this.#refused((cause, code) => {
      this.#faults.add(page, wanted, cause, code)
    })
  }

  /** Tells of what was not granted, unless nobody waits for it. */
  #refused(tell: (cause: MissCause, code: number) => void): void {
    const { cause, code } = this.#grants
    if (cause === 'obsolete') {
      this.#counters[count.obsolete]++
      this.#options.onObsolete?.()
      return
    }
    this.#counters[count.faults]++
    tell(cause, code)
  }

  #awaited(page: number): boolean {
    return this.#grants.whole.find(page) >= 0 || this.#outlooks.mayUse(page)
  }

  /** Takes a range back, then grants again what was beside it in the same entries. */
  #takeBackOnly(firstPage: number, lastPage: number): void {
    const below = this.shadow.firstPage(this.shadow.findFrom(firstPage))
    const above = this.shadow.lastPage(this.shadow.findUpTo(lastPage))
    this.#table.takeBack(firstPage, lastPage, this.#options.paranoid)
    this.#quietly(() => {
      if (below < firstPage) this.#grants.resend(firstPage - 1, below, firstPage - 1)
      if (above > lastPage) this.#grants.resend(lastPage + 1, lastPage + 1, above)
    })
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

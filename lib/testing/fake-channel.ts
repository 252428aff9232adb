/**
 * A device in software that behaves as the kernel's vhost does where it hurts.
 *
 * It exists because the rules of the kernel's IOTLB (K1 to K12) are not those one would guess: an
 * answer that comes before its question was read wakes nobody, too little permission is silence,
 * the older of two overlapping entries wins. Every test of the miss loop that can run without a
 * kernel runs against this. It has no rings and moves no bytes: a test says what the device
 * accesses, and sees the misses, the wake-ups, and where each access ended.
 *
 * Sources: Linux 6.12 drivers/vhost/vhost.c (vhost_iotlb_miss, vhost_process_iotlb_msg,
 * vhost_iotlb_notify_vq, iotlb_access_ok, translate_desc) and drivers/vhost/iotlb.c.
 */
import type { InspectOptions } from 'node:util'
import { LAST_PAGE, PAGE_SHIFT, accessBits, accessOf, iovaRange, pageOf } from '../address'
import type { Access, AccessBits, Hva, Iova, Range } from '../address'
import { SystemError } from '../errors'
import { shown, summary } from '../inspect'
import { Miss } from '../iotlb/channel'
import type { IotlbChannel } from '../iotlb/channel'
import { FakeAccess, FakeQueue } from './fake-queue'
import type { FakeRings, Lookup } from './fake-queue'

export interface FakeVhostOptions {
  /** Entries before eviction: 2048 unless given, as `max_iotlb_entries`. */
  readonly limit?: number
  /** 2 unless given. */
  readonly queues?: number
  /**
   * `'eager'`, unless given: a queue that is woken or kicked runs before the call returns.
   * `'manual'`: it runs when the test calls `work()`.
   */
  readonly worker?: 'eager' | 'manual'
}

export interface FakeEntry {
  readonly iova: Range<Iova>
  readonly hva: Hva
  readonly access: Access
}

interface Entry {
  readonly firstPage: number
  readonly lastPage: number
  readonly hvaPage: number
  readonly access: AccessBits
}

interface Message {
  readonly iova: bigint
  readonly access: AccessBits
  readonly queue: FakeQueue
}

/** What one drain reads at most. */
const DRAIN = 64
const TURNS = 10_000
const EFAULT = 14
const EINVAL = 22

export class FakeVhost implements IotlbChannel {
  readonly limit: number
  /** What crossed the channel, and what the device did. */
  readonly counters = { misses: 0, updates: 0, invalidates: 0, evictions: 0, wakes: 0 }
  readonly #eager: boolean
  readonly #queues: readonly FakeQueue[]
  /** In the order of insertion. */
  #entries: Entry[] = []
  /** Asked and not read; read and not answered. */
  #unread: Message[] = []
  #pending: Message[] = []
  readonly #ready = new Set<FakeQueue>()
  readonly #listeners = new Set<() => void>()
  readonly #misses = Array.from({ length: DRAIN }, () => new Miss())
  #scheduled = false

  constructor({ limit = 2048, queues = 2, worker = 'eager' }: FakeVhostOptions = {}) {
    this.limit = limit
    this.#eager = worker === 'eager'
    const lookup: Lookup = {
      first: (firstPage, lastPage) => this.#lookup(firstPage, lastPage),
      miss: (queue, iova, access) => {
        this.#ask({ queue, iova, access })
      },
    }
    this.#queues = Array.from({ length: queues }, () => new FakeQueue(lookup))
  }

  /** The table, the oldest entry first. */
  get entries(): readonly FakeEntry[] {
    return this.#entries.map(({ firstPage, lastPage, hvaPage, access }) => ({
      iova: iovaRange(firstPage, lastPage),
      hva: (BigInt(hvaPage) << BigInt(PAGE_SHIFT)) as Hva,
      access: accessOf(access),
    }))
  }

  /** How many misses were asked and not yet read. */
  get unread(): number {
    return this.#unread.length
  }

  /** How many misses were read and not yet answered (K6: without a bound). */
  get pending(): number {
    return this.#pending.length
  }

  /** Where the misses that were read and not answered failed, in the order of asking. */
  get pendingIovas(): readonly Iova[] {
    return this.#pending.map(({ iova }) => iova as Iova)
  }

  /** How often the queue's error eventfd fired: too little permission (K2). */
  errors(queue = 0): number {
    return this.#queues[queue].errors
  }

  /** How often a ring of the queue was looked up in the table instead of the cache (K12). */
  ringLookups(queue = 0): number {
    return this.#queues[queue].ringLookups
  }

  /**
   * The device wants to access bytes, after all that its queue waits for already. The queue runs
   * as if it were kicked. @returns the access, whose `state` follows
   */
  access(
    at: bigint,
    access: 'read' | 'write',
    { queue = 0, length = 1 }: { readonly queue?: number; readonly length?: number } = {},
  ): FakeAccess {
    const made = new FakeAccess(at, accessBits(access), length)
    this.#queues[queue].waiting.push(made)
    this.kick(queue)
    return made
  }

  /** The guest's kick: the queue looks again, and asks again where it still finds nothing (K7). */
  kick(queue = 0): void {
    this.#wake(this.#queues[queue])
    if (this.#eager) this.work()
  }

  /** Runs every queue that is woken. @returns how many there were */
  work(): number {
    let ran = 0
    for (const queue of this.#ready) {
      this.#ready.delete(queue)
      queue.run()
      ran++
    }
    return ran
  }

  /**
   * VHOST_NET_SET_BACKEND. With rings: touches the used ring, asking to read it (K8). Without (-1):
   * the queue stops, and the device forgets the misses of all queues (K9).
   * @throws SystemError EFAULT when the used ring is not in the table; the miss was queued
   */
  setBackend(queue: number, rings?: FakeRings): void {
    const target = this.#queues[queue]
    if (rings === undefined) {
      target.stop()
      this.#forgetMisses()
    } else if (!target.start(rings)) {
      throw new SystemError(EFAULT, 'ioctl')
    }
  }

  /** VHOST_SET_FEATURES with ACCESS_PLATFORM: the table is empty, the misses stay (K9). */
  setFeatures(): void {
    this.#entries = []
    this.#forgetRings()
  }

  /** VHOST_RESET_OWNER: table and misses are gone, all queues stop (K9). */
  resetOwner(): void {
    this.setFeatures()
    this.#forgetMisses()
    for (const queue of this.#queues) queue.stop()
  }

  /** One turn of the event loop, now. @returns whether misses are still unread */
  turn(): boolean {
    if (this.#unread.length > 0) for (const listener of this.#listeners) listener()
    return this.#unread.length > 0
  }

  /** Turns until all is read. @throws Error when nobody reads it, or it never ends */
  settle(): void {
    for (let turns = 0; turns < TURNS; turns++) if (!this.turn()) return
    throw new Error(`${this.#unread.length} misses are unread after ${TURNS} turns`)
  }

  drain(): readonly Miss[] {
    const read = this.#unread.splice(0, DRAIN)
    this.#pending.push(...read)
    return read.map(({ iova, access }, i) => {
      const miss = this.#misses[i]
      miss.page = pageOf(iova)
      miss.offset = Number(iova & 0xfffn)
      miss.access = access
      return miss
    })
  }

  update(range: Range<Iova>, hva: Hva, access: Access): void {
    if (((range.first | hva) & 0xfffn) !== 0n || (range.last & 0xfffn) !== 0xfffn) {
      throw new RangeError('an UPDATE covers whole pages')
    }
    this.updatePages(pageOf(range.first), pageOf(range.last), pageOf(hva), accessBits(access))
  }

  invalidate(range: Range<Iova>): void {
    this.invalidatePages(pageOf(range.first), pageOf(range.last))
  }

  updatePages(firstPage: number, lastPage: number, hvaPage: number, access: AccessBits): void {
    checkRange(firstPage, lastPage)
    if (this.#entries.length === this.limit) {
      this.#entries.shift()
      this.counters.evictions++
    }
    this.#entries.push({ firstPage, lastPage, hvaPage, access })
    this.#forgetRings()
    this.counters.updates++
    this.#pending = this.#pending.filter(({ iova, queue }) => {
      const page = pageOf(iova)
      if (page < firstPage || page > lastPage) return true
      this.counters.wakes++
      this.#wake(queue)
      return false
    })
    if (this.#eager) this.work()
  }

  invalidatePages(firstPage: number, lastPage: number): void {
    checkRange(firstPage, lastPage)
    this.#entries = this.#entries.filter(
      (entry) => entry.lastPage < firstPage || entry.firstPage > lastPage,
    )
    this.#forgetRings()
    this.counters.invalidates++
  }

  onReadable(listener: () => void): Disposable {
    this.#listeners.add(listener)
    this.#schedule()
    return { [Symbol.dispose]: () => void this.#listeners.delete(listener) }
  }

  /** The overlapping entry with the lowest start; of equal starts the oldest (K3). */
  [shown](depth: number, options: InspectOptions): string {
    const fields = {
      limit: this.limit,
      entries: this.#entries.length,
      unread: this.unread,
      pending: this.pending,
      counters: this.counters,
    }
    return summary('FakeVhost', fields, depth, options)
  }

  #lookup(firstPage: number, lastPage: number): Entry | undefined {
    let found: Entry | undefined
    for (const entry of this.#entries) {
      if (entry.firstPage > lastPage || entry.lastPage < firstPage) continue
      if (found === undefined || entry.firstPage < found.firstPage) found = entry
    }
    return found
  }

  #ask(message: Message): void {
    this.#unread.push(message)
    this.counters.misses++
    this.#schedule()
  }

  #wake(queue: FakeQueue): void {
    this.#ready.add(queue)
  }

  #forgetRings(): void {
    for (const queue of this.#queues) queue.forgetRings()
  }

  #forgetMisses(): void {
    this.#unread = []
    this.#pending = []
  }

  #schedule(): void {
    if (this.#scheduled || this.#listeners.size === 0 || this.#unread.length === 0) return
    this.#scheduled = true
    setImmediate(() => {
      this.#scheduled = false
      try {
        this.turn()
      } finally {
        this.#schedule()
      }
    })
  }
}

/** As one message can say it: a size of 2^64 is 0 on the wire, and refused (K10). */
function checkRange(firstPage: number, lastPage: number): void {
  if (!(firstPage >= 0 && firstPage <= lastPage && lastPage <= LAST_PAGE)) {
    throw new RangeError(`not an inclusive range of pages: ${firstPage} to ${lastPage}`)
  }
  if (firstPage === 0 && lastPage === LAST_PAGE) throw new SystemError(EINVAL, 'write')
}

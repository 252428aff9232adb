/**
 * The device's view of a split ring: takes chains, gives completions.
 *
 * Everything read here was written by a guest and is an allegation. Each word is read once, each
 * walk is bounded by the size of its table, and a chain that breaks a rule is refused by name; the
 * addresses in it are not followed except for an indirect table. The kernel's vhost is the device
 * that this package serves; this view is for looking ahead of it, for fakes and for tests.
 */
import type { InspectOptions } from 'node:util'
import { READ, WRITE, pageOf } from '../address'
import type { AccessBits } from '../address'
import { shown, summary } from '../inspect'
import { Chain, append, clear, pageOfWords, refuse, unmapped } from './chain'
import type { ChainRefusal } from './chain'
import { DmaWindow, physicalView } from './dma-view'
import type { ByteSpace, DmaView } from './dma-view'
import {
  AVAIL,
  DESC,
  RING_ALIGNMENT,
  USED,
  VIRTQ_AVAIL_F_NO_INTERRUPT,
  VIRTQ_DESC_F_INDIRECT,
  VIRTQ_DESC_F_NEXT,
  VIRTQ_USED_F_NO_NOTIFY,
  availEventOffset,
  checkQueueSize,
  passesEvent,
  usedEventOffset,
} from './ring-layout'
import type { RingAddresses } from './ring-layout'

export { Chain } from './chain'
export type { ChainRefusal } from './chain'

export interface SplitQueueOptions {
  /** VIRTIO_F_EVENT_IDX was negotiated. */
  readonly eventIndex?: boolean
  /** VIRTIO_F_INDIRECT_DESC was negotiated; default true. */
  readonly indirect?: boolean
  /** Where to begin, as VHOST_SET_VRING_BASE says it; default 0. */
  readonly availIndex?: number
  /** Longest chain that is accepted, at most the queue size of a legal ring; default 1024. */
  readonly segments?: number
}

/** A ring part: the device address of its first byte, and the window on it. */
class Part {
  readonly page: number
  readonly offset: number
  readonly aligned: boolean
  readonly window: DmaWindow

  constructor(view: DmaView, address: bigint, alignment: number) {
    this.page = pageOf(address)
    this.offset = Number(address & 0xfffn)
    this.aligned = this.offset % alignment === 0
    this.window = new DmaWindow(view)
  }

  /** The byte of `window.region`, or -1. */
  reach(at: number, wanted: AccessBits): number {
    return this.aligned ? this.window.reach(this.page, this.offset + at, wanted) : -1
  }
}

export class SplitQueue {
  readonly size: number
  /** What `next()` read last. */
  readonly chain: Chain

  readonly #eventIndex: boolean
  readonly #indirectAllowed: boolean
  readonly #desc: Part
  readonly #avail: Part
  readonly #used: Part
  readonly #indirect: DmaWindow
  #tablePage = 0
  readonly #usedEvent: number
  readonly #availEvent: number
  /**
   * avail.idx as last read, the next chain to take, the next completion, the last one announced.
   */
  #offered: number
  #taken: number
  #filled: number
  #announced: number
  /** The whole ring is wrong, until a new queue is made. */
  #refusal: ChainRefusal | undefined

  /**
   * @param from how the ring's addresses lead to memory, and those of indirect tables: guest memory
   *   itself where they are gpas, `translatedView` where they are iovas
   * @param ring device addresses of the parts, any 64-bit value
   * @throws RangeError for a size that no split ring has
   */
  constructor(from: DmaView | ByteSpace, ring: RingAddresses, options: SplitQueueOptions = {}) {
    checkQueueSize(ring.size)
    const view = 'locate' in from ? from : physicalView(from)
    this.size = ring.size
    this.chain = new Chain(options.segments ?? 1024)
    this.#eventIndex = options.eventIndex ?? false
    this.#indirectAllowed = options.indirect ?? true
    this.#desc = new Part(view, ring.desc, RING_ALIGNMENT.desc)
    this.#avail = new Part(view, ring.avail, RING_ALIGNMENT.avail)
    this.#used = new Part(view, ring.used, RING_ALIGNMENT.used)
    this.#indirect = new DmaWindow(view)
    this.#usedEvent = usedEventOffset(ring.size)
    this.#availEvent = availEventOffset(ring.size)
    const start = (options.availIndex ?? 0) & 0xffff
    this.#offered = start
    this.#taken = start
    this.#filled = start
    this.#announced = start
    if (!this.#desc.aligned || !this.#avail.aligned || !this.#used.aligned) {
      this.#refusal = 'misaligned'
    }
  }

  /** Free-running index of the next chain that `next()` takes. */
  get availIndex(): number {
    return this.#taken
  }

  /** How many chains are offered and not taken, or -1 where that can't be read. */
  pending(): number {
    if (this.#refusal !== undefined) return -1
    const idx = this.#loadU16(this.#avail, AVAIL.idx)
    if (idx < 0) return -1
    const pending = (idx - this.#taken) & 0xffff
    if (pending > this.size) {
      this.#refusal = 'avail-index'
      return -1
    }
    this.#offered = idx
    return pending
  }

  /** The driver's free-running index, whatever it says; -1 where it can't be read. */
  offeredIndex(): number {
    return this.#refusal === undefined ? this.#loadU16(this.#avail, AVAIL.idx) : -1
  }

  /** The free-running index of completions as the driver reads it; -1 where it can't be read. */
  completedIndex(): number {
    return this.#refusal === undefined ? this.#loadU16(this.#used, USED.idx) : -1
  }

  /**
   * Takes the next chain into `chain`.
   * @returns false when nothing is offered (`chain.refusal` undefined) or the ring can't be read. A
   *   refused chain is taken (true, with `chain.refusal`), so that it can be completed; a chain
   *   that is `unmapped` is not, so that it can be tried again.
   */
  next(): boolean {
    const { chain } = this
    clear(chain)
    if (this.#refusal !== undefined) return this.#ringRefused(chain)
    if (this.#taken === this.#offered) {
      const pending = this.pending()
      if (pending < 0) return this.#ringRefused(chain)
      if (pending === 0) return false
    }
    if (!this.peek(this.#taken, chain) && chain.refusal === 'unmapped') return false
    this.#taken = (this.#taken + 1) & 0xffff
    return true
  }

  /** Puts the chain taken last back: `next()` will take it again. */
  putBack(): void {
    this.#taken = (this.#taken - 1) & 0xffff
  }

  /**
   * Reads the chain that stands in the available ring at a free-running index, and takes nothing.
   * Whether it is offered is the caller's to know (`pending`).
   * @returns false with `chain.refusal` where it is refused
   */
  peek(index: number, chain: Chain): boolean {
    clear(chain)
    if (this.#refusal !== undefined) return this.#ringRefused(chain)
    const slot = AVAIL.ring + AVAIL.entry * (index & (this.size - 1))
    const at = this.#avail.reach(slot, READ)
    if (at < 0) return unmapped(chain, this.#avail.page, this.#avail.offset + slot, READ)
    return this.walk(this.#avail.window.region.u16[at / 2], chain)
  }

  /**
   * Reads the chain that starts at a descriptor. At most `size` descriptors of the ring and as
   * many as its length says of one indirect table are read.
   */
  walk(head: number, chain: Chain): boolean {
    clear(chain)
    chain.head = head
    if (head >= this.size) return refuse(chain, 'head')
    let index = head
    for (let seen = 0; seen < this.size; seen++) {
      const byte = DESC.bytes * index
      const at = this.#desc.reach(byte, READ)
      if (at < 0) return unmapped(chain, this.#desc.page, this.#desc.offset + byte, READ)
      const words = this.#desc.window.region.u32
      const word = at / 4
      const low = words[word]
      const high = words[word + 1]
      const length = words[word + 2]
      const tail = words[word + 3]
      if ((tail & VIRTQ_DESC_F_INDIRECT) !== 0) {
        if ((tail & VIRTQ_DESC_F_NEXT) !== 0) return refuse(chain, 'indirect')
        return this.#walkIndirect(low, high, length, chain)
      }
      if (!append(chain, low, high, length, tail)) return false
      if ((tail & VIRTQ_DESC_F_NEXT) === 0) return true
      index = tail >>> 16
      if (index >= this.size) return refuse(chain, 'next')
    }
    return refuse(chain, 'loop')
  }

  /**
   * Writes a completion, not yet visible to the driver.
   * @param length bytes written to the chain's writable buffers
   * @returns false when the used ring may not be written; nothing is completed then
   */
  complete(head: number, length: number): boolean {
    const slot = USED.ring + USED.entry * (this.#filled & (this.size - 1))
    const at = this.#used.reach(slot, WRITE)
    if (at < 0) return false
    const last = this.#used.reach(slot + USED.len, WRITE)
    if (last < 0) return false
    const words = this.#used.window.region.u32
    words[last / 4] = length
    const first = this.#used.reach(slot, WRITE)
    this.#used.window.region.u32[first / 4] = head
    this.#filled = (this.#filled + 1) & 0xffff
    return true
  }

  /**
   * Makes the completions visible, at once.
   * @returns whether the driver asked to be called for them (2.7.7.2); false for nothing
   */
  publish(): boolean {
    const before = this.#announced
    const now = this.#filled
    if (now === before || !this.#storeU16(this.#used, USED.idx, now)) return false
    this.#announced = now
    if (this.#eventIndex) {
      const event = this.#loadU16(this.#avail, this.#usedEvent)
      return event >= 0 && passesEvent(event, now, before)
    }
    const flags = this.#loadU16(this.#avail, AVAIL.flags)
    return flags >= 0 && (flags & VIRTQ_AVAIL_F_NO_INTERRUPT) === 0
  }

  /** Asks the driver not to kick. */
  disableKicks(): void {
    if (!this.#eventIndex) this.#storeU16(this.#used, USED.flags, VIRTQ_USED_F_NO_NOTIFY)
  }

  /** Chains that were seen to be offered and are not taken, such as those put back. */
  get left(): number {
    return (this.#offered - this.#taken) & 0xffff
  }

  /**
   * Asks the driver to kick for the next chain.
   * @param left chains to leave where they are, and not to be kicked for: 0, or `left`
   * @returns false when there are others already: the kick may never come, so take them first. Also
   *   false where the ring can't be read; `next()` says so then
   */
  enableKicks(left = 0): boolean {
    const known = (this.#taken + left) & 0xffff
    if (this.#eventIndex) this.#storeU16(this.#used, this.#availEvent, known)
    else this.#storeU16(this.#used, USED.flags, 0)
    return this.#loadU16(this.#avail, AVAIL.idx) === known
  }

  [shown](depth: number, options: InspectOptions): string {
    const fields = {
      size: this.size,
      availIndex: this.availIndex,
      refusal: this.#refusal,
    }
    return summary('SplitQueue', fields, depth, options)
  }

  #walkIndirect(low: number, high: number, bytes: number, chain: Chain): boolean {
    if (!this.#indirectAllowed) return refuse(chain, 'indirect')
    if (bytes === 0 || bytes % DESC.bytes !== 0) return refuse(chain, 'indirect')
    if (low % 4 !== 0) return refuse(chain, 'misaligned')
    const page = pageOfWords(low, high)
    const offset = low & 0xfff
    chain.indirectPage = page
    chain.indirectOffset = offset
    chain.indirectBytes = bytes
    this.#tablePage = page
    const entries = bytes / DESC.bytes
    let index = 0
    for (let seen = 0; seen < entries; seen++) {
      const byte = offset + DESC.bytes * index
      const entryLow = this.#tableWord(byte, chain)
      const entryHigh = this.#tableWord(byte + 4, chain)
      const length = this.#tableWord(byte + DESC.len, chain)
      const tail = this.#tableWord(byte + DESC.flags, chain)
      if (entryLow < 0 || entryHigh < 0 || length < 0 || tail < 0) return false
      if ((tail & VIRTQ_DESC_F_INDIRECT) !== 0) return refuse(chain, 'indirect')
      if (!append(chain, entryLow, entryHigh, length, tail)) return false
      if ((tail & VIRTQ_DESC_F_NEXT) === 0) return true
      index = tail >>> 16
      if (index >= entries) return refuse(chain, 'next')
    }
    return refuse(chain, 'loop')
  }

  /** A table may lie at any multiple of 4, so that an entry of it may lie in two pages. */
  #tableWord(byte: number, chain: Chain): number {
    const at = this.#indirect.reach(this.#tablePage, byte, READ)
    if (at < 0) {
      unmapped(chain, this.#tablePage, byte, READ)
      return -1
    }
    return this.#indirect.region.u32[at / 4]
  }

  #ringRefused(chain: Chain): false {
    if (this.#refusal !== undefined) return refuse(chain, this.#refusal)
    return unmapped(chain, this.#avail.page, this.#avail.offset, READ)
  }

  #loadU16(part: Part, at: number): number {
    const byte = part.reach(at, READ)
    return byte < 0 ? -1 : Atomics.load(part.window.region.u16, byte / 2)
  }

  #storeU16(part: Part, at: number, value: number): boolean {
    const byte = part.reach(at, WRITE)
    if (byte < 0) return false
    Atomics.store(part.window.region.u16, byte / 2, value)
    return true
  }
}

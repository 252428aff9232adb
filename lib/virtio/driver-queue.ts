/**
 * The driver's view of a split ring: offers chains, collects completions.
 *
 * The ring is reached by gpa, each part contiguous in guest memory; what its descriptors hold are
 * device addresses (iovas, or gpas where there is no IOMMU), and nothing here knows the difference.
 * What the device writes is checked like a guest's input: a completion that cannot be true breaks
 * the queue instead of the caller. Nothing allocates per chain.
 *
 * It does not own buffers and does not notify: `publish()` says whether the device wants a kick.
 */
import type { InspectOptions } from 'node:util'
import { PAGE_SHIFT } from '../address'
import { shown, summary } from '../inspect'
import type { ByteSpace } from './dma-view'
import {
  AVAIL,
  DESC,
  RING_ALIGNMENT,
  USED,
  VIRTQ_AVAIL_F_NO_INTERRUPT,
  VIRTQ_DESC_F_INDIRECT,
  VIRTQ_DESC_F_NEXT,
  VIRTQ_DESC_F_WRITE,
  VIRTQ_USED_F_NO_NOTIFY,
  availEventOffset,
  checkQueueSize,
  passesEvent,
  ringLayout,
  usedEventOffset,
} from './ring-layout'
import type { RingAddresses } from './ring-layout'
import { clearedPart, writeAddress } from './ring-memory'
import type { WordTable } from './ring-memory'

/** One buffer of a chain: a device address and whether the device may write there. */
export interface Segment {
  readonly address: bigint
  /** Bytes, 1 to 2^32-1. */
  readonly length: number
  readonly writable: boolean
}

/** One indirect table for each descriptor, contiguous both as gpa and as device address. */
export interface IndirectTables {
  readonly gpa: bigint
  readonly address: bigint
  /** Entries of each table; longer chains use the ring's own descriptors. */
  readonly segments: number
}

export interface DriverQueueOptions {
  /** VIRTIO_F_EVENT_IDX was negotiated. */
  readonly eventIndex?: boolean
  /** VIRTIO_F_INDIRECT_DESC was negotiated, and this is the memory for it. */
  readonly indirect?: IndirectTables
  /** Free-running index of the first chain, where the device begins there too; default 0. */
  readonly index?: number
}

/**
 * Why the device's output was refused. `used-index`: more completions than chains were offered.
 * `used-id`: not the head of a chain in flight. `used-length`: more bytes than the chain has.
 */
export type UsedRefusal = 'used-index' | 'used-id' | 'used-length'

/** The last completion collected; the same object each time. */
export class Completion {
  /** What `end()` was given. */
  token = 0
  /** Bytes that the device says it wrote; at most what the chain offered. */
  length = 0
  /** The chain, for `offerAgain` where it is kept. */
  head = 0
}

/** What the used ring can say at most. */
const MAX_USED_BYTES = 2 ** 32 - 1

export class DriverQueue {
  readonly size: number
  readonly completion = new Completion()

  readonly #eventIndex: boolean
  readonly #desc: WordTable
  readonly #indirect: WordTable | undefined
  readonly #indirectSegments: number
  readonly #indirectPage: number
  readonly #indirectOffset: number

  readonly #avail: Uint16Array
  readonly #availFlags: number
  readonly #availIndex: number
  readonly #availRing: number
  readonly #usedEvent: number

  readonly #used: Uint16Array
  readonly #usedFlags: number
  readonly #usedIndex: number
  readonly #availEvent: number
  readonly #usedWords: Uint32Array
  readonly #usedRing: number

  /** The ring's own `next` fields are never read back: this is the copy that counts. */
  readonly #next: Uint16Array
  /** Descriptors of the chain that starts here; 0 where none is in flight. */
  readonly #count: Uint16Array
  /** The same of a chain that is neither in flight nor free. */
  readonly #kept: Uint16Array
  /** Bytes that the device may write, as far as the used ring can say. */
  readonly #writable: Uint32Array
  readonly #token: Int32Array

  /** Two words for each, as in a descriptor. */
  readonly #segmentAddress: Uint32Array
  readonly #segmentLength: Uint32Array
  readonly #segmentFlags: Uint16Array
  #segments = 0

  #free: number
  #firstFree = 0
  #inFlight = 0
  #offered: number
  #published: number
  #collected: number
  #usedSeen: number
  #refusal: UsedRefusal | undefined

  /**
   * A new queue: clears the ring.
   * @param ring guest-physical addresses of the parts
   * @throws RangeError for parts that are misaligned or not in memory as a whole
   */
  constructor(memory: ByteSpace, ring: RingAddresses, options: DriverQueueOptions = {}) {
    const { size } = ring
    checkQueueSize(size)
    const layout = ringLayout(size)
    const desc = clearedPart(memory, ring.desc, layout.descBytes, RING_ALIGNMENT.desc, 'desc')
    const avail = clearedPart(memory, ring.avail, layout.availBytes, RING_ALIGNMENT.avail, 'avail')
    const used = clearedPart(memory, ring.used, layout.usedBytes, RING_ALIGNMENT.used, 'used')
    this.size = size
    this.#eventIndex = options.eventIndex ?? false
    this.#desc = { words: desc.views.u32, base: desc.at / 4 }
    this.#avail = avail.views.u16
    this.#availFlags = (avail.at + AVAIL.flags) / 2
    this.#availIndex = (avail.at + AVAIL.idx) / 2
    this.#availRing = (avail.at + AVAIL.ring) / 2
    this.#usedEvent = (avail.at + usedEventOffset(size)) / 2
    this.#used = used.views.u16
    this.#usedFlags = (used.at + USED.flags) / 2
    this.#usedIndex = (used.at + USED.idx) / 2
    this.#availEvent = (used.at + availEventOffset(size)) / 2
    this.#usedWords = used.views.u32
    this.#usedRing = (used.at + USED.ring) / 4
    const { indirect } = options
    this.#indirectSegments = indirect?.segments ?? 0
    this.#indirect = indirect === undefined ? undefined : indirectTable(memory, indirect, size)
    this.#indirectPage = Number((indirect?.address ?? 0n) >> 12n)
    this.#indirectOffset = Number((indirect?.address ?? 0n) & 0xfffn)

    this.#next = Uint16Array.from({ length: size }, (_, index) => index + 1)
    this.#count = new Uint16Array(size)
    this.#kept = new Uint16Array(size)
    this.#writable = new Uint32Array(size)
    this.#token = new Int32Array(size)
    const longest = Math.max(size, this.#indirectSegments)
    this.#segmentAddress = new Uint32Array(2 * longest)
    this.#segmentLength = new Uint32Array(longest)
    this.#segmentFlags = new Uint16Array(longest)
    this.#free = size
    const index = (options.index ?? 0) & 0xffff
    this.#offered = index
    this.#published = index
    this.#collected = index
    this.#usedSeen = index
    this.#start(index)
  }

  /** Descriptors of the ring that are not in use. */
  get free(): number {
    return this.#free
  }

  /** Chains that were offered and not collected. */
  get inFlight(): number {
    return this.#inFlight
  }

  /** Free-running index of the next chain to be offered, 0 to 65535. */
  get availIndex(): number {
    return this.#offered
  }

  /** Set once the device wrote what cannot be true; nothing is collected from then on. */
  get refusal(): UsedRefusal | undefined {
    return this.#refusal
  }

  /** Segments that a chain can have at all. */
  get longestChain(): number {
    return this.#segmentLength.length
  }

  /** Whether a chain of so many segments can be offered now. */
  fits(segments: number): boolean {
    if (segments > 1 && segments <= this.#indirectSegments) return this.#free >= 1
    return segments <= this.#free
  }

  /** Starts a chain; what was begun before and not ended is forgotten. */
  begin(): void {
    this.#segments = 0
  }

  /**
   * Adds a buffer to the chain. Readable buffers come before writable ones (virtio 1.3, 2.7.4.2).
   * @param page 4 KiB page of the device address, 0 to 2^52-1
   * @param offset byte within the page, 0 to 4095
   * @param length bytes, 1 to 2^32-1; the buffer may reach over the end of the page
   * @throws RangeError for a length out of range, or more segments than any chain can have
   */
  segment(page: number, offset: number, length: number, writable: boolean): void {
    const at = this.#segments
    if (at === this.#segmentLength.length) throw new RangeError(`a chain has at most ${at} buffers`)
    if (length >>> 0 !== length || length === 0) {
      throw new RangeError(`a buffer has 1 to 2^32-1 bytes: ${length}`)
    }
    writeAddress(this.#segmentAddress, 2 * at, page, offset)
    this.#segmentLength[at] = length
    this.#segmentFlags[at] = writable ? VIRTQ_DESC_F_WRITE : 0
    this.#segments = at + 1
  }

  /**
   * Places the chain in the ring, not yet visible to the device.
   * @param token a 32-bit integer that comes back with the completion
   * @returns false when the ring has no room; the chain is forgotten then
   * @throws RangeError for a chain without buffers
   */
  end(token: number): boolean {
    const count = this.#segments
    if (count === 0) throw new RangeError('a chain has at least one buffer')
    if (!this.fits(count)) {
      this.#segments = 0
      return false
    }
    const head = this.#firstFree
    if (count > 1 && count <= this.#indirectSegments) this.#writeIndirect(head, count)
    else this.#writeDirect(head, count)
    this.#token[head] = token
    this.#offer(head)
    this.#segments = 0
    return true
  }

  /**
   * Places a chain in the ring that `collect` kept: the same buffers, with the same token. Its
   * descriptors stay as they are.
   * @throws RangeError for a chain that is not kept
   */
  offerAgain(head: number): void {
    this.#count[head] = this.#takeKept(head)
    this.#offer(head)
  }

  /**
   * As `offerAgain`, with another length: for a chain of one readable buffer and no table.
   * @param length bytes, 1 to 2^32-1
   * @throws RangeError for a chain that is not kept
   */
  offerAgainWith(head: number, length: number): void {
    this.#count[head] = this.#takeKept(head)
    this.#desc.words[this.#desc.base + 4 * head + DESC.len / 4] = length
    this.#offer(head)
  }

  /** Frees the descriptors of a chain that `collect` kept. @throws RangeError as `offerAgain` */
  letGo(head: number): void {
    this.#count[head] = this.#takeKept(head)
    this.#release(head)
    this.#count[head] = 0
  }

  /** `begin`, `segment` for each, `end`. */
  add(segments: readonly Segment[], token: number): boolean {
    this.begin()
    for (const { address, length, writable } of segments) {
      this.segment(Number(address >> 12n), Number(address & 0xfffn), length, writable)
    }
    return this.end(token)
  }

  /**
   * Makes everything ended so far visible to the device, at once.
   * @returns whether the device asked to be kicked for it (virtio 1.3, 2.7.10); false for nothing
   */
  publish(): boolean {
    const before = this.#published
    const now = this.#offered
    if (now === before) return false
    Atomics.store(this.#avail, this.#availIndex, now)
    this.#published = now
    if (this.#eventIndex) {
      return passesEvent(Atomics.load(this.#used, this.#availEvent), now, before)
    }
    return (Atomics.load(this.#used, this.#usedFlags) & VIRTQ_USED_F_NO_NOTIFY) === 0
  }

  /**
   * Takes the next completion into `completion`.
   * @param keep the chain's descriptors stay taken, for `offerAgain`
   * @returns false when there is none, or when the queue is broken (`refusal`)
   */
  collect(keep = false): boolean {
    const at = this.#collected
    if (at === this.#usedSeen && !this.#look()) return false
    if (this.#refusal !== undefined) return false
    const entry = this.#usedRing + (USED.entry / 4) * (at & (this.size - 1))
    const id = this.#usedWords[entry + USED.id / 4]
    const length = this.#usedWords[entry + USED.len / 4]
    if (id >= this.size || this.#count[id] === 0) return this.#refuse('used-id')
    if (length > this.#writable[id]) return this.#refuse('used-length')
    this.completion.token = this.#token[id]
    this.completion.length = length
    this.completion.head = id
    if (keep) this.#kept[id] = this.#count[id]
    else this.#release(id)
    this.#count[id] = 0
    this.#inFlight -= 1
    this.#collected = (at + 1) & 0xffff
    return true
  }

  /** Asks the device not to call. One more call may still come. */
  disableCalls(): void {
    // virtio 1.3, 2.7.7.1: with event indices the flag stays 0; an event that lies behind is
    // enough.
    if (this.#eventIndex) return
    Atomics.store(this.#avail, this.#availFlags, VIRTQ_AVAIL_F_NO_INTERRUPT)
  }

  /**
   * Asks the device to call at the completion after `delay` further ones (0: at the next). The
   * delay needs event indices and is 0 without.
   * @returns false when so many completions are there already: the call may never come, so collect
   *   and ask again
   */
  enableCalls(delay = 0): boolean {
    const after = this.#eventIndex ? delay : 0
    if (this.#eventIndex) {
      Atomics.store(this.#avail, this.#usedEvent, (this.#collected + after) & 0xffff)
    } else {
      Atomics.store(this.#avail, this.#availFlags, 0)
    }
    const used = Atomics.load(this.#used, this.#usedIndex)
    return ((used - this.#collected) & 0xffff) <= after
  }

  /** Both rings at the index, and a call asked for at the first completion. */
  [shown](depth: number, options: InspectOptions): string {
    const fields = {
      size: this.size,
      free: this.free,
      inFlight: this.inFlight,
      availIndex: this.availIndex,
      refusal: this.refusal,
    }
    return summary('DriverQueue', fields, depth, options)
  }

  #start(index: number): void {
    this.#avail[this.#availIndex] = index
    this.#used[this.#usedIndex] = index
    this.#used[this.#availEvent] = index
    this.enableCalls()
  }

  #look(): boolean {
    if (this.#refusal !== undefined) return false
    const used = Atomics.load(this.#used, this.#usedIndex)
    if (used === this.#collected) return false
    if (((used - this.#collected) & 0xffff) > this.#inFlight) return this.#refuse('used-index')
    this.#usedSeen = used
    return true
  }

  #refuse(reason: UsedRefusal): false {
    this.#refusal = reason
    return false
  }

  #takeKept(head: number): number {
    const count = this.#kept[head]
    if (!(count > 0)) throw new RangeError(`no chain is kept at descriptor ${head}`)
    this.#kept[head] = 0
    return count
  }

  #offer(head: number): void {
    this.#avail[this.#availRing + (this.#offered & (this.size - 1))] = head
    this.#offered = (this.#offered + 1) & 0xffff
    this.#inFlight += 1
  }

  #writeDirect(head: number, count: number): void {
    const { words, base } = this.#desc
    let index = head
    let writable = 0
    for (let at = 0; at < count; at++) {
      const next = this.#next[index]
      const last = at === count - 1
      writable += this.#write(words, base + 4 * index, at, last ? -1 : next)
      index = next
    }
    this.#firstFree = index
    this.#free -= count
    this.#count[head] = count
    this.#writable[head] = Math.min(writable, MAX_USED_BYTES)
  }

  #writeIndirect(head: number, count: number): void {
    const table = this.#indirect
    if (table === undefined) return
    const start = head * this.#indirectSegments
    let writable = 0
    for (let at = 0; at < count; at++) {
      const next = at === count - 1 ? -1 : at + 1
      writable += this.#write(table.words, table.base + 4 * (start + at), at, next)
    }
    const byte = this.#indirectOffset + DESC.bytes * start
    const page = this.#indirectPage + (byte >>> PAGE_SHIFT)
    const { words, base } = this.#desc
    writeAddress(words, base + 4 * head, page, byte & 0xfff)
    words[base + 4 * head + 2] = DESC.bytes * count
    words[base + 4 * head + 3] = VIRTQ_DESC_F_INDIRECT
    this.#firstFree = this.#next[head]
    this.#free -= 1
    this.#count[head] = 1
    this.#writable[head] = Math.min(writable, MAX_USED_BYTES)
  }

  /**
   * Writes one descriptor from the segments gathered; answers how many bytes are writable in it.
   */
  #write(words: Uint32Array, word: number, segment: number, next: number): number {
    const flags = this.#segmentFlags[segment]
    const length = this.#segmentLength[segment]
    words[word] = this.#segmentAddress[2 * segment]
    words[word + 1] = this.#segmentAddress[2 * segment + 1]
    words[word + 2] = length
    words[word + 3] = next < 0 ? flags : flags | VIRTQ_DESC_F_NEXT | (next << 16)
    return flags === 0 ? 0 : length
  }

  #release(head: number): void {
    const count = this.#count[head]
    let last = head
    for (let left = count - 1; left > 0; left--) last = this.#next[last]
    this.#next[last] = this.#firstFree
    this.#firstFree = head
    this.#free += count
  }
}

function indirectTable(memory: ByteSpace, tables: IndirectTables, size: number): WordTable {
  if (!Number.isInteger(tables.segments) || tables.segments < 1) {
    throw new RangeError(`an indirect table has at least one entry: ${tables.segments}`)
  }
  const bytes = DESC.bytes * tables.segments * size
  const { views, at } = clearedPart(
    memory,
    tables.gpa,
    bytes,
    RING_ALIGNMENT.desc,
    'indirect tables',
  )
  return { words: views.u32, base: at / 4 }
}

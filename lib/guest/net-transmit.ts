/**
 * The sending half of a network driver: frames into buffers, buffers into chains, and back.
 *
 * A frame is copied into pages of the pool, header first; each page is mapped before it is offered
 * and unmapped when its chain has completed. Or it lies in guest memory already: then its own pages
 * are mapped, and a buffer of the pool has the header. Nothing allocates per frame, but where part
 * of other bytes than guest memory is copied.
 */
import { PAGE_SHIFT, PAGE_SIZE, READ } from '../address'
import type { GuestMemory } from '../memory/guest-memory'
import type { DriverQueue } from '../virtio/driver-queue'
import { MAX_FRAME_BYTES, NET_HEADER_BYTES, clearNetHeader, writeNetHeader } from '../virtio/net'
import type { Offload } from '../virtio/net'
import type { GuestDma } from './dma'
import type { BufferPool, Surroundings } from './net-ring'

/** Buffers of the longest frame, and so entries of an indirect table. */
export const LONGEST_CHAIN = Math.ceil((MAX_FRAME_BYTES + NET_HEADER_BYTES) / PAGE_SIZE)
/** An Ethernet header. */
export const MIN_FRAME_BYTES = 14
const NONE = -1

export interface NetTransmitOptions {
  /** The pair of queues, as it is told. */
  readonly index: number
  /** The device has let go of a frame that `placeAt` offered. */
  readonly onSent: (cookie: number, pair: number) => void
}

/** How `placeAt` is to send. */
export interface InPlace extends Offload {
  readonly cookie?: number
  readonly headroom?: boolean
}

export class NetTransmit {
  completed = 0
  readonly #queue: DriverQueue
  readonly #pool: BufferPool
  readonly #memory: GuestMemory
  readonly #dma: GuestDma
  readonly #options: NetTransmitOptions
  /**
   * Free buffers, first in first out: frames complete in the order in which they were sent, so that
   * the buffers of a burst follow one another.
   */
  readonly #free: Int32Array
  #freeFirst = 0
  #freeCount: number
  /** The next buffer of the same frame, or -1. */
  readonly #next: Int32Array
  /** Of a chain whose frame lies elsewhere, by its first buffer: device page, pages, cookie. */
  readonly #ownPage: Float64Array
  readonly #ownPages: Uint8Array
  readonly #cookie: Int32Array
  /**
   * The chain of a frame that was in this buffer alone, with its descriptor as it was, or -1.
   * Frames complete in order, so that the next frame in the buffer differs in its length at most.
   */
  readonly #kept: Int32Array
  /** A descriptor for each buffer, and each buffer always in the same place. */
  readonly #keeps: boolean
  /** Buffers that a frame can have at all. */
  readonly #longest: number
  /** Buffers of the frame that is being placed. */
  #taken = 0
  /** Completed buffers that follow one another and are not unmapped yet. */
  #runFirst = 0
  #runCount = 0

  constructor(
    queue: DriverQueue,
    pool: BufferPool,
    { memory, dma }: Surroundings,
    options: NetTransmitOptions,
  ) {
    this.#queue = queue
    this.#pool = pool
    this.#memory = memory
    this.#dma = dma
    this.#options = options
    this.#free = Int32Array.from({ length: pool.count }, (_, at) => at)
    this.#freeCount = pool.count
    this.#next = new Int32Array(pool.count).fill(NONE)
    this.#ownPage = new Float64Array(pool.count)
    this.#ownPages = new Uint8Array(pool.count)
    this.#cookie = new Int32Array(pool.count)
    this.#kept = new Int32Array(pool.count).fill(NONE)
    this.#keeps = pool.steady && pool.count <= queue.size
    this.#longest = Math.min(pool.count, queue.longestChain)
  }

  /**
   * Whether a frame of `bytes` can be taken now, completions that are there counted in.
   * @throws RangeError for a length that no frame has, or for which there never is room
   */
  hasRoom(bytes: number): boolean {
    const buffers = buffersOf(bytes)
    if (this.#fits(buffers)) return true
    if (buffers > this.#longest) {
      throw new RangeError(`a frame of ${bytes} bytes needs ${buffers} buffers: more sendBuffers`)
    }
    this.reap()
    return this.#fits(buffers)
  }

  /**
   * Copies a frame, `bytes` of `u8` from `at` on, and places it in the ring, not yet visible to the
   * device.
   * @returns false when there is no room
   * @throws RangeError as `hasRoom`, or for bytes that are not there
   */
  place(u8: Uint8Array, at: number, bytes: number, offload: Offload | undefined): boolean {
    if (!(at >= 0 && at + bytes <= u8.length)) {
      throw new RangeError(`byte ${at} + ${bytes} is not among ${u8.length}`)
    }
    if (!this.hasRoom(bytes)) return false
    const first = this.#free[this.#freeFirst]
    this.#writeHeader(this.#pool.byteOf(first), offload)
    if (bytes <= PAGE_SIZE - NET_HEADER_BYTES) {
      const to = this.#pool.byteOf(first) + NET_HEADER_BYTES
      copyBytes(u8, at, bytes, this.#pool.u8, to)
      this.#placeOne(first, NET_HEADER_BYTES + bytes)
    } else {
      this.#placeMany(first, u8, at, bytes)
    }
    return true
  }

  /**
   * Places a frame that lies in guest memory, not yet visible to the device.
   * @returns false when there is no room
   * @throws RangeError for a length that no frame has, or what is not in one region of memory
   */
  placeAt(gpa: number, bytes: number, options: InPlace = {}): boolean {
    buffersOf(bytes)
    const before = options.headroom === true ? NET_HEADER_BYTES : 0
    const start = gpa - before
    const region = this.#memory.find(start)
    if (region === undefined || gpa + bytes > region.end || (gpa % PAGE_SIZE) - before < 0) {
      throw new RangeError(`no frame of ${bytes} bytes can be sent from gpa 0x${gpa.toString(16)}`)
    }
    if (!this.#roomFor(before === 0 ? 2 : 1)) return false
    const first = this.#free[this.#freeFirst]
    const gpaPage = Math.floor(start / PAGE_SIZE)
    const offset = start - gpaPage * PAGE_SIZE
    const pages = (offset + before + bytes + PAGE_SIZE - 1) >>> PAGE_SHIFT
    const page = this.#dma.mapPages(gpaPage, pages, READ)
    this.#ownPage[first] = page
    this.#ownPages[first] = pages
    this.#cookie[first] = options.cookie ?? 0
    this.#queue.begin()
    this.#taken = 0
    try {
      if (before > 0) {
        writeNetHeader(region.u8, start - region.start, options)
        this.#skip(first)
      } else {
        this.#writeHeader(this.#pool.byteOf(first), options)
        this.#take(NONE, NET_HEADER_BYTES)
      }
      this.#queue.segment(page, offset, before + bytes, false)
    } catch (error) {
      this.#dropOwn(first)
      this.#takeBack(first)
      throw error
    }
    this.#queue.end(first)
    return true
  }

  /** Takes back what has completed. @returns how many frames */
  reap(): number {
    const { completion } = this.#queue
    let frames = 0
    try {
      while (this.#queue.collect(this.#keeps)) {
        const first = completion.token
        const own = this.#ownPages[first] > 0
        if (this.#keeps) {
          if (own || this.#next[first] !== NONE) this.#queue.letGo(completion.head)
          else this.#kept[first] = completion.head
        }
        this.#release(first)
        frames++
        if (!own) continue
        // Whoever hears of it may send again, from buffers of this run.
        this.#unmapRun()
        this.#dropOwn(first)
        this.#options.onSent(this.#cookie[first], this.#options.index)
      }
    } finally {
      this.#unmapRun()
    }
    this.completed += frames
    return frames
  }

  #fits(buffers: number): boolean {
    if (this.#freeCount < buffers) return false
    if (buffers === 1 && this.#kept[this.#free[this.#freeFirst]] !== NONE) return true
    return this.#fitsInRing(buffers)
  }

  /** For one buffer of the pool, in a chain of so many segments. */
  #roomFor(segments: number): boolean {
    if (this.#freeCount > 0 && this.#fitsInRing(segments)) return true
    this.reap()
    return this.#freeCount > 0 && this.#fitsInRing(segments)
  }

  /** Descriptors that were kept for free buffers are as good as free. */
  #fitsInRing(segments: number): boolean {
    for (let left = this.#freeCount; left > 0 && !this.#queue.fits(segments); left--) {
      this.#letGo(this.#free[this.#freeSlot(left - 1)])
    }
    return this.#queue.fits(segments)
  }

  #letGo(buffer: number): void {
    const head = this.#kept[buffer]
    this.#kept[buffer] = NONE
    if (head !== NONE) this.#queue.letGo(head)
  }

  #placeOne(first: number, length: number): void {
    const head = this.#kept[first]
    if (head === NONE) {
      this.#queue.begin()
      this.#take(NONE, length)
      this.#queue.end(first)
      return
    }
    this.#pool.map(first, READ)
    this.#kept[first] = NONE
    this.#skip(first)
    this.#queue.offerAgainWith(head, length)
  }

  #placeMany(first: number, u8: Uint8Array, at: number, bytes: number): void {
    this.#queue.begin()
    this.#taken = 0
    try {
      this.#spread(u8, at, bytes)
    } catch (error) {
      this.#takeBack(first)
      throw error
    }
    this.#queue.end(first)
  }

  #writeHeader(at: number, offload: Offload | undefined): void {
    if (offload?.checksum === undefined && offload?.gso === undefined) {
      clearNetHeader(this.#pool.u32, at >>> 2)
    } else {
      writeNetHeader(this.#pool.u8, at, offload)
    }
  }

  #spread(u8: Uint8Array, from: number, bytes: number): void {
    let previous = NONE
    let room = PAGE_SIZE - NET_HEADER_BYTES
    for (let done = 0; done < bytes;) {
      const length = Math.min(room, bytes - done)
      const at = this.#pool.byteOf(this.#free[this.#freeFirst]) + PAGE_SIZE - room
      copyBytes(u8, from + done, length, this.#pool.u8, at)
      previous = this.#take(previous, PAGE_SIZE - room + length)
      done += length
      room = PAGE_SIZE
    }
  }

  /** Undoes a chain that was begun. */
  #takeBack(first: number): void {
    if (this.#taken === 0) return
    this.#release(first)
    this.#unmapRun()
  }

  /** Maps the first free buffer and adds it to the chain. */
  #take(previous: number, length: number): number {
    const buffer = this.#free[this.#freeFirst]
    const page = this.#pool.map(buffer, READ)
    this.#skip(buffer)
    if (previous !== NONE) this.#next[previous] = buffer
    this.#queue.segment(page, 0, length, false)
    return buffer
  }

  /** Takes the first free buffer. */
  #skip(buffer: number): void {
    const next = this.#freeFirst + 1
    this.#freeFirst = next === this.#free.length ? 0 : next
    this.#freeCount -= 1
    this.#taken += 1
    this.#next[buffer] = NONE
    this.#letGo(buffer)
  }

  /** Gives the buffers of a frame back, to be unmapped before any is used again. */
  #release(first: number): void {
    for (let buffer = first; buffer !== NONE;) {
      const next = this.#next[buffer]
      if (buffer !== this.#runFirst + this.#runCount) this.#unmapRun()
      if (this.#runCount === 0) this.#runFirst = buffer
      this.#runCount += 1
      this.#next[buffer] = NONE
      this.#free[this.#freeSlot(this.#freeCount)] = buffer
      this.#freeCount += 1
      buffer = next
    }
  }

  /** Where the `at`th of the free buffers is; the next one to be freed for their number. */
  #freeSlot(at: number): number {
    const slot = this.#freeFirst + at
    return slot < this.#free.length ? slot : slot - this.#free.length
  }

  #dropOwn(first: number): void {
    const pages = this.#ownPages[first]
    this.#ownPages[first] = 0
    this.#dma.unmapPages(this.#ownPage[first], pages)
  }

  #unmapRun(): void {
    const count = this.#runCount
    this.#runCount = 0
    if (count > 0) this.#pool.unmap(this.#runFirst, count)
  }
}

function buffersOf(bytes: number): number {
  if (!(bytes >= MIN_FRAME_BYTES && bytes <= MAX_FRAME_BYTES)) {
    throw new RangeError(`a frame has ${MIN_FRAME_BYTES} to ${MAX_FRAME_BYTES} bytes: ${bytes}`)
  }
  return (NET_HEADER_BYTES + bytes + PAGE_SIZE - 1) >>> PAGE_SHIFT
}

/** Makes no object for a whole array, nor for bytes of the same region. */
function copyBytes(u8: Uint8Array, from: number, bytes: number, to: Uint8Array, at: number): void {
  if (u8 === to) to.copyWithin(at, from, from + bytes)
  else if (from === 0 && bytes === u8.length) to.set(u8, at)
  else to.set(u8.subarray(from, from + bytes), at)
}

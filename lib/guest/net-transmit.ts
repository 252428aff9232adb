/**
 * The sending half of a network driver: frames into buffers, buffers into chains, and back.
 *
 * A frame is copied into pages of the pool, header first; each page is mapped before it is offered
 * and unmapped when its chain has completed. Nothing allocates per frame.
 */
import { PAGE_SHIFT, PAGE_SIZE, READ } from '../address'
import type { DriverQueue } from '../virtio/driver-queue'
import { MAX_FRAME_BYTES, NET_HEADER_BYTES, writeNetHeader } from '../virtio/net'
import type { Offload } from '../virtio/net'
import type { BufferPool } from './net-ring'

/** Buffers of the longest frame, and so entries of an indirect table. */
export const LONGEST_CHAIN = Math.ceil((MAX_FRAME_BYTES + NET_HEADER_BYTES) / PAGE_SIZE)
/** An Ethernet header. */
export const MIN_FRAME_BYTES = 14
const NONE = -1

export class NetTransmit {
  completed = 0
  readonly #queue: DriverQueue
  readonly #pool: BufferPool
  /**
   * Free buffers, first in first out: frames complete in the order in which they were sent, so that
   * the buffers of a burst follow one another.
   */
  readonly #free: Int32Array
  #freeFirst = 0
  #freeCount: number
  /** The next buffer of the same frame, or -1. */
  readonly #next: Int32Array
  /** Buffers that a frame can have at all. */
  readonly #longest: number
  /** Buffers of the frame that is being placed. */
  #taken = 0
  /** Completed buffers that follow one another and are not unmapped yet. */
  #runFirst = 0
  #runCount = 0

  constructor(queue: DriverQueue, pool: BufferPool) {
    this.#queue = queue
    this.#pool = pool
    this.#free = Int32Array.from({ length: pool.count }, (_, at) => at)
    this.#freeCount = pool.count
    this.#next = new Int32Array(pool.count).fill(NONE)
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
   * Copies the frame and places it in the ring, not yet visible to the device.
   * @returns false when there is no room
   * @throws RangeError as `hasRoom`
   */
  place(frame: Uint8Array, offload: Offload | undefined): boolean {
    const bytes = frame.length
    if (!this.hasRoom(bytes)) return false
    const first = this.#free[this.#freeFirst]
    writeNetHeader(this.#pool.u8, this.#pool.byteOf(first), offload)
    this.#queue.begin()
    this.#taken = 0
    try {
      if (bytes <= PAGE_SIZE - NET_HEADER_BYTES) {
        this.#pool.u8.set(frame, this.#pool.byteOf(first) + NET_HEADER_BYTES)
        this.#take(NONE, NET_HEADER_BYTES + bytes)
      } else {
        this.#spread(frame)
      }
    } catch (error) {
      if (this.#taken > 0) {
        this.#release(first)
        this.#unmapRun()
      }
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
      while (this.#queue.collect()) {
        this.#release(completion.token)
        frames++
      }
    } finally {
      this.#unmapRun()
    }
    this.completed += frames
    return frames
  }

  #fits(buffers: number): boolean {
    return this.#freeCount >= buffers && this.#queue.fits(buffers)
  }

  #spread(frame: Uint8Array): void {
    let previous = NONE
    let room = PAGE_SIZE - NET_HEADER_BYTES
    for (let done = 0; done < frame.length;) {
      const length = Math.min(room, frame.length - done)
      const at = this.#pool.byteOf(this.#free[this.#freeFirst]) + PAGE_SIZE - room
      this.#pool.u8.set(frame.subarray(done, done + length), at)
      previous = this.#take(previous, PAGE_SIZE - room + length)
      done += length
      room = PAGE_SIZE
    }
  }

  /** Maps the first free buffer and adds it to the chain. */
  #take(previous: number, length: number): number {
    const buffer = this.#free[this.#freeFirst]
    const page = this.#pool.map(buffer, READ)
    this.#freeFirst = (this.#freeFirst + 1) % this.#free.length
    this.#freeCount -= 1
    this.#taken += 1
    this.#next[buffer] = NONE
    if (previous !== NONE) this.#next[previous] = buffer
    this.#queue.segment(page, 0, length, false)
    return buffer
  }

  /** Gives the buffers of a frame back, to be unmapped before any is used again. */
  #release(first: number): void {
    for (let buffer = first; buffer !== NONE;) {
      const next = this.#next[buffer]
      if (buffer !== this.#runFirst + this.#runCount) this.#unmapRun()
      if (this.#runCount === 0) this.#runFirst = buffer
      this.#runCount += 1
      this.#next[buffer] = NONE
      this.#free[(this.#freeFirst + this.#freeCount) % this.#free.length] = buffer
      this.#freeCount += 1
      buffer = next
    }
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

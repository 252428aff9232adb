/**
 * The receiving half of a network driver: keeps the ring full of buffers, and puts frames together
 * that the device spread over several of them (virtio 1.3, 5.1.6.4).
 *
 * What the device says of a frame is checked; a frame that can't be is dropped and counted. A
 * buffer is unmapped before it is read and mapped again before it is offered again. Buffers that
 * completed together are unmapped together: one invalidation for a burst.
 */
import { PAGE_SIZE, WRITE } from '../address'
import type { DriverQueue } from '../virtio/driver-queue'
import { MAX_FRAME_BYTES, NET_HEADER_BYTES, NetHeader } from '../virtio/net'
import type { BufferPool } from './net-ring'

/** Bytes of a frame, valid during the call: they are the device's again after it. */
export type FrameSink = (u8: Uint8Array, at: number, length: number, header: NetHeader) => void

/** Completions taken at once. */
const BATCH = 64

export class NetReceive {
  /** Frames whose header or length can't be. */
  malformed = 0
  readonly header = new NetHeader()
  readonly #queue: DriverQueue
  readonly #pool: BufferPool
  readonly #mergeable: boolean
  readonly #scratch: Uint8Array
  /** Completed and unmapped buffers that nobody has read yet, and the bytes in each. */
  readonly #token = new Int32Array(BATCH)
  readonly #length = new Float64Array(BATCH)
  #next = 0
  #collected = 0
  /** Buffers still to come of the frame in `#scratch`, and its bytes so far. */
  #missing = 0
  #gathered = 0

  constructor(queue: DriverQueue, pool: BufferPool, mergeable: boolean) {
    this.#queue = queue
    this.#pool = pool
    this.#mergeable = mergeable
    this.#scratch = new Uint8Array(mergeable ? MAX_FRAME_BYTES : 0)
  }

  /** Places every buffer in the ring, not yet visible to the device. */
  fill(): void {
    for (let buffer = 0; buffer < this.#pool.count; buffer++) this.#offer(buffer)
  }

  /**
   * Takes one completed buffer, and hands the frame to `sink` if that was its last.
   * @returns false when there is none
   */
  take(sink: FrameSink): boolean {
    if (this.#next === this.#collected && !this.#collect()) return false
    const at = this.#next++
    const buffer = this.#token[at]
    try {
      this.#read(this.#pool.byteOf(buffer), this.#length[at], sink)
    } finally {
      this.#offer(buffer)
    }
    return true
  }

  #collect(): boolean {
    const { completion } = this.#queue
    let count = 0
    while (count < BATCH && this.#queue.collect()) {
      this.#token[count] = completion.token
      this.#length[count] = completion.length
      count++
    }
    for (let at = 0; at < count;) {
      const from = at++
      while (at < count && this.#token[at] === this.#token[at - 1] + 1) at++
      this.#pool.unmap(this.#token[from], at - from)
    }
    this.#next = 0
    this.#collected = count
    return count > 0
  }

  #offer(buffer: number): void {
    const page = this.#pool.map(buffer, WRITE)
    this.#queue.begin()
    this.#queue.segment(page, 0, PAGE_SIZE, true)
    this.#queue.end(buffer)
  }

  #read(at: number, length: number, sink: FrameSink): void {
    if (this.#missing > 0) {
      this.#gather(at, length, sink)
      return
    }
    if (length <= NET_HEADER_BYTES) {
      this.malformed += 1
      return
    }
    const { u8 } = this.#pool
    const { header } = this
    header.read(u8, at)
    const buffers = this.#mergeable ? header.bufferCount : 1
    if (buffers === 1) {
      sink(u8, at + NET_HEADER_BYTES, length - NET_HEADER_BYTES, header)
      return
    }
    if (buffers === 0 || buffers > this.#pool.count) {
      this.malformed += 1
      return
    }
    this.#missing = buffers
    this.#gathered = 0
    this.#gather(at + NET_HEADER_BYTES, length - NET_HEADER_BYTES, sink)
  }

  /** A frame that is too long is read to its end, so that the next one is found, and dropped. */
  #gather(at: number, length: number, sink: FrameSink): void {
    const fits = this.#gathered + length <= this.#scratch.length
    if (fits) this.#scratch.set(this.#pool.u8.subarray(at, at + length), this.#gathered)
    this.#gathered += length
    this.#missing -= 1
    if (this.#missing > 0) return
    if (this.#gathered > this.#scratch.length) this.malformed += 1
    else sink(this.#scratch, 0, this.#gathered, this.header)
  }
}

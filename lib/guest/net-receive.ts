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
import type { FrameDelivery } from './frame-delivery'
import type { BufferPool } from './net-ring'

/** Completions taken at once: as many as the kernel holds back at most (VHOST_NET_BATCH). */
const BATCH = 64

export interface NetReceiveOptions {
  /** The pair of queues, as it is told. */
  readonly index: number
  readonly mergeable: boolean
}

export class NetReceive {
  /** Frames whose header or length can't be. */
  malformed = 0
  readonly header = new NetHeader()
  readonly #queue: DriverQueue
  readonly #pool: BufferPool
  readonly #index: number
  readonly #mergeable: boolean
  readonly #scratch: Uint8Array
  /** Completed and unmapped buffers that nobody has read yet, and the bytes in each. */
  readonly #token = new Int32Array(BATCH)
  readonly #head = new Uint16Array(BATCH)
  readonly #length = new Uint32Array(BATCH)
  /** Buffers still to come of the frame in `#scratch`, and its bytes so far. */
  #missing = 0
  #gathered = 0

  constructor(queue: DriverQueue, pool: BufferPool, { index, mergeable }: NetReceiveOptions) {
    this.#queue = queue
    this.#pool = pool
    this.#index = index
    this.#mergeable = mergeable
    this.#scratch = new Uint8Array(mergeable ? MAX_FRAME_BYTES : 0)
  }

  /** Places every buffer in the ring, not yet visible to the device. */
  fill(): void {
    for (let buffer = 0; buffer < this.#pool.count; buffer++) this.#offer(buffer)
  }

  /**
   * Takes at most `limit` completed buffers and hands over the frames that end in them. The buffers
   * are in the ring again, not yet visible to the device. Ends early where `delivery` closes the
   * pair.
   * @returns how many buffers; 0 when there is none
   */
  take(limit: number, delivery: FrameDelivery): number {
    const count = this.#collect(Math.min(limit, BATCH))
    for (let at = 0; at < count; at++) {
      const buffer = this.#token[at]
      this.#read(buffer, this.#length[at], delivery)
      if (this.#pool.closed) break
      if (this.#pool.permanent) this.#queue.offerAgain(this.#head[at])
      else this.#offer(buffer)
    }
    return count
  }

  #collect(limit: number): number {
    const { completion } = this.#queue
    let count = 0
    const keep = this.#pool.permanent
    while (count < limit && this.#queue.collect(keep)) {
      this.#head[count] = completion.head
      this.#token[count] = completion.token
      this.#length[count] = completion.length
      count++
    }
    if (keep) return count
    for (let at = 0; at < count;) {
      const from = at++
      while (at < count && this.#token[at] === this.#token[at - 1] + 1) at++
      this.#pool.unmap(this.#token[from], at - from)
    }
    return count
  }

  #offer(buffer: number): void {
    const page = this.#pool.map(buffer, WRITE)
    this.#queue.begin()
    this.#queue.segment(page, 0, PAGE_SIZE, true)
    this.#queue.end(buffer)
  }

  #read(buffer: number, length: number, delivery: FrameDelivery): void {
    const at = this.#pool.byteOf(buffer)
    if (this.#missing > 0) {
      this.#gather(at, length, delivery)
      return
    }
    if (length <= NET_HEADER_BYTES) {
      this.malformed += 1
      return
    }
    const { u8, u32 } = this.#pool
    const { header } = this
    header.readWords(u32, at >>> 2)
    const buffers = this.#mergeable ? header.bufferCount : 1
    if (buffers === 1) {
      const bytes = length - NET_HEADER_BYTES
      delivery.deliver(u8, at + NET_HEADER_BYTES, bytes, header, this.#index)
      return
    }
    if (buffers === 0 || buffers > this.#pool.count) {
      this.malformed += 1
      return
    }
    this.#missing = buffers
    this.#gathered = 0
    this.#gather(at + NET_HEADER_BYTES, length - NET_HEADER_BYTES, delivery)
  }

  /** A frame that is too long is read to its end, so that the next one is found, and dropped. */
  #gather(at: number, length: number, delivery: FrameDelivery): void {
    const fits = this.#gathered + length <= this.#scratch.length
    if (fits) this.#scratch.set(this.#pool.u8.subarray(at, at + length), this.#gathered)
    this.#gathered += length
    this.#missing -= 1
    if (this.#missing > 0) return
    if (this.#gathered > this.#scratch.length) this.malformed += 1
    else delivery.deliver(this.#scratch, 0, this.#gathered, this.header, this.#index)
  }
}

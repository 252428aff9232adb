/**
 * A pair of queues in operation: when to kick, when to ask for a call, what a call sets off.
 *
 * A call is answered in one turn of bounded length; what is left over is taken up in the next. The
 * receiving queue asks for the next completion, the sending queue for three quarters of what is in
 * flight, as Linux does (`virtqueue_enable_cb_delayed`).
 */
import { InvalidState, asError } from '../errors'
import type { DriverQueue } from '../virtio/driver-queue'
import type { NetDevice } from '../virtio/net-device'
import { NetReceive } from './net-receive'
import type { FrameDelivery } from './frame-delivery'
import { BufferPool, NetRing } from './net-ring'
import type { Surroundings } from './net-ring'
import { LONGEST_CHAIN, NetTransmit } from './net-transmit'

export interface NetPairOptions {
  /** Queues 2 * index and 2 * index + 1 of the device. */
  readonly index: number
  readonly queueSize: number
  readonly sendBuffers: number
  readonly eventIndex: boolean
  readonly indirect: boolean
  readonly mergeable: boolean
  readonly delivery: FrameDelivery
  /** A frame that was sent from where it lies is the caller's again. */
  readonly onSent: (cookie: number, pair: number) => void
  /** Frames have completed. */
  readonly onProgress: () => void
  /** The rings can't go on. */
  readonly onFailure: (error: Error) => void
}

export class NetPair {
  readonly transmit: NetTransmit
  readonly receive: NetReceive
  sent = 0
  kicks = 0
  calls = 0
  readonly #nic: NetDevice
  readonly #options: NetPairOptions
  readonly #receiveQueue: number
  readonly #transmitQueue: number
  readonly #rx: DriverQueue
  readonly #tx: DriverQueue
  readonly #open: { close(): void }[] = []
  readonly #listening: Disposable[] = []
  #later: NodeJS.Immediate | undefined
  #closed = false

  /** Places both rings in the device and fills the receiving one; nothing is running yet. */
  constructor(nic: NetDevice, around: Surroundings, options: NetPairOptions) {
    this.#nic = nic
    this.#options = options
    this.#receiveQueue = 2 * options.index
    this.#transmitQueue = 2 * options.index + 1
    try {
      const rx = this.#ring(around, this.#receiveQueue, 0)
      const tx = this.#ring(around, this.#transmitQueue, options.indirect ? LONGEST_CHAIN : 0)
      this.#rx = rx.queue
      this.#tx = tx.queue
      const received = this.#pool(around, options.queueSize)
      this.receive = new NetReceive(rx.queue, received, options)
      const sent = this.#pool(around, options.sendBuffers)
      this.transmit = new NetTransmit(tx.queue, sent, around, options)
      this.receive.fill()
      this.#rx.publish()
      this.#listening.push(nic.onCall(this.#receiveQueue, this.#onReceiveCall))
      this.#listening.push(nic.onCall(this.#transmitQueue, this.#onTransmitCall))
    } catch (error) {
      this.close()
      throw error
    }
  }

  /** Both queues, once the device has started: it may have missed what was published before. */
  kickAll(): void {
    this.#kick(this.#receiveQueue)
    this.#kick(this.#transmitQueue)
  }

  /** Makes the frames placed visible, and kicks if the device wants it. */
  publishSent(): void {
    this.#publish(this.#tx, this.#transmitQueue)
    this.#check(this.#tx)
  }

  /** Whether every frame has completed. */
  sentAll(): boolean {
    this.transmit.reap()
    return this.#tx.inFlight === 0
  }

  /** Unmaps and frees. The device must have stopped. */
  close(): void {
    if (this.#closed) return
    this.#closed = true
    if (this.#later !== undefined) clearImmediate(this.#later)
    for (const listening of this.#listening) listening[Symbol.dispose]()
    for (const each of this.#open.reverse()) each.close()
  }

  readonly #onReceiveCall = (): void => {
    this.calls += 1
    this.#receive()
  }

  /**
   * At most one ring's worth of buffers, so that a flood leaves the loop some air. The buffers of a
   * burst go back to the device before the next one is looked at, which it fills meanwhile.
   */
  #receive(): void {
    const rx = this.#rx
    const { delivery, index } = this.#options
    let left = rx.size
    rx.disableCalls()
    try {
      for (;;) {
        const taken = this.receive.take(left, delivery)
        if (taken > 0 && !this.#closed) {
          this.#publish(rx, this.#receiveQueue)
          delivery.endOfBurst(index)
        }
        if (this.#closed || this.#check(rx)) return
        left -= taken
        if (left === 0) {
          this.#receiveLater()
          return
        }
        if (taken > 0) continue
        if (rx.enableCalls()) return
        rx.disableCalls()
      }
    } catch (error) {
      this.#options.onFailure(asError(error))
    }
  }

  #receiveLater(): void {
    this.#later ??= setImmediate(() => {
      this.#later = undefined
      this.#receive()
    })
  }

  readonly #onTransmitCall = (): void => {
    this.calls += 1
    const tx = this.#tx
    try {
      do {
        this.transmit.reap()
        if (this.#check(tx)) return
      } while (!tx.enableCalls((tx.inFlight * 3) >>> 2))
    } catch (error) {
      this.#options.onFailure(asError(error))
      return
    }
    this.#options.onProgress()
  }

  /** @returns whether the device has broken the queue */
  #check(queue: DriverQueue): boolean {
    if (queue.refusal === undefined) return false
    const what = queue === this.#rx ? 'receiving' : 'sending'
    this.#options.onFailure(
      new InvalidState('ERR_UNSUPPORTED', `the device broke the ${what} ring: ${queue.refusal}`),
    )
    return true
  }

  #publish(queue: DriverQueue, index: number): void {
    this.#nic.offering?.(index, queue.availIndex)
    if (queue.publish()) this.#kick(index)
  }

  #kick(queue: number): void {
    this.kicks += 1
    this.#nic.kick(queue)
  }

  #ring(around: Surroundings, queue: number, indirectSegments: number): NetRing {
    const { queueSize: size, eventIndex } = this.#options
    const ring = new NetRing(around, { size, eventIndex, indirectSegments })
    this.#open.push(ring)
    this.#nic.setQueue(queue, ring.addresses)
    return ring
  }

  #pool(around: Surroundings, count: number): BufferPool {
    const pool = new BufferPool(around, count)
    this.#open.push(pool)
    return pool
  }
}

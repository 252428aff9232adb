/**
 * The guest's virtio-net driver, in plain JavaScript: rings, buffers, mappings, invalidations.
 *
 * It does to the device what Linux's virtio_net does behind its IOMMU, so that a script can drive
 * vhost-net without a virtual machine. It reacts to calls and never polls. Not here: the control
 * queue, and whatever speaks over the frames.
 */
import type { InspectOptions } from 'node:util'
import { InvalidState } from '../errors'
import { shown, summary } from '../inspect'
import { hasFeature } from '../virtio/net'
import type { Offload } from '../virtio/net'
import type { NetDevice } from '../virtio/net-device'
import type { GuestDma } from './dma'
import { FrameDelivery, rethrowLater } from './frame-delivery'
import type { FrameListener, FrameSink } from './frame-delivery'
import { dmaOf, negotiate } from './net-options'
import type { NetDriverOptions } from './net-options'
import { NetPair } from './net-pair'
import { PageAllocator } from './page-allocator'

export type { Mapping } from './dma'
export type { FrameListener, FrameSink } from './frame-delivery'
export type { NetDriverOptions } from './net-options'
export type { NetDevice } from '../virtio/net-device'
export type { Offload } from '../virtio/net'

export interface NetDriverStats {
  /** Frames offered to the device, and those that it has completed. */
  readonly sent: number
  readonly completed: number
  readonly received: number
  /** Received frames that nobody took in time. */
  readonly dropped: number
  /** Received frames whose header or length can't be. */
  readonly malformed: number
  readonly kicks: number
  readonly calls: number
}

export interface SendOptions extends Offload {
  /** Which pair of queues; default 0. */
  readonly pair?: number
}

export interface Abortable {
  readonly signal?: AbortSignal
}

export interface InPlaceOptions extends SendOptions {
  /** Comes back when the frame has been sent (`onSent`): a 32-bit integer; default 0. */
  readonly cookie?: number
  /**
   * The 12 bytes before the frame are in the same page and free for the driver: it writes the
   * frame's header there, and the device has one buffer to look at instead of two.
   */
  readonly headroom?: boolean
}

/** @param cookie what `sendInPlace` was given */
export type SentListener = (cookie: number, pair: number) => void

const DEFAULT_QUEUE_SIZE = 256
const DEFAULT_BACKLOG = 1024
const MAX_PAIRS = 32768
const FULL_FRAME_BYTES = 1514

export class NetDriver implements Disposable {
  readonly #nic: NetDevice
  readonly #options: NetDriverOptions
  readonly #dma: GuestDma
  readonly #delivery: FrameDelivery
  #sentListeners: readonly SentListener[] = []
  readonly #waiting = new Set<Waiting>()
  readonly #disposables: Disposable[] = []
  #pairs: readonly NetPair[] = []
  #acknowledged = 0n
  #state: 'new' | 'started' | 'broken' | 'closed' = 'new'
  #failure: Error | undefined

  private constructor(nic: NetDevice, options: NetDriverOptions) {
    this.#nic = nic
    this.#options = options
    this.#delivery = new FrameDelivery(options.backlog ?? DEFAULT_BACKLOG)
    this.#dma = dmaOf(nic, options)
  }

  /**
   * Touches neither the device nor memory before `start()`.
   * @throws TypeError without an IOMMU where the mapping needs one, or without a requester
   */
  static attach(nic: NetDevice, options: NetDriverOptions): NetDriver {
    return new NetDriver(nic, options)
  }

  /** Feature bits that were negotiated; 0 before `start()`. */
  get acknowledged(): bigint {
    return this.#acknowledged
  }

  /** How buffers are made reachable: an `IntelIommuDriver` unless another one was given. */
  get dma(): GuestDma {
    return this.#dma
  }

  /**
   * Negotiates, maps, fills the receiving ring, starts the device.
   * When the signal is aborted later on, the driver closes, whatever goes on then.
   * @throws InvalidState ERR_ALREADY_STARTED, ERR_CLOSED, ERR_UNSUPPORTED by device or IOMMU,
   *   ERR_EXHAUSTED without enough guest memory; the signal's reason when it is aborted already
   */
  start({ signal }: Abortable = {}): Promise<void> {
    return new Promise((resolve) => {
      signal?.throwIfAborted()
      this.#start()
      if (signal !== undefined) this.#disposables.push(this.#closeOn(signal))
      resolve()
    })
  }

  /**
   * Copies a frame into a buffer of the driver's own and offers it.
   * @param frame Ethernet, without the frame check sequence; 14 to 65553 bytes
   * @returns false when there is no room: `await ready()`
   * @throws RangeError for a length that no frame has, or that never fits in `sendBuffers`
   * @throws InvalidState ERR_NOT_STARTED, ERR_CLOSED; ERR_EXHAUSTED without a page for a table
   */
  send(frame: Uint8Array, options?: SendOptions): boolean {
    const pair = this.#pair(options?.pair)
    if (!pair.transmit.place(frame, 0, frame.length, options)) return false
    pair.sent += 1
    pair.publishSent()
    return true
  }

  /**
   * Copies `length` bytes of `u8` from `at` on, as `send`; best from guest memory, where a sink
   * (`onFrames`) finds them. The device hears of it with the next `publish`, `send` or `sendBatch`
   * of the pair, so that a burst costs one kick.
   */
  sendFrom(u8: Uint8Array, at: number, length: number, options?: SendOptions): boolean {
    const pair = this.#pair(options?.pair)
    if (!pair.transmit.place(u8, at, length, options)) return false
    pair.sent += 1
    return true
  }

  /**
   * Offers a frame where it lies in guest memory; nothing is copied. The bytes are the device's
   * until `onSent` brings the cookie back, or the driver is closed. Its pages are mapped whole: the
   * device can read what else is in them. It hears of the frame as with `sendFrom`.
   * @param gpa guest-physical address of the first byte of the frame, in memory as a whole
   * @throws RangeError for what is not in one region of memory, or has no room for `headroom`
   */
  sendInPlace(gpa: number, length: number, options?: InPlaceOptions): boolean {
    const pair = this.#pair(options?.pair)
    if (!pair.transmit.placeAt(gpa, length, options)) return false
    pair.sent += 1
    return true
  }

  /** Makes what was placed visible to the device, with one kick at most. */
  publish(pair = 0): void {
    this.#pair(pair).publishSent()
  }

  /** Called for each frame of `sendInPlace` once the device has let go of it. */
  onSent(listener: SentListener): Disposable {
    this.#sentListeners = [...this.#sentListeners, listener]
    return {
      [Symbol.dispose]: () => {
        this.#sentListeners = this.#sentListeners.filter((each) => each !== listener)
      },
    }
  }

  /** Offers frames with one kick at most. @returns how many had room, from the first on */
  sendBatch(frames: readonly Uint8Array[], options?: SendOptions): number {
    const pair = this.#pair(options?.pair)
    let placed = 0
    try {
      for (; placed < frames.length; placed++) {
        const frame = frames[placed]
        if (!pair.transmit.place(frame, 0, frame.length, options)) break
      }
    } finally {
      pair.sent += placed
      pair.publishSent()
    }
    return placed
  }

  /**
   * Resolves when there is room for a frame of `bytes`.
   * @throws as `send`; the signal's reason when it is aborted
   */
  ready(bytes = FULL_FRAME_BYTES, pair = 0, { signal }: Abortable = {}): Promise<void> {
    return this.#until(() => this.#pair(pair).transmit.hasRoom(bytes), signal)
  }

  /**
   * Resolves when every frame sent has completed, and lazy invalidations are done.
   * @throws the signal's reason when it is aborted: frames may be on their way then
   */
  async flush({ signal }: Abortable = {}): Promise<void> {
    await this.#until(() => this.#pairs.every((pair) => pair.sentAll()), signal)
    this.#dma.flush()
  }

  /**
   * Received frames, each a copy. Frames that came while nobody listened are among them, up to
   * `backlog`. The host's end of a tap cannot be made to wait: for a reader that is slower than
   * the device, `backlog` frames are kept, and the newest are lost (`stats().dropped`).
   * @param options.signal ends the iteration, without an error, when it is aborted
   * @throws while iterating: what broke the rings
   */
  frames(options: Abortable = {}): AsyncIterableIterator<Uint8Array> {
    const open = this.#state !== 'closed' && this.#state !== 'broken'
    return this.#delivery.stream(options.signal, open, this.#failure)
  }

  /**
   * Calls for each received frame. With `copy: false` the bytes are the device's again when the
   * listener returns.
   */
  onFrame(listener: FrameListener, options: { readonly copy?: boolean } = {}): Disposable {
    return this.#delivery.addListener(listener, options.copy ?? true)
  }

  /**
   * Calls for each received frame where it lies, and after each burst: the way that costs least.
   */
  onFrames(sink: FrameSink): Disposable {
    return this.#delivery.addSink(sink)
  }

  stats(): NetDriverStats {
    const sum = (count: (pair: NetPair) => number): number =>
      this.#pairs.reduce((total, pair) => total + count(pair), 0)
    return {
      sent: sum((pair) => pair.sent),
      completed: sum((pair) => pair.transmit.completed),
      received: this.#delivery.received,
      dropped: this.#delivery.dropped,
      malformed: sum((pair) => pair.receive.malformed),
      kicks: sum((pair) => pair.kicks),
      calls: sum((pair) => pair.calls),
    }
  }

  /** Stops the device, unmaps everything, gives all memory back. */
  close(): void {
    if (this.#state === 'closed') return
    const running = this.#state !== 'new'
    this.#state = 'closed'
    try {
      if (running) this.#stop()
    } finally {
      this.#release(this.#failure)
    }
  }

  [shown](depth: number, options: InspectOptions): string {
    const fields = {
      state: this.#state,
      mapping: this.#dma.mode,
      pairs: this.#pairs.length,
      held: this.#delivery.held,
      readers: this.#delivery.readers,
      stats: this.stats(),
      failure: this.#failure?.message,
    }
    return summary('NetDriver', fields, depth, options)
  }

  [Symbol.dispose](): void {
    this.close()
  }

  #start(): void {
    if (this.#state === 'closed') throw new InvalidState('ERR_CLOSED', 'this driver is closed')
    if (this.#state !== 'new') {
      throw new InvalidState('ERR_ALREADY_STARTED', 'this driver is started')
    }
    const { memory, queueSize = DEFAULT_QUEUE_SIZE, pairs = 1 } = this.#options
    if (!Number.isInteger(pairs) || pairs < 1 || pairs > MAX_PAIRS) {
      throw new RangeError(`a device has 1 to ${MAX_PAIRS} pairs of queues: ${pairs}`)
    }
    const acknowledged = negotiate(this.#nic.features, this.#dma.mode, this.#options)
    this.#disposables.push(memory.pin(this))
    const made: NetPair[] = []
    this.#pairs = made
    try {
      this.#dma.enable()
      this.#nic.setFeatures(acknowledged)
      this.#acknowledged = acknowledged
      const around = {
        memory,
        dma: this.#dma,
        pages: this.#options.pages ?? PageAllocator.of(memory),
      }
      for (let index = 0; index < pairs; index++) {
        made.push(
          new NetPair(this.#nic, around, {
            index,
            queueSize,
            sendBuffers: this.#options.sendBuffers ?? queueSize,
            eventIndex: hasFeature(acknowledged, 'VIRTIO_F_EVENT_IDX'),
            indirect: hasFeature(acknowledged, 'VIRTIO_F_INDIRECT_DESC'),
            mergeable: hasFeature(acknowledged, 'VIRTIO_NET_F_MRG_RXBUF'),
            delivery: this.#delivery,
            onSent: this.#sent,
            onProgress: this.#progress,
            onFailure: this.#fail,
          }),
        )
      }
      this.#state = 'started'
      this.#nic.start()
      for (const pair of made) pair.kickAll()
    } catch (error) {
      this.#stop()
      this.#state = 'new'
      throw error
    }
  }

  /** Every step is taken, also after one that failed: a guest may have written over its tables. */
  #stop(): void {
    everyStep([
      () => {
        this.#nic.stop()
      },
      ...this.#pairs.map((pair) => () => {
        pair.close()
      }),
      () => {
        this.#dma.disable()
      },
      ...this.#disposables.splice(0).map((held) => () => {
        held[Symbol.dispose]()
      }),
    ])
  }

  #pair(index = 0): NetPair {
    if (this.#state !== 'started') throw this.#notRunning()
    if (index in this.#pairs) return this.#pairs[index]
    throw new RangeError(`pairs are 0 to ${this.#pairs.length - 1}: ${index}`)
  }

  #notRunning(): Error {
    if (this.#failure !== undefined) return this.#failure
    if (this.#state === 'new')
      return new InvalidState('ERR_NOT_STARTED', 'start() the driver first')
    return new InvalidState('ERR_CLOSED', 'this driver is closed')
  }

  readonly #sent = (cookie: number, pair: number): void => {
    for (const listener of this.#sentListeners) {
      try {
        listener(cookie, pair)
      } catch (error) {
        rethrowLater(error)
      }
    }
  }

  readonly #progress = (): void => {
    for (const waiting of this.#waiting) {
      if (!waiting.done()) continue
      this.#waiting.delete(waiting)
      waiting.resolve()
    }
  }

  /** The device wrote what can't be, or memory ran out: nothing more can come of the rings. */
  readonly #fail = (error: Error): void => {
    if (this.#state !== 'started') return
    this.#state = 'broken'
    this.#failure = error
    this.#release(error)
  }

  #release(error: Error | undefined): void {
    const reason = error ?? new InvalidState('ERR_CLOSED', 'the driver was closed')
    for (const { reject } of this.#waiting) reject(reason)
    this.#waiting.clear()
    this.#delivery.end(error)
  }

  #closeOn(signal: AbortSignal): Disposable {
    const close = (): void => {
      this.close()
    }
    signal.addEventListener('abort', close, { once: true })
    return {
      [Symbol.dispose]: () => {
        signal.removeEventListener('abort', close)
      },
    }
  }

  async #until(done: () => boolean, signal?: AbortSignal): Promise<void> {
    signal?.throwIfAborted()
    let abort: (() => void) | undefined
    try {
      await new Promise<void>((resolve, reject) => {
        if (this.#state !== 'started') throw this.#notRunning()
        if (done()) {
          resolve()
          return
        }
        const waiting = { done, resolve, reject }
        abort = () => {
          this.#waiting.delete(waiting)
          reject(signal?.reason as Error)
        }
        this.#waiting.add(waiting)
        signal?.addEventListener('abort', abort, { once: true })
      })
    } finally {
      if (abort !== undefined) signal?.removeEventListener('abort', abort)
    }
  }
}

interface Waiting {
  readonly done: () => boolean
  readonly resolve: () => void
  readonly reject: (error: Error) => void
}

/** @throws the first error, after the last step */
function everyStep(steps: readonly (() => void)[]): void {
  const errors: unknown[] = []
  for (const step of steps) {
    try {
      step()
    } catch (error) {
      errors.push(error)
    }
  }
  if (errors.length > 0) throw errors[0]
}

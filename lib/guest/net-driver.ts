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
import { NetHeader, hasFeature } from '../virtio/net'
import type { Offload } from '../virtio/net'
import type { NetDevice } from '../virtio/net-device'
import type { GuestDma } from './dma'
import { FrameStream } from './frame-stream'
import { dmaOf, negotiate } from './net-options'
import type { NetDriverOptions } from './net-options'
import { NetPair } from './net-pair'
import { PageAllocator } from './page-allocator'

export type { Mapping } from './dma'
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

/** `header` is the same object at each call. */
export type FrameListener = (frame: Uint8Array, header: Readonly<NetHeader>) => void

export interface SendOptions extends Offload {
  /** Which pair of queues; default 0. */
  readonly pair?: number
}

export interface Abortable {
  readonly signal?: AbortSignal
}

interface Held {
  readonly frame: Uint8Array
  readonly header: Readonly<NetHeader>
}

const DEFAULT_QUEUE_SIZE = 256
const DEFAULT_BACKLOG = 1024
const MAX_PAIRS = 32768
const FULL_FRAME_BYTES = 1514

export class NetDriver implements Disposable {
  readonly #nic: NetDevice
  readonly #options: NetDriverOptions
  readonly #dma: GuestDma
  readonly #listeners = new Map<FrameListener, boolean>()
  readonly #streams = new Set<FrameStream>()
  readonly #held: Held[] = []
  readonly #backlog: number
  readonly #waiting = new Set<Waiting>()
  readonly #disposables: Disposable[] = []
  #pairs: readonly NetPair[] = []
  #acknowledged = 0n
  #state: 'new' | 'started' | 'broken' | 'closed' = 'new'
  #failure: Error | undefined
  #received = 0
  #dropped = 0

  private constructor(nic: NetDevice, options: NetDriverOptions) {
    this.#nic = nic
    this.#options = options
    this.#backlog = options.backlog ?? DEFAULT_BACKLOG
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
   * @param options.signal closes the driver when it is aborted, whatever goes on then
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
    if (!pair.transmit.place(frame, options)) return false
    pair.sent += 1
    pair.publishSent()
    return true
  }

  /** Offers frames with one kick at most. @returns how many had room, from the first on */
  sendBatch(frames: readonly Uint8Array[], options?: SendOptions): number {
    const pair = this.#pair(options?.pair)
    let placed = 0
    try {
      while (placed < frames.length && pair.transmit.place(frames[placed], options)) placed++
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
    const stream: FrameStream = new FrameStream({
      limit: this.#backlog,
      ...options,
      onEnd: () => this.#streams.delete(stream),
    })
    for (const { frame } of this.#held.splice(0)) stream.push(frame)
    if (this.#state === 'closed' || this.#state === 'broken') stream.end(this.#failure)
    else if (options.signal?.aborted === true) stream.end()
    else this.#streams.add(stream)
    return stream
  }

  /**
   * Calls for each received frame. With `copy: false` the bytes are the device's again when the
   * listener returns.
   */
  onFrame(listener: FrameListener, options: { readonly copy?: boolean } = {}): Disposable {
    this.#listeners.set(listener, options.copy ?? true)
    if (this.#held.length > 0) {
      queueMicrotask(() => {
        for (const { frame, header } of this.#held.splice(0)) call(listener, frame, header)
      })
    }
    return { [Symbol.dispose]: () => void this.#listeners.delete(listener) }
  }

  stats(): NetDriverStats {
    const sum = (count: (pair: NetPair) => number): number =>
      this.#pairs.reduce((total, pair) => total + count(pair), 0)
    return {
      sent: sum((pair) => pair.sent),
      completed: sum((pair) => pair.transmit.completed),
      received: this.#received,
      dropped: this.#dropped,
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
    if (running) this.#stop()
    this.#release(this.#failure)
  }

  [shown](depth: number, options: InspectOptions): string {
    const fields = {
      state: this.#state,
      mapping: this.#dma.mode,
      pairs: this.#pairs.length,
      held: this.#held.length,
      readers: this.#listeners.size + this.#streams.size,
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
            onFrame: this.#deliver,
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

  #stop(): void {
    try {
      this.#nic.stop()
    } finally {
      for (const pair of this.#pairs) pair.close()
      this.#dma.disable()
      for (const disposable of this.#disposables.splice(0)) disposable[Symbol.dispose]()
    }
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

  readonly #deliver = (u8: Uint8Array, at: number, length: number, header: NetHeader): void => {
    this.#received += 1
    if (this.#listeners.size === 0 && this.#streams.size === 0) {
      this.#hold(u8.slice(at, at + length), header)
      return
    }
    let copy: Uint8Array | undefined
    for (const [listener, copies] of this.#listeners) {
      if (copies) copy ??= u8.slice(at, at + length)
      call(listener, copies && copy !== undefined ? copy : u8.subarray(at, at + length), header)
    }
    for (const stream of this.#streams) {
      copy ??= u8.slice(at, at + length)
      if (!stream.push(copy)) this.#dropped += 1
    }
  }

  #hold(frame: Uint8Array, header: NetHeader): void {
    if (this.#held.length < this.#backlog)
      this.#held.push({ frame, header: Object.assign(new NetHeader(), header) })
    else this.#dropped += 1
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
    for (const stream of this.#streams) stream.end(error)
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

/** A listener that throws must not stop the ring: the error surfaces in a turn of its own. */
function call(listener: FrameListener, frame: Uint8Array, header: Readonly<NetHeader>): void {
  try {
    listener(frame, header)
  } catch (error) {
    queueMicrotask(() => {
      throw error
    })
  }
}

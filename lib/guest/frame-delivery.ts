/**
 * Who gets the frames that a driver receives: sinks, which see them where they lie, listeners and
 * streams, which get copies. Frames that come while there is nobody wait for the first one.
 */
import { NetHeader } from '../virtio/net'
import { FrameStream } from './frame-stream'

/** `header` is the same object at each call. */
export type FrameListener = (frame: Uint8Array, header: Readonly<NetHeader>, pair: number) => void

/** Takes frames where they lie: nothing is copied, and no object is made for a frame. */
export interface FrameSink {
  /**
   * @param u8 a region of guest memory, or the driver's own bytes where a frame spans buffers
   * @param at byte of `u8` at which the frame begins; it is the device's again after the call
   * @param header the same object at each call
   * @param pair the pair of queues that received it
   */
  frame(u8: Uint8Array, at: number, length: number, header: Readonly<NetHeader>, pair: number): void
  /** After the frames of a pair that came together: the time to send what they led to. */
  burst?(pair: number): void
}

interface Held {
  readonly frame: Uint8Array
  readonly header: Readonly<NetHeader>
  readonly pair: number
}

export class FrameDelivery {
  received = 0
  dropped = 0
  readonly #backlog: number
  readonly #streams = new Set<FrameStream>()
  readonly #held: Held[] = []
  #sinks: readonly FrameSink[] = []
  /** The one sink, where nobody else takes frames. */
  #only: FrameSink | undefined

  constructor(backlog: number) {
    this.#backlog = backlog
  }

  /** Frames that wait for somebody. */
  get held(): number {
    return this.#held.length
  }

  /** Sinks, listeners and streams. */
  get readers(): number {
    return this.#sinks.length + this.#streams.size
  }

  addSink(sink: FrameSink): Disposable {
    this.#sinks = [...this.#sinks, sink]
    this.#choose()
    if (this.#held.length > 0)
      queueMicrotask(() => {
        this.#handOver(sink)
      })
    return {
      [Symbol.dispose]: () => {
        this.#sinks = this.#sinks.filter((each) => each !== sink)
        this.#choose()
      },
    }
  }

  addListener(listener: FrameListener, copy: boolean): Disposable {
    return this.addSink({
      frame: (u8, at, length, header, pair) => {
        const frame = copy ? u8.slice(at, at + length) : u8.subarray(at, at + length)
        listener(frame, header, pair)
      },
    })
  }

  /** @param open whether frames can still come; else the stream ends after those that are held */
  stream(signal: AbortSignal | undefined, open: boolean, failure: Error | undefined): FrameStream {
    const stream: FrameStream = new FrameStream({
      limit: this.#backlog,
      ...(signal === undefined ? {} : { signal }),
      onEnd: () => {
        this.#streams.delete(stream)
        this.#choose()
      },
    })
    for (const { frame } of this.#held.splice(0)) stream.push(frame)
    if (!open) stream.end(failure)
    else if (signal?.aborted === true) stream.end()
    else this.#streams.add(stream)
    this.#choose()
    return stream
  }

  deliver(
    u8: Uint8Array,
    at: number,
    length: number,
    header: Readonly<NetHeader>,
    pair: number,
  ): void {
    this.received += 1
    const only = this.#only
    if (only === undefined) {
      this.#deliverToAll(u8, at, length, header, pair)
      return
    }
    this.#hand(only, u8, at, length, header, pair)
  }

  endOfBurst(pair: number): void {
    for (const sink of this.#sinks) this.#tell(sink, pair)
  }

  /** Ends every stream. */
  end(error: Error | undefined): void {
    for (const stream of this.#streams) stream.end(error)
  }

  #choose(): void {
    this.#only = this.#sinks.length === 1 && this.#streams.size === 0 ? this.#sinks[0] : undefined
  }

  #deliverToAll(
    u8: Uint8Array,
    at: number,
    length: number,
    header: Readonly<NetHeader>,
    pair: number,
  ): void {
    if (this.#sinks.length === 0 && this.#streams.size === 0) {
      this.#hold(u8.slice(at, at + length), header, pair)
      return
    }
    for (const sink of this.#sinks) this.#hand(sink, u8, at, length, header, pair)
    for (const stream of this.#streams) {
      if (!stream.push(u8.slice(at, at + length))) this.dropped += 1
    }
  }

  #hand(
    sink: FrameSink,
    u8: Uint8Array,
    at: number,
    length: number,
    header: Readonly<NetHeader>,
    pair: number,
  ): void {
    try {
      sink.frame(u8, at, length, header, pair)
    } catch (error) {
      rethrowLater(error)
    }
  }

  #hold(frame: Uint8Array, header: Readonly<NetHeader>, pair: number): void {
    if (this.#held.length < this.#backlog)
      this.#held.push({ frame, header: Object.assign(new NetHeader(), header), pair })
    else this.dropped += 1
  }

  #handOver(sink: FrameSink): void {
    const pairs = new Set<number>()
    for (const { frame, header, pair } of this.#held.splice(0)) {
      pairs.add(pair)
      this.#hand(sink, frame, 0, frame.length, header, pair)
    }
    for (const pair of pairs) this.#tell(sink, pair)
  }

  #tell(sink: FrameSink, pair: number): void {
    try {
      sink.burst?.(pair)
    } catch (error) {
      rethrowLater(error)
    }
  }
}

/** A listener's mistake must not stop the ring: it surfaces in a turn of its own. */
export function rethrowLater(error: unknown): void {
  queueMicrotask(() => {
    throw error
  })
}

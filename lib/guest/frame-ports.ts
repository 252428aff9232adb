/**
 * A driver's frames as streams, for pipelines: Node's own and the Web's, one frame a chunk.
 *
 * Writing waits for room in the ring, so a fast source is slowed down. Reading cannot slow the
 * host down: what a slow reader leaves lies in the driver's backlog, and beyond that is lost
 * (`NetDriver.frames`).
 */
import { Duplex } from 'node:stream'
import { ReadableStream, WritableStream } from 'node:stream/web'
import type { Abortable, NetDriver } from './net-driver'

export interface FramePortOptions {
  /** Ends the reading side, and makes the writing side fail with its reason. */
  readonly signal?: AbortSignal
  /** Which pair of queues sends; default 0. */
  readonly pair?: number
}

/** A pair in the Web's terms, as `pipeThrough` takes it. */
export interface WebFramePort {
  readonly readable: ReadableStream<Uint8Array>
  readonly writable: WritableStream<Uint8Array>
}

/**
 * Received frames out, frames to send in. Ending it waits until all frames are sent; destroying it
 * stops the reading. Neither closes the driver.
 */
export function frameStream(driver: NetDriver, options: FramePortOptions = {}): Duplex {
  return new FramePort(driver, options)
}

/** The same as Web streams. Cancelling the readable one stops the reading. */
export function webFrameStreams(driver: NetDriver, options: FramePortOptions = {}): WebFramePort {
  const abortable = abortableOf(options)
  const frames = driver.frames(abortable)
  const readable = new ReadableStream<Uint8Array>(
    {
      pull: async (controller) => {
        const next = await frames.next()
        if (next.done === true) controller.close()
        else controller.enqueue(next.value)
      },
      cancel: async () => {
        await frames.return?.()
      },
    },
    // The backlog is the driver's: nothing is to lie in two queues.
    { highWaterMark: 0 },
  )
  const writable = new WritableStream<Uint8Array>({
    write: (frame) => sendAll(driver, [frame], options),
    close: () => driver.flush(abortable),
  })
  return { readable, writable }
}

type Done = (error?: Error | null) => void

class FramePort extends Duplex {
  readonly #driver: NetDriver
  readonly #options: FramePortOptions
  readonly #frames: AsyncIterableIterator<Uint8Array>

  constructor(driver: NetDriver, options: FramePortOptions) {
    super({ objectMode: true })
    this.#driver = driver
    this.#options = options
    this.#frames = driver.frames(abortableOf(options))
  }

  override _read(): void {
    const arrived = ({ value, done }: IteratorResult<Uint8Array, unknown>): void => {
      this.push(done === true ? null : value)
    }
    this.#frames.next().then(arrived, (error: unknown) => this.destroy(error as Error))
  }

  override _write(frame: Uint8Array, _encoding: string, done: Done): void {
    settled(sendAll(this.#driver, [frame], this.#options), done)
  }

  override _writev(chunks: readonly { readonly chunk: Uint8Array }[], done: Done): void {
    const frames = chunks.map(({ chunk }) => chunk)
    settled(sendAll(this.#driver, frames, this.#options), done)
  }

  override _final(done: Done): void {
    settled(this.#driver.flush(abortableOf(this.#options)), done)
  }

  override _destroy(error: Error | null, done: (error: Error | null) => void): void {
    void this.#frames.return?.()
    done(error)
  }
}

/** Offers frames as room comes. */
async function sendAll(
  driver: NetDriver,
  frames: readonly Uint8Array[],
  options: FramePortOptions,
): Promise<void> {
  const { signal, pair = 0 } = options
  let rest = frames
  for (;;) {
    signal?.throwIfAborted()
    rest = rest.slice(driver.sendBatch(rest, { pair }))
    if (rest.length === 0) return
    await driver.ready(rest[0].byteLength, pair, abortableOf(options))
  }
}

function abortableOf({ signal }: FramePortOptions): Abortable {
  return signal === undefined ? {} : { signal }
}

function settled(work: Promise<void>, done: Done): void {
  work.then(() => {
    done()
  }, done)
}

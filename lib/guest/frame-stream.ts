/**
 * Frames for `for await`: a bounded queue between the device's turn and the reader's.
 */

export interface FrameStreamOptions {
  /** Frames held for a reader that is busy; more are dropped, and counted. */
  readonly limit: number
  /** Ends the iteration. */
  readonly signal?: AbortSignal
  readonly onEnd: () => void
}

export class FrameStream implements AsyncIterableIterator<Uint8Array, undefined> {
  readonly #options: FrameStreamOptions
  readonly #frames: Uint8Array[] = []
  readonly #waiting: Waiting[] = []
  #error: Error | undefined
  #ended = false
  readonly #abort = (): void => {
    this.end()
  }

  constructor(options: FrameStreamOptions) {
    this.#options = options
    options.signal?.addEventListener('abort', this.#abort, { once: true })
  }

  /** @returns false when the frame was dropped */
  push(frame: Uint8Array): boolean {
    const waiting = this.#waiting.shift()
    if (waiting !== undefined) {
      waiting.resolve({ value: frame, done: false })
      return true
    }
    if (this.#ended || this.#frames.length >= this.#options.limit) return false
    this.#frames.push(frame)
    return true
  }

  /** What is held is still read; an error comes after it. */
  end(error?: Error): void {
    if (this.#ended) return
    this.#ended = true
    this.#error = error
    this.#options.signal?.removeEventListener('abort', this.#abort)
    this.#options.onEnd()
    for (const waiting of this.#waiting.splice(0)) {
      if (error === undefined) waiting.resolve({ value: undefined, done: true })
      else waiting.reject(error)
    }
  }

  next(): Promise<IteratorResult<Uint8Array, undefined>> {
    const frame = this.#frames.shift()
    if (frame !== undefined) return Promise.resolve({ value: frame, done: false })
    if (!this.#ended) {
      return new Promise((resolve, reject) => this.#waiting.push({ resolve, reject }))
    }
    const error = this.#error
    this.#error = undefined
    if (error !== undefined) return Promise.reject(error)
    return Promise.resolve({ value: undefined, done: true })
  }

  return(): Promise<IteratorResult<Uint8Array, undefined>> {
    this.#frames.length = 0
    this.end()
    return Promise.resolve({ value: undefined, done: true })
  }

  [Symbol.asyncIterator](): this {
    return this
  }
}

interface Waiting {
  readonly resolve: (result: IteratorResult<Uint8Array, undefined>) => void
  readonly reject: (error: Error) => void
}

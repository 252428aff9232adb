/**
 * One device IOTLB driven from two threads: a channel that takes turns, and tells what it wrote.
 *
 * Each thread has a miss handler of its own over a `SharedTable`, with a shadow of its own. A turn
 * is: enter, apply what the other side wrote to the own shadow, do the work, tell of it, leave.
 *
 * How the rules hold:
 * - R1, currency. Walk and UPDATE are in one turn of one side. The guest changes its tables before
 *   it asks for the invalidation, and that asks for a turn. A turn of the other side before it has
 *   written its UPDATE by then, and the INVALIDATE takes that back; a turn after it walks tables
 *   that have changed, because entering orders memory (`Atomics`, sequentially consistent).
 * - R2, completion. The INVALIDATE returns within the turn, and `invalidatePages` after it. What is
 *   filtered is filtered by a shadow that knows all that the other side has written.
 * - The device never holds what a shadow does not. An UPDATE is told before it is written, an
 *   INVALIDATE after; both shadows see one sequence. Where a write failed, where the log ran over,
 *   or where the other thread died in a turn, nobody knows: all is taken back first (R3).
 * - A turn ends between a walk and its UPDATE never, between two batches of misses always when the
 *   other side waits (`drain`).
 *
 * It knows no threads: which one calls `enter` on which side is its user's business.
 */
import { accessBits, pageOf } from '../address'
import type { Access, AccessBits, Hva, Iova, Range } from '../address'
import type { IotlbChannel, Miss } from './channel'
import { TOLD } from './message-log'
import type { MessageLog } from './message-log'
import type { MissHandler } from './miss-handler'
import type { Turnstile } from './turnstile'

export interface SharedTableOptions {
  readonly channel: IotlbChannel
  readonly turnstile: Turnstile
  readonly log: MessageLog
  /** Whether this side answers misses from the beginning; the other one may `takeOver()`. */
  readonly answers: boolean
  /** Whether misses are to be answered now; those read while they are not are dropped. */
  readonly serving?: () => boolean
  /** After each turn in which this side answered misses, still in the turn. */
  readonly answered?: () => void
}

const NONE: readonly Miss[] = []

export class SharedTable implements IotlbChannel {
  readonly limit: number
  readonly #options: SharedTableOptions
  #handler: MissHandler | undefined
  #listener: (() => void) | undefined
  #watch: Disposable | undefined
  #answers: boolean
  /** What the device holds is not known. */
  #stale = false
  #wasAlone = false
  /** The last drain read questions, so that they are not answered yet. */
  #reading = false
  /** Pages that the other side wants looked at again: first, last, first, last … */
  readonly #retries: number[] = []

  constructor(options: SharedTableOptions) {
    this.#options = options
    this.#answers = options.answers
    this.limit = options.channel.limit
  }

  /** The handler that was made with this channel. To be called once, before the first turn. */
  attach(handler: MissHandler): void {
    this.#handler = handler
  }

  /**
   * Waits for the turn, and brings the shadow up to date. On a throw the turn is not taken.
   * @throws SystemError when the device refuses to have its doubtful table emptied
   */
  enter(): void {
    const { turnstile } = this.#options
    turnstile.enter()
    if (turnstile.depth > 1) return
    try {
      this.#catchUp()
      this.#settle()
    } catch (error) {
      turnstile.leave()
      throw error
    }
  }

  leave(): void {
    this.#options.turnstile.leave()
  }

  /** @throws what `action` throws, and as `enter` */
  turn<T>(action: () => T): T {
    this.enter()
    try {
      return action()
    } finally {
      this.leave()
    }
  }

  /** As `turn`, for one who only looks: nothing is written, whatever is in doubt. */
  look<T>(action: () => T): T {
    const { turnstile } = this.#options
    turnstile.enter()
    try {
      if (turnstile.depth === 1) this.#catchUp()
      return action()
    } finally {
      turnstile.leave()
    }
  }

  /** Adds to what the other side will hear, in a turn. */
  tell(what: number, firstPage = 0, lastPage = 0): void {
    this.#options.log.add(what, firstPage, lastPage)
  }

  /** The device's table was emptied by another way, in a turn: nothing is in doubt any more. */
  emptied(): void {
    this.#stale = false
    this.tell(TOLD.reset)
  }

  /** This side answers from now on. The other thread must have ended. */
  takeOver(): void {
    this.#options.turnstile.open()
    this.#answers = true
    this.#startWatching()
  }

  /** Applies what the other side told to the own shadow, in a turn. */
  #catchUp(): void {
    const { turnstile, log } = this.#options
    if (!log.read(this.#apply)) {
      this.#stale = true
      this.#retries.push(0, Infinity)
    }
    if (turnstile.alone && !this.#wasAlone) {
      this.#wasAlone = true
      this.#stale = true
    }
  }

  /** Takes everything back where nobody knows what it is, then does what the other side asked. */
  #settle(): void {
    const handler = this.#handler
    if (handler === undefined) return
    if (this.#stale) {
      handler.flush()
      this.#stale = false
    }
    if (this.#retries.length === 0) return
    const retries = this.#retries.splice(0)
    for (let i = 0; i < retries.length; i += 2) handler.retry(retries[i], retries[i + 1])
  }

  readonly #apply = (
    what: number,
    firstPage: number,
    lastPage: number,
    hvaPage: number,
    access: number,
  ): void => {
    const handler = this.#handler
    if (handler === undefined) return
    switch (what) {
      case TOLD.update:
        // No turn of ours: it has woken nothing that we have read since.
        handler.shadow.insert(firstPage, lastPage, hvaPage, access as AccessBits, -1)
        break
      case TOLD.invalidate:
        handler.shadow.remove(firstPage, lastPage)
        break
      case TOLD.reset:
        handler.reset()
        this.#stale = false
        break
      case TOLD.forget:
        handler.forgetMisses()
        break
      case TOLD.retry:
        this.#retries.push(firstPage, lastPage)
        break
      default:
        this.#stale = true
    }
  }

  /**
   * Between two batches: the other side may come in here, and nowhere else. A batch is read by
   * several drains; were the other side let in between them, it could stop the device, and the
   * questions already read would be answered all the same.
   */
  drain(): readonly Miss[] {
    const misses = this.#drain()
    this.#reading = misses.length > 0
    return misses
  }

  #drain(): readonly Miss[] {
    const { turnstile, channel, serving } = this.#options
    if (!this.#reading && turnstile.wanted && turnstile.depth === 1) {
      turnstile.leave()
      turnstile.enter()
      this.#catchUp()
      this.#settle()
    }
    if (serving === undefined || serving()) return channel.drain()
    while (channel.drain().length > 0);
    return NONE
  }

  update(range: Range<Iova>, hva: Hva, access: Access): void {
    this.updatePages(pageOf(range.first), pageOf(range.last), pageOf(hva), accessBits(access))
  }

  invalidate(range: Range<Iova>): void {
    this.invalidatePages(pageOf(range.first), pageOf(range.last))
  }

  updatePages(firstPage: number, lastPage: number, hvaPage: number, access: AccessBits): void {
    const { channel, log } = this.#options
    log.add(TOLD.update, firstPage, lastPage, hvaPage, access)
    try {
      channel.updatePages(firstPage, lastPage, hvaPage, access)
    } catch (error) {
      log.add(TOLD.doubt)
      throw error
    }
  }

  invalidatePages(firstPage: number, lastPage: number): void {
    const { channel, log } = this.#options
    try {
      channel.invalidatePages(firstPage, lastPage)
    } catch (error) {
      log.add(TOLD.doubt)
      throw error
    }
    log.add(TOLD.invalidate, firstPage, lastPage)
  }

  /** One listener: the handler. It is called in a turn. */
  onReadable(listener: () => void): Disposable {
    this.#listener = listener
    if (this.#answers) this.#startWatching()
    return {
      [Symbol.dispose]: () => {
        this.#listener = undefined
        this.#watch?.[Symbol.dispose]()
        this.#watch = undefined
      },
    }
  }

  #startWatching(): void {
    if (this.#listener === undefined || this.#watch !== undefined) return
    this.#watch = this.#options.channel.onReadable(() => {
      this.enter()
      try {
        this.#listener?.()
      } finally {
        this.#options.answered?.()
        this.leave()
      }
    })
  }
}

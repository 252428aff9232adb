/**
 * What becomes of a miss that cannot be answered.
 *
 * The device waits for such a miss, and a real one would not ask again, so the choice is the
 * device layer's. This file only remembers and reports: the list is bounded, because a guest can
 * make as many misses as it likes. What is pushed out of it is counted, and not lost: the kernel
 * keeps its own note, and any later UPDATE of the page wakes the queue.
 */
import { accessOf, iovaOfPage } from '../address'
import type { Access, AccessBits, Iova } from '../address'

/**
 * stall: it waits, and `MissHandler.retry()` may answer it. stop: `onStop` is called, once until
 * `MissHandler.reset()`. drop: `onDrop` is called, to discard the descriptor.
 */
export type FaultPolicy = 'stall' | 'stop' | 'drop'

export interface FaultOptions {
  /** `'stall'` unless given. */
  readonly fault?: FaultPolicy | undefined
  /** Hears of every miss that cannot be answered, whatever the policy. */
  readonly onFault?: (miss: UnansweredMiss) => void
  /** Hears of a miss that the tables refuse too, but for which nobody waits any more. */
  readonly onObsolete?: () => void
  readonly onStop?: (miss: UnansweredMiss) => void
  readonly onDrop?: (miss: UnansweredMiss) => void
}

/**
 * translation: the tables refuse. memory: they grant what is not guest memory. refused: the device
 * took no UPDATE. unsettled: an invalidation came in at each try.
 */
export type MissCause = 'translation' | 'memory' | 'refused' | 'unsettled'

export interface UnansweredMiss {
  /** The first byte of the page. */
  readonly iova: Iova
  readonly wanted: Access
  readonly cause: MissCause
  /** The reason code of the tables (VT-d 4.1 7.1.3) where they refuse, 0 otherwise. */
  readonly code: number
}

interface Waiting {
  readonly page: number
  readonly wanted: AccessBits
  miss: UnansweredMiss
}

const CAPACITY = 256

export class Faults {
  readonly #policy: FaultPolicy
  readonly #waiting: Waiting[] = []
  #unreported: UnansweredMiss[] = []
  #stopped = false
  #forgotten = 0

  /** @throws TypeError for a policy without its callback */
  constructor(private readonly options: FaultOptions) {
    this.#policy = options.fault ?? 'stall'
    if (this.#policy === 'stop' && !options.onStop) throw new TypeError(`'stop' needs onStop`)
    if (this.#policy === 'drop' && !options.onDrop) throw new TypeError(`'drop' needs onDrop`)
  }

  /** How many misses wait. */
  get size(): number {
    return this.#waiting.length
  }

  get forgotten(): number {
    return this.#forgotten
  }

  page(index: number): number {
    return this.#waiting[index].page
  }

  wanted(index: number): AccessBits {
    return this.#waiting[index].wanted
  }

  has(page: number): boolean {
    return this.#waiting.some((one) => one.page === page)
  }

  /** A miss that now waits, each page and access once; `report()` tells of it. */
  add(page: number, wanted: AccessBits, cause: MissCause, code: number): void {
    const miss = unanswered(page, wanted, cause, code)
    this.#unreported.push(miss)
    const known = this.#waiting.find((one) => one.page === page && one.wanted === wanted)
    if (known !== undefined) {
      known.miss = miss
      return
    }
    if (this.#waiting.length === CAPACITY) {
      this.#waiting.shift()
      this.#forgotten++
    }
    this.#waiting.push({ page, wanted, miss })
  }

  /** Takes out those with a page in the range: an UPDATE wakes them, whatever they wanted. */
  woken(firstPage: number, lastPage: number): void {
    for (let i = this.#waiting.length - 1; i >= 0; i--) {
      const { page } = this.#waiting[i]
      if (page >= firstPage && page <= lastPage) this.#waiting.splice(i, 1)
    }
  }

  /**
   * Calls back for what was added since the last time.
   * @param failed takes what a callback threw
   */
  report(failed: (error: unknown) => void): void {
    const misses = this.#unreported
    if (misses.length === 0) return
    this.#unreported = []
    for (const miss of misses) {
      try {
        this.#tell(miss)
      } catch (error) {
        failed(error)
      }
    }
  }

  /** One that nobody waits for: only `onFault` hears of it. */
  mention(page: number, wanted: AccessBits, cause: MissCause, code: number): void {
    this.options.onFault?.(unanswered(page, wanted, cause, code))
  }

  /** Lets `onStop` be called again. */
  rearm(): void {
    this.#stopped = false
  }

  clear(): void {
    this.#waiting.length = 0
  }

  /** The oldest first. */
  snapshot(): readonly UnansweredMiss[] {
    return this.#waiting.map(({ miss }) => miss)
  }

  #tell(miss: UnansweredMiss): void {
    const { onFault, onStop, onDrop } = this.options
    onFault?.(miss)
    if (this.#policy === 'drop') onDrop?.(miss)
    if (this.#policy !== 'stop' || this.#stopped) return
    this.#stopped = true
    onStop?.(miss)
  }
}

function unanswered(
  page: number,
  wanted: AccessBits,
  cause: MissCause,
  code: number,
): UnansweredMiss {
  return { iova: iovaOfPage(page), wanted: accessOf(wanted), cause, code }
}

/**
 * What two threads tell each other of the device table that both write: a ring in shared memory.
 *
 * Whoever has the turn (`turnstile.ts`) first reads what the other wrote since, then does its own
 * and adds that. So both see one sequence of messages, and their shadows are the same. The ring is
 * bounded: who comes so late that entries were overwritten is told so, and must take everything
 * back, because nobody knows what the device holds then. Not for more than two sides, and not
 * without the turn.
 */

/** What is told, and what its numbers mean. */
export const TOLD = {
  /** An UPDATE is about to be written: pages, host page, access. */
  update: 1,
  /** An INVALIDATE took effect: pages. */
  invalidate: 2,
  /** A write was refused: what the device holds is in doubt. */
  doubt: 3,
  /** The device's table was emptied by another way. */
  reset: 4,
  /** The device forgot its misses. */
  forget: 5,
  /** The tables changed under these pages: misses that wait there may be answered. */
  retry: 6,
} as const

/** Words of a record: what, first and last page, host page, access. */
const RECORD = 5

export type Told = (
  what: number,
  firstPage: number,
  lastPage: number,
  hvaPage: number,
  access: number,
) => void

export class MessageLog {
  /** The number of records ever added, then the ring. */
  readonly #words: Float64Array
  readonly #capacity: number
  /** The number of records that this side has seen. */
  readonly #seen = new Float64Array(1)

  /** @param words shared by both sides, zero at first: `MessageLog.words(records)` of them */
  constructor(words: Float64Array) {
    this.#words = words
    this.#capacity = Math.floor((words.length - 1) / RECORD)
    if (this.#capacity < 1) throw new RangeError('a log has room for one record at least')
  }

  static words(records: number): number {
    return 1 + records * RECORD
  }

  /** Adds a record of one's own, after `read()` in the same turn. */
  add(what: number, firstPage = 0, lastPage = 0, hvaPage = 0, access = 0): void {
    const words = this.#words
    const at = 1 + (words[0] % this.#capacity) * RECORD
    words[at] = what
    words[at + 1] = firstPage
    words[at + 2] = lastPage
    words[at + 3] = hvaPage
    words[at + 4] = access
    words[0]++
    this.#seen[0] = words[0]
  }

  /** Tells what the other side added since. @returns false where some of it is lost */
  read(tell: Told): boolean {
    const words = this.#words
    const end = words[0]
    const begin = this.#seen[0]
    this.#seen[0] = end
    if (end - begin > this.#capacity) return false
    for (let record = begin; record < end; record++) {
      const at = 1 + (record % this.#capacity) * RECORD
      tell(words[at], words[at + 1], words[at + 2], words[at + 3], words[at + 4])
    }
    return true
  }
}

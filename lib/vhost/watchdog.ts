/**
 * Whether a ring that owes work moves, seen from outside and seldom.
 *
 * The error eventfd tells of too little permission and nothing else. A lost answer, a lost kick or
 * a chain that the device took and forgot are silent, and only time shows them. What is compared
 * is the used index, once a period, so a ring that works costs a few loads. Why a ring stands
 * still is for `stall.ts`.
 */

/** What a watchdog knows of time, so that a test can have its own. */
export interface Clock {
  /** Milliseconds since any fixed point, with their fraction. */
  now(): number
  /** Calls every so many milliseconds, and keeps no process alive, until it is disposed. */
  every(milliseconds: number, listener: () => void): Disposable
}

export const systemClock: Clock = {
  now: () => performance.now(),
  every: (milliseconds, listener) => {
    const timer = setInterval(listener, milliseconds).unref()
    return {
      [Symbol.dispose]: () => {
        clearInterval(timer)
      },
    }
  },
}

/** A ring that never moves again is examined at every so many looks. */
const SELDOM = 64

/** One ring's memory of how it stood. */
export class Standstill {
  /** How often it ticked where it stands although all seemed in place, and what was last told. */
  baffled = 0
  told: string | undefined
  #used = -2
  #looks = 0
  /** Whether it owed work at the last look, from where it stands: slow alone is no stall. */
  #owed = false
  /**
   * How many misses had been asked at the last look, and when the ring was last cleared of doubt.
   */
  #seen = 0
  #asked = 0

  /**
   * To be called once a period.
   * @param used the used index now, -1 where it can't be read
   * @param offers whether the guest has offered what is not completed
   * @param asked misses of the device so far, which a receiving ring has a right to be silent after
   * @param urgent whether it owes work for certain: it sends, or a miss of it waits
   * @returns whether it is time to examine the ring: never at the first look that finds it owing
   */
  look(used: number, offers: boolean, asked: number, urgent: boolean): boolean {
    const moved = this.moved(used)
    if (moved) this.#asked = this.#seen
    this.#seen = asked
    const owed = this.#owed
    this.#owed = offers && (urgent || asked !== this.#asked)
    if (!owed || !this.#owed) return false
    this.#looks++
    const due = (this.#looks & (this.#looks - 1)) === 0 || this.#looks % SELDOM === 0
    if (due) this.#asked = asked
    return due
  }

  /** Forgets what was counted where the ring is not where it was. */
  moved(used: number): boolean {
    if (used === this.#used) return false
    this.#used = used
    this.#looks = 0
    this.#owed = false
    this.baffled = 0
    this.told = undefined
    return true
  }
}

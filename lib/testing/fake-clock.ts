/**
 * A clock that a test moves by hand, for whatever is given its clock.
 *
 * Time stands still until `advance`, which calls the listeners that are due, in order.
 */
interface Timer {
  due: number
  readonly period: number
  readonly listener: () => void
}

export class FakeClock {
  #now = 0
  readonly #timers = new Set<Timer>()

  /** How many listeners are waiting. */
  get timers(): number {
    return this.#timers.size
  }

  /** Milliseconds since the clock was made. */
  now(): number {
    return this.#now
  }

  /** @throws RangeError for a period that is not above 0 */
  every(milliseconds: number, listener: () => void): Disposable {
    if (!(milliseconds > 0)) throw new RangeError(`not a period: ${milliseconds} ms`)
    const timer = { due: this.#now + milliseconds, period: milliseconds, listener }
    this.#timers.add(timer)
    return { [Symbol.dispose]: () => void this.#timers.delete(timer) }
  }

  /** @throws RangeError for time that goes back */
  advance(milliseconds: number): void {
    if (!(milliseconds >= 0)) throw new RangeError(`time does not go back: ${milliseconds} ms`)
    const end = this.#now + milliseconds
    for (;;) {
      const next = this.#next(end)
      if (next === undefined) break
      this.#now = next.due
      next.due += next.period
      next.listener()
    }
    this.#now = end
  }

  #next(end: number): Timer | undefined {
    let next: Timer | undefined
    for (const timer of this.#timers) {
      if (timer.due <= end && (next === undefined || timer.due < next.due)) next = timer
    }
    return next
  }
}

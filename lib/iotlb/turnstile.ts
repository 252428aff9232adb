/**
 * A lock for two threads that both write to one device IOTLB: who asked first goes first.
 *
 * It exists because an UPDATE made of an old table must not follow the INVALIDATE that ended it
 * (R1): between a walk and its UPDATE nobody else may write (`shared-table.ts`). Each side takes a
 * ticket and waits until it is served, so that a side that comes back at once cannot shut out the
 * other one.
 *
 * A thread that is terminated leaves nothing behind it in order: it dies with its ticket. So who
 * waits for long asks whether the other thread is there at all; if it is not, there is nobody left
 * to keep out, and the lock is open for good (`alone`).
 */

const NEXT = 0
const SERVED = 1
/** 32-bit words that a turnstile lies in. */
export const TURNSTILE_WORDS = 2

/** Looks before it sleeps: a turn is mostly shorter than a wake-up. */
const LOOKS = 100
/** How long to wait before asking after the other side, in milliseconds. */
const PATIENCE = 20

export interface TurnstileOptions {
  /** In a SharedArrayBuffer, zero at first; the two threads' views of the same words. */
  readonly words: Int32Array
  /** Whether the other thread has ended, so that it will never run again. False where in doubt. */
  readonly otherIsGone?: () => boolean
}

export class Turnstile {
  readonly #words: Int32Array
  readonly #otherIsGone: () => boolean
  #depth = 0
  #alone = false

  constructor({ words, otherIsGone = () => false }: TurnstileOptions) {
    this.#words = words
    this.#otherIsGone = otherIsGone
  }

  /** Nobody is on the other side any more. */
  get alone(): boolean {
    return this.#alone
  }

  /** How often this side has entered and not left. */
  get depth(): number {
    return this.#depth
  }

  /** Whether the other side waits while this one is in. */
  get wanted(): boolean {
    if (this.#alone || this.#depth === 0) return false
    const words = this.#words
    return ((Atomics.load(words, NEXT) - Atomics.load(words, SERVED)) | 0) > 1
  }

  /** Waits for its turn. Who is in may enter again, and leaves as often. */
  enter(): void {
    if (this.#depth++ > 0 || this.#alone) return
    const words = this.#words
    const ticket = Atomics.add(words, NEXT, 1)
    for (let look = 0; look < LOOKS; look++) if (Atomics.load(words, SERVED) === ticket) return
    for (;;) {
      const served = Atomics.load(words, SERVED)
      if (served === ticket) return
      const woken = Atomics.wait(words, SERVED, served, PATIENCE)
      if (woken === 'timed-out' && this.#otherIsGone()) {
        this.#alone = true
        return
      }
    }
  }

  leave(): void {
    if (--this.#depth > 0 || this.#alone) return
    const words = this.#words
    const served = Atomics.add(words, SERVED, 1) + 1
    if (((Atomics.load(words, NEXT) - served) | 0) > 0) Atomics.notify(words, SERVED)
  }

  /** Opens it for good, whoever is in it. The other thread must have ended. */
  open(): void {
    this.#alone = true
  }
}

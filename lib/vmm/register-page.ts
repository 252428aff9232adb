/**
 * The registers of the remapping unit, as memory of the guest while it submits invalidations fast.
 *
 * Each write of the queue's tail that leaves the guest costs the exit, and a guest in strict mode has
 * one a frame. A real unit does not stop its processor: it works the queue off beside it, and software
 * waits for a status in memory. So does this: while the guest is busy with the queue, the page of the
 * registers is memory that it writes without an exit, the tail is looked at from here, and the first
 * processor runs beside the event loop instead of on it. It is for throughput alone: whatever is not
 * a new tail, a fault or an interrupt puts the exits back at once.
 *
 * Memory cannot stand for all registers. Where writing a one clears a bit, the same value written
 * again would not be seen: the page is shared only while there is no such bit (`steady`). A command
 * that is written is seen, because in its place stands a value that no driver writes. All others
 * hold what is written to them, and come to the unit when the page is taken back, in the order in
 * which a driver has to write them: the commands last.
 */
import { REGISTER_AT } from '../iommu/intel/registers'
import type { IntelIommu } from '../iommu/intel/intel-iommu'
import type { MmioDevice } from '../iommu/iommu'
import { GuestMemory } from '../memory/guest-memory'

export type SharedUnit = Pick<
  IntelIommu,
  'steady' | 'writableWords' | 'registerBytes' | 'read' | 'readWord' | 'write' | 'writeWord'
>

/** The page, as long as the guest has it. */
export interface Lease extends Disposable {
  /** Called now and then by the thread that serves the page. */
  follow?(): void
}

export interface RegisterPageOptions {
  readonly unit: SharedUnit
  /** Guest-physical address of the registers. */
  readonly base: number
  /** Gives the guest the page until it is disposed; it does not reach it any more when that returns. */
  readonly map: (page: GuestMemory) => Lease
  /** Takes what the unit throws while no exit waits for it. */
  readonly onError: (error: unknown) => void
  /** Milliseconds of a clock that never goes back; `performance.now` if left out. */
  readonly now?: () => number
}

/** So many new tails in so many milliseconds are a busy guest. */
const BUSY_TAILS = 8
const BUSY_MS = 100
/**
 * Milliseconds without a new tail: after the first, it is looked at by a timer, then no more. A guest
 * that waits for a timer with each tail would be as slow as that for ever, so one that a loaded host
 * runs in turns must not come to it.
 */
const SPIN_MS = 10
const IDLE_MS = 100
/** Milliseconds for which exits stay, once something else than a tail has ended the sharing. */
const PAUSE_MS = 500
/** How long the loop waits for a tail, and how often before its other work has a turn. */
const LOOK_MICROSECONDS = 100
const LOOKS = 8
/** Reserved bits of GCMD (VT-d 5.10 11.4.4.1), which reads as anything: no driver writes them. */
const NO_COMMAND = 0x7fffff

export class RegisterPage implements MmioDevice, Disposable {
  /** Tails that were taken from the page. */
  served = 0
  readonly #options: RegisterPageOptions
  readonly #now: () => number
  readonly #memory: GuestMemory
  /** The page, word by word, and what stood in it when it was last looked at. */
  readonly #words: Uint32Array
  readonly #known: Uint32Array
  /** Words to look at, beside the tail. */
  readonly #watched: readonly number[]
  /** Words in the order in which the unit gets them: a tail before commands, which wait for it. */
  readonly #order: readonly number[]
  #shared: Lease | undefined
  #serving = false
  /** Of `served`, when the head was stored last. */
  #shown = 0
  #tails = 0
  #since = 0
  #moved = 0
  #pausedUntil = 0
  #timer: NodeJS.Timeout | undefined

  /** @throws SystemError ENOMEM */
  constructor(options: RegisterPageOptions) {
    this.#options = options
    const { unit, base, now = () => performance.now() } = options
    this.#now = now
    this.#memory = GuestMemory.allocate(unit.registerBytes, { at: base })
    const bytes = this.#memory.view(base, unit.registerBytes)
    this.#words = new Uint32Array(bytes.buffer, bytes.byteOffset)
    this.#known = new Uint32Array(this.#words.length)
    const { GCMD, IQT } = REGISTER_AT
    const others = unit.writableWords.filter((at) => at !== GCMD && at !== IQT)
    this.#watched = [...others, GCMD]
    this.#order = [...others, IQT, GCMD]
  }

  /** Whether the guest has the page. */
  get shared(): boolean {
    return this.#shared !== undefined
  }

  /** An exit that was under way when the page was shared, or one while it is not. */
  read(offset: number, size: number): bigint {
    return this.#options.unit.read(offset, size)
  }

  write(offset: number, value: bigint, size: number): void {
    this.takeBack()
    this.#options.unit.write(offset, value, size)
  }

  writeWord(offset: number, value: number): void {
    this.takeBack()
    this.#options.unit.writeWord(offset, value)
    if (offset === REGISTER_AT.IQT) this.#countTail()
  }

  /**
   * Back to exits: what the guest has written is with the unit when this returns, or, from within the
   * unit, when that is done with the tail. To be called before the guest is told of anything.
   */
  takeBack(): void {
    if (this.#shared === undefined) return
    this.#pausedUntil = this.#now() + PAUSE_MS
    this.#end()
  }

  /** What the guest has written and nobody has seen is lost: for a guest that runs no more. */
  close(): void {
    this.#unmap()
    this.#memory.close()
  }

  [Symbol.dispose](): void {
    this.close()
  }

  #countTail(): void {
    const now = this.#now()
    if (now - this.#since > BUSY_MS) {
      this.#since = now
      this.#tails = 0
    }
    if (++this.#tails < BUSY_TAILS || now < this.#pausedUntil) return
    this.#tails = 0
    if (this.#options.unit.steady) this.#share(now)
  }

  #share(now: number): void {
    const { unit, map } = this.#options
    for (let i = 0; i < this.#known.length; i++) this.#known[i] = unit.readWord(4 * i)
    this.#known[REGISTER_AT.GCMD / 4] = NO_COMMAND
    this.#words.set(this.#known)
    this.#shared = map(this.#memory)
    this.#moved = now
    setImmediate(this.#turn)
  }

  readonly #turn = (): void => {
    this.#timer = undefined
    try {
      this.#shared?.follow?.()
      this.#look()
    } catch (error) {
      this.takeBack()
      this.#options.onError(error)
    }
    if (this.#shared === undefined) return
    const idle = this.#now() - this.#moved
    if (idle < SPIN_MS) setImmediate(this.#turn)
    else if (idle < IDLE_MS) this.#timer = setTimeout(this.#turn, 1)
    else this.#end()
  }

  #look(): void {
    const { IQT } = REGISTER_AT
    const { base } = this.#options
    const [memory, known] = [this.#memory, this.#known]
    for (let i = 0; i < LOOKS && this.#shared !== undefined; i++) {
      if (!memory.awaitChangeU32(base + IQT, known[IQT / 4], LOOK_MICROSECONDS)) break
      this.#serve()
    }
    this.#showHead()
    for (const at of this.#watched) {
      if (Atomics.load(this.#words, at / 4) !== known[at / 4]) this.takeBack()
    }
  }

  /** A tail: what it submits has been done, and its status written, when this returns. */
  #serve(): void {
    const { IQT } = REGISTER_AT
    const tail = Atomics.load(this.#words, IQT / 4)
    this.#known[IQT / 4] = tail
    this.#serving = true
    try {
      this.#options.unit.writeWord(IQT, tail)
    } finally {
      this.#serving = false
      if (this.#shared === undefined) this.#apply()
    }
    this.served++
  }

  /** After tails: the head, for software that waits for it instead of a status, and the unit's state. */
  #showHead(): void {
    const { IQH } = REGISTER_AT
    const { unit } = this.#options
    if (this.served === this.#shown) return
    this.#shown = this.served
    Atomics.store(this.#words, IQH / 4, unit.readWord(IQH))
    this.#moved = this.#now()
    if (!unit.steady) this.takeBack()
  }

  #end(): void {
    this.#unmap()
    if (!this.#serving) this.#apply()
  }

  #unmap(): void {
    this.#shared?.[Symbol.dispose]()
    this.#shared = undefined
    clearTimeout(this.#timer)
    this.#timer = undefined
  }

  /** What the guest has changed. */
  #apply(): void {
    const { unit } = this.#options
    for (const at of this.#order) {
      const written = this.#words[at / 4]
      if (written === this.#known[at / 4]) continue
      this.#known[at / 4] = written
      unit.writeWord(at, written)
    }
  }
}

/**
 * A channel on which things go wrong, by chance and by a seed: the same seed, the same mishaps.
 *
 * It stands between any channel and its miss handler, the kernel's or a fake's, and does what those
 * may do on a bad day: questions come late, twice or in another order, an answer gets lost, the
 * device forgets everything, a call is refused. It never invents a question, and never grants what
 * was not granted: every mishap is one that the rules of the loop have to survive.
 */
import { LAST_PAGE, accessBits, pageOf } from '../address'
import type { Access, AccessBits, Hva, Iova, Range } from '../address'
import { SystemError } from '../errors'
import { Miss } from '../iotlb/channel'
import type { IotlbChannel } from '../iotlb/channel'

const ERRNOS = { EINTR: 4, EAGAIN: 11, ENOMEM: 12, EFAULT: 14 } as const
const OPERATIONS = ['drain', 'update', 'invalidate'] as const

type Operation = (typeof OPERATIONS)[number]
type Refusal = `${Operation} ${keyof typeof ERRNOS}`

/**
 * delay: a miss comes some drains late. double: it comes twice. reorder: those of one drain change
 * places. drop-update: an UPDATE is never written. evict: the device loses all that it holds.
 * `update ENOMEM` and the like: the call throws; an UPDATE or INVALIDATE may have taken effect.
 */
export type FaultKind = 'delay' | 'double' | 'reorder' | 'drop-update' | 'evict' | Refusal

export const FAULT_KINDS: readonly FaultKind[] = [
  'delay',
  'double',
  'reorder',
  'drop-update',
  'evict',
  ...OPERATIONS.flatMap((operation) =>
    Object.keys(ERRNOS).map((code) => `${operation} ${code}` as Refusal),
  ),
]

export interface FaultyOptions {
  /** Any integer; the same one gives the same faults for the same calls. */
  readonly seed: number
  /** How likely each kind is at each occasion, 0 to 1; a kind that is not named does not happen. */
  readonly chances: Readonly<Partial<Record<FaultKind, number>>>
}

/** The most that one drain gives, as the kernel's channel. */
const BATCH = 64
const LONGEST_DELAY = 4
/** The first page of the upper half: a full flush goes out as two (K10). */
const HALF = 2 ** 51

interface Held {
  readonly page: number
  readonly offset: number
  readonly access: AccessBits
  /** Drains until it may come. */
  wait: number
}

/** @throws RangeError for a chance that is none */
export function faulty(channel: IotlbChannel, options: FaultyOptions): FaultyChannel {
  return new FaultyChannel(channel, options)
}

export class FaultyChannel implements IotlbChannel {
  /** What went wrong so far, by kind. */
  readonly counts: Record<FaultKind, number>
  readonly #inner: IotlbChannel
  readonly #chances: FaultyOptions['chances']
  readonly #listeners = new Set<() => void>()
  readonly #slots = Array.from({ length: BATCH }, () => new Miss())
  readonly #random: () => number
  #held: Held[] = []
  #calm = false
  #subscription: Disposable | undefined
  #again: NodeJS.Immediate | undefined

  constructor(channel: IotlbChannel, { seed, chances }: FaultyOptions) {
    for (const [kind, chance] of Object.entries(chances)) {
      if (chance >= 0 && chance <= 1) continue
      throw new RangeError(`a chance is from 0 to 1: ${kind} ${chance}`)
    }
    this.#inner = channel
    this.#chances = chances
    this.#random = randomOf(seed)
    const none = FAULT_KINDS.map((kind) => [kind, 0])
    this.counts = Object.fromEntries(none) as Record<FaultKind, number>
  }

  get limit(): number {
    return this.#inner.limit
  }

  /** Misses that were asked and are kept back. */
  get held(): number {
    return this.#held.length
  }

  /** From now on nothing goes wrong; what is kept back comes with the next drain. */
  calm(): void {
    this.#calm = true
    for (const miss of this.#held) miss.wait = 0
    this.#schedule()
  }

  /** @throws SystemError as often as it was asked to; nothing that was pending is lost then */
  drain(): readonly Miss[] {
    this.#refuse('drain')
    this.#evict()
    for (const miss of this.#held) miss.wait--
    for (const { page, offset, access } of this.#inner.drain()) {
      const wait = this.#strikes('delay') ? 1 + Math.floor(this.#random() * LONGEST_DELAY) : 0
      this.#held.push({ page, offset, access, wait })
      if (this.#strikes('double')) this.#held.push({ page, offset, access, wait: 0 })
    }
    const due = this.#held.filter(({ wait }) => wait <= 0).slice(0, BATCH)
    this.#held = this.#held.filter((miss) => !due.includes(miss))
    if (due.length > 1 && this.#strikes('reorder')) this.#shuffle(due)
    this.#schedule()
    return due.map(({ page, offset, access }, i) =>
      Object.assign(this.#slots[i], { page, offset, access }),
    )
  }

  update(range: Range<Iova>, hva: Hva, access: Access): void {
    this.updatePages(pageOf(range.first), pageOf(range.last), pageOf(hva), accessBits(access))
  }

  invalidate(range: Range<Iova>): void {
    this.invalidatePages(pageOf(range.first), pageOf(range.last))
  }

  updatePages(firstPage: number, lastPage: number, hvaPage: number, access: AccessBits): void {
    this.#evict()
    if (this.#strikes('drop-update')) return
    this.#refuse('update', () => {
      this.#inner.updatePages(firstPage, lastPage, hvaPage, access)
    })
    this.#inner.updatePages(firstPage, lastPage, hvaPage, access)
  }

  invalidatePages(firstPage: number, lastPage: number): void {
    this.#refuse('invalidate', () => {
      this.#inner.invalidatePages(firstPage, lastPage)
    })
    this.#inner.invalidatePages(firstPage, lastPage)
  }

  onReadable(listener: () => void): Disposable {
    this.#listeners.add(listener)
    this.#subscription ??= this.#inner.onReadable(this.#call)
    this.#schedule()
    return {
      [Symbol.dispose]: () => {
        this.#listeners.delete(listener)
        if (this.#listeners.size > 0) return
        this.#subscription?.[Symbol.dispose]()
        this.#subscription = undefined
        clearImmediate(this.#again)
        this.#again = undefined
      },
    }
  }

  readonly #call = (): void => {
    for (const listener of this.#listeners) listener()
  }

  /** Nobody but us knows that something is left to be drained. */
  #schedule(): void {
    if (this.#held.length === 0 || this.#listeners.size === 0 || this.#again !== undefined) return
    this.#again = setImmediate(() => {
      this.#again = undefined
      try {
        this.#call()
      } finally {
        this.#schedule()
      }
    })
  }

  #strikes(kind: FaultKind): boolean {
    const chance = this.#chances[kind]
    if (this.#calm || chance === undefined || this.#random() >= chance) return false
    this.counts[kind]++
    return true
  }

  /** @param perform the call that is refused, which half of the time has its effect all the same */
  #refuse(operation: Operation, perform?: () => void): void {
    for (const code of Object.keys(ERRNOS) as (keyof typeof ERRNOS)[]) {
      if (!this.#strikes(`${operation} ${code}`)) continue
      if (perform !== undefined && this.#random() < 0.5) perform()
      throw new SystemError(ERRNOS[code], operation === 'drain' ? 'read' : 'write', {
        hint: 'an injected fault',
      })
    }
  }

  #evict(): void {
    if (!this.#strikes('evict')) return
    this.#inner.invalidatePages(0, HALF - 1)
    this.#inner.invalidatePages(HALF, LAST_PAGE)
  }

  #shuffle(misses: Held[]): void {
    for (let i = misses.length - 1; i > 0; i--) {
      const j = Math.floor(this.#random() * (i + 1))
      ;[misses[i], misses[j]] = [misses[j], misses[i]]
    }
  }
}

/** xorshift32 (G. Marsaglia, 2003), after a step that spreads small seeds. */
function randomOf(seed: number): () => number {
  let state = Math.imul(seed ^ 0x9e3779b9, 0x85ebca6b) | 1
  return () => {
    state ^= state << 13
    state ^= state >>> 17
    state ^= state << 5
    return (state >>> 0) / 2 ** 32
  }
}

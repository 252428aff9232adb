/**
 * One virtqueue of the fake device: what it waits for, and how it stops.
 *
 * A pass of a queue looks up its rings, then its accesses in order, and ends at the first thing
 * that it cannot have: a hole asks once and waits, too little permission is silent (K2).
 */
import { READ, WRITE, pageOf } from '../address'
import type { AccessBits, Hva } from '../address'

/** waiting: not had yet. done: `hva` says where. denied: until a kick. cancelled: queue stopped. */
export type FakeAccessState = 'waiting' | 'done' | 'denied' | 'cancelled'

export class FakeAccess {
  state: FakeAccessState = 'waiting'
  /** Where the first byte was found, when it is done. */
  hva: Hva | undefined

  constructor(
    readonly iova: bigint,
    readonly access: AccessBits,
    readonly length: number,
  ) {}
}

/** Where the three parts of a ring are, in iovas, with their sizes in bytes. */
export interface FakeRings {
  readonly desc: { readonly at: bigint; readonly length: number }
  readonly avail: { readonly at: bigint; readonly length: number }
  readonly used: { readonly at: bigint; readonly length: number }
}

interface Found {
  readonly firstPage: number
  readonly lastPage: number
  readonly hvaPage: number
  readonly access: AccessBits
}

/** What a queue needs of its device. */
export interface Lookup {
  first(firstPage: number, lastPage: number): Found | undefined
  miss(queue: FakeQueue, iova: bigint, access: AccessBits): void
}

/** iotlb_access_ok: what each ring part is asked for before a pass (vq_meta_prefetch). */
const PARTS = [
  { name: 'desc', access: READ },
  { name: 'avail', access: READ },
  { name: 'used', access: WRITE },
] as const

type Outcome = 'found' | 'hole' | 'denied'

export class FakeQueue {
  errors = 0
  ringLookups = 0
  readonly waiting: FakeAccess[] = []
  #rings: FakeRings | undefined
  /** Ring parts that one entry covers whole: found without the table until it changes (K12). */
  readonly #cached = new Set<string>()
  #hva: Hva | undefined

  constructor(private readonly lookup: Lookup) {}

  /** Reads the used ring, although it will be written (K8). @returns false at a hole */
  start(rings: FakeRings): boolean {
    if (this.#walk(rings.used.at, 2, READ) === 'hole') return false
    this.#rings = rings
    return true
  }

  stop(): void {
    this.#rings = undefined
    for (const access of this.waiting.splice(0)) access.state = 'cancelled'
  }

  forgetRings(): void {
    this.#cached.clear()
  }

  /** One pass of the worker. */
  run(): void {
    if (this.#rings !== undefined && !this.#prefetch(this.#rings)) return
    while (this.waiting.length > 0) {
      const [access] = this.waiting
      const outcome = this.#walk(access.iova, access.length, access.access)
      if (outcome === 'hole') {
        access.state = 'waiting'
        return
      }
      if (outcome === 'denied') {
        access.state = 'denied'
        this.errors++
        return
      }
      access.state = 'done'
      access.hva = this.#hva
      this.waiting.shift()
    }
  }

  /** All three parts; a part that is denied stops the pass without any sign, not even an error. */
  #prefetch(rings: FakeRings): boolean {
    for (const { name, access } of PARTS) {
      if (this.#cached.has(name)) continue
      const { at, length } = rings[name]
      const before = this.ringLookups
      if (this.#walk(at, length, access, true) !== 'found') return false
      if (this.ringLookups === before + 1) this.#cached.add(name)
    }
    return true
  }

  /**
   * Entry after entry, as translate_desc does; the permission of the first that is found counts.
   */
  #walk(at: bigint, length: number, access: AccessBits, ring = false): Outcome {
    const last = at + BigInt(length) - 1n
    for (let next = at; next <= last;) {
      const page = pageOf(next)
      if (ring) this.ringLookups++
      const entry = this.lookup.first(page, pageOf(last))
      if (entry === undefined || entry.firstPage > page) {
        this.lookup.miss(this, next, access)
        return 'hole'
      }
      if ((entry.access & access) !== access) return 'denied'
      if (next === at) {
        this.#hva = ((BigInt(entry.hvaPage + page - entry.firstPage) << 12n) | (at & 0xfffn)) as Hva
      }
      next = BigInt(entry.lastPage + 1) << 12n
    }
    return 'found'
  }
}

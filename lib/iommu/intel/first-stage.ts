/**
 * The walk of first-stage tables (VT-d 5.10, 3.6 and 9.7), alone or nested in a second stage (3.8).
 *
 * What is granted is kept by the device, which then reads and writes without asking: the accessed
 * bits, and the dirty bit of a page that is granted for writing, are set when it is granted, as for
 * a translation request, which counts as reading and writing (3.6.2, 4.2.3.1). A refused request
 * sets nothing. Not here: execute permission (ECAP.ERS is 0) and supervisor requests; all requests
 * are the user's.
 */
import { READ, WRITE } from '../../address'
import type { AccessBits } from '../../address'
import { layout } from '../../bits'
import { PageTranslation } from '../../memory/address-space'
import type { TableMemory } from '../table-memory'
import type { Capabilities } from './capabilities'
import { CODE } from './faults'
import type { SecondStageRules } from './second-stage'
import { walkSecondStage } from './second-stage'
import type { WalkTrace } from './walk-trace'

/** VT-d 5.10 9.7. What hardware ignores is named IGN; XD is, since nothing here executes. */
export const FIRST_STAGE_ENTRY = layout(64, [
  { name: 'P', from: 0, to: 0 },
  { name: 'RW', from: 1, to: 1 },
  { name: 'US', from: 2, to: 2 },
  { name: 'PWT', from: 3, to: 3 },
  { name: 'PCD', from: 4, to: 4 },
  { name: 'A', from: 5, to: 5 },
  { name: 'D', from: 6, to: 6 },
  { name: 'PS', from: 7, to: 7 },
  { name: 'IGN1', from: 8, to: 11 },
  { name: 'ADDR', from: 12, to: 51 },
  { name: 'IGN2', from: 52, to: 62 },
  { name: 'XD', from: 63, to: 63 },
])

const { field } = FIRST_STAGE_ENTRY
const P = field.P.mask()
const RW = field.RW.mask()
const US = field.US.mask()
const A = field.A.mask()
const D = field.D.mask()
const PS = field.PS.mask()
const ADDR_HIGH = field.ADDR.mask(1)

const LOW_LEVELS = 2 ** 27
const ALL_PAGES = 2 ** 52
/** Pages of one canonical half, by levels. */
const HALF: readonly number[] = [0, 1, 2, 3, 4, 5].map((levels) => 2 ** (9 * levels - 1))
/** PAT is bit 12 of a large leaf, bit 0 of its page number: the address starts above it. */
const PAT_BIT = 1
/** How often a walk starts again because the guest changed an entry under it. */
const TRIES = 4
const RETRY = -1

/** The second stage that a first stage is nested in; one object, reused. */
export interface Nesting {
  readonly rules: SecondStageRules
  root: number
  levels: number
  /** The first page beyond its width. */
  endPage: number
}

export class FirstStage {
  readonly #memory: TableMemory
  readonly #leafLevel: number
  readonly #beyondHost: number
  /** What a nested walk found for a table, and for the page itself. */
  readonly #second = new PageTranslation()
  /** The entries of this walk, by level, for their accessed and dirty bits. */
  readonly #arrays: (Uint32Array | undefined)[] = [undefined]
  readonly #words = new Int32Array(6)
  readonly #entries = new Uint32Array(6)
  readonly #writable = new Uint8Array(6)

  constructor(memory: TableMemory, has: Capabilities) {
    this.#memory = memory
    this.#leafLevel = has.leafLevel === 3 ? 3 : 2
    this.#beyondHost = ADDR_HIGH & ~(2 ** (has.hostAddressWidth - 32) - 1)
  }

  /**
   * @param levels 4 or 5
   * @param nesting undefined for a first stage whose tables and targets are guest-physical
   * @returns 0 with `out` filled, or a code
   */
  walk(
    root: number,
    levels: number,
    page: number,
    wanted: AccessBits,
    out: PageTranslation,
    nesting: Readonly<Nesting> | undefined,
    trace?: WalkTrace,
  ): number {
    const half = HALF[levels]
    if (page >= half && page < ALL_PAGES - half) return CODE['not-canonical']
    for (let i = 0; i < TRIES; i++) {
      const code = this.#walkOnce(root, levels, page, wanted, out, nesting, trace)
      if (code !== RETRY) return code
    }
    return CODE['fs-update-failed']
  }

  #walkOnce(
    root: number,
    levels: number,
    page: number,
    wanted: AccessBits,
    out: PageTranslation,
    nesting: Readonly<Nesting> | undefined,
    trace?: WalkTrace,
  ): number {
    const high = Math.floor(page / LOW_LEVELS)
    const low = page - high * LOW_LEVELS
    let table = root
    let granted = READ | WRITE
    for (let level = levels; ; level--) {
      const top = level === levels
      const index = (level > 3 ? high >> (9 * (level - 4)) : low >> (9 * (level - 1))) & 511
      const tablePage = nesting === undefined ? table : this.#table(table, top, nesting, trace)
      if (tablePage < 0) return -tablePage
      const at = tablePage * 4096 + index * 8
      trace?.entry('first-stage entry', at, level)
      const region = this.#memory.find(at)
      if (region === undefined) return top ? CODE['fs-root-access'] : CODE['fs-access']
      const word = (at - region.start) >>> 2
      const entry = region.u32[word]
      const entryHigh = region.u32[word + 1]
      if (region.u32[word] !== entry) return RETRY
      if ((entry & P) === 0) return CODE['fs-not-present']
      if ((entry & US) === 0) return CODE['user-denied']
      if ((entry & RW) === 0) granted &= ~WRITE
      if ((wanted & ~granted & WRITE) !== 0) return CODE['sm-write-denied']
      const leaf = level === 1 || ((entry & PS) !== 0 && level <= this.#leafLevel)
      if (this.#reserved(entry, entryHigh, level, leaf)) return CODE['fs-reserved']
      this.#arrays[level] = region.u32
      this.#words[level] = word
      this.#entries[level] = entry
      this.#writable[level] = nesting === undefined ? WRITE : this.#second.access & WRITE
      table = (entryHigh & ADDR_HIGH) * 0x100000 + (entry >>> 12)
      if (!leaf) continue
      const pages = 1 << (9 * (level - 1))
      out.firstPage = page - (low & (pages - 1))
      out.lastPage = out.firstPage + pages - 1
      out.gpaPage = level > 1 ? table - (table % 2) : table
      out.access = granted as AccessBits
      const code = nesting === undefined ? 0 : this.#nest(page, wanted, out, nesting, trace)
      if (code !== 0 || trace !== undefined) return code
      return this.#mark(levels, level, (out.access & WRITE) !== 0)
    }
  }

  /** Address bits that must be 0: beyond the host's width, and below a large leaf's size. */
  #reserved(entry: number, entryHigh: number, level: number, leaf: boolean): boolean {
    if ((entryHigh & this.#beyondHost) !== 0) return true
    if (!leaf) return level > this.#leafLevel && (entry & PS) !== 0
    const below = ((1 << (9 * (level - 1))) - 1) & ~PAT_BIT
    return ((entry >>> 12) & below) !== 0
  }

  /** Where a first-stage table of a nested walk is. @returns its page, or a code below 0 */
  #table(table: number, top: boolean, nesting: Readonly<Nesting>, trace?: WalkTrace): number {
    if (table >= nesting.endPage) {
      return -(top ? CODE['sm-pasid-invalid'] : CODE['nested-beyond-width'])
    }
    const found = this.#second
    const { rules, root, levels } = nesting
    const code = walkSecondStage(this.#memory, rules, root, levels, table, READ, found, trace)
    if (code === rules.codes.readDenied) {
      return -(top ? CODE['nested-fs-root-denied'] : CODE['nested-fs-denied'])
    }
    return code !== 0 ? -code : found.gpaPage + (table - found.firstPage)
  }

  /** Puts the page's own second-stage translation under the first-stage leaf in `out`. */
  #nest(
    page: number,
    wanted: AccessBits,
    out: PageTranslation,
    nesting: Readonly<Nesting>,
    trace?: WalkTrace,
  ): number {
    const target = out.gpaPage + (page - out.firstPage)
    if (target >= nesting.endPage) return CODE['nested-beyond-width']
    const { rules, root, levels } = nesting
    const found = this.#second
    const code = walkSecondStage(this.#memory, rules, root, levels, target, wanted, found, trace)
    if (code !== 0) return code
    const first = Math.max(out.firstPage, page - (target - found.firstPage))
    out.lastPage = Math.min(out.lastPage, page + (found.lastPage - target))
    out.gpaPage = found.gpaPage + (target - (page - first) - found.firstPage)
    out.firstPage = first
    out.access = (out.access & found.access) as AccessBits
    return out.access === 0 || (out.access & wanted) !== wanted ? CODE['sm-read-denied'] : 0
  }

  /** Sets the accessed bits on the way, and the leaf's dirty bit where writing is granted. */
  #mark(levels: number, leafLevel: number, writes: boolean): number {
    for (let level = levels; level >= leafLevel; level--) {
      const u32 = this.#arrays[level]
      if (u32 === undefined) continue
      const entry = this.#entries[level]
      const marked = (entry | A | (level === leafLevel && writes ? D : 0)) >>> 0
      if (marked === entry) continue
      if (this.#writable[level] === 0) return CODE['nested-fs-write-denied']
      if (Atomics.compareExchange(u32, this.#words[level], entry, marked) !== entry) return RETRY
    }
    return 0
  }
}

/**
 * From a source id to its context entry, in legacy mode (VT-d 5.10, 3.4.2, 9.1 and 9.3).
 *
 * Nothing is cached: both entries are read again for each walk, so what the guest has invalidated
 * can never come back. What they mean is worked out anew only when a word of them is another one
 * than the last time. Not here: the walk of the tables that the entry names.
 */
import { layout } from '../../bits'
import type { TableMemory } from '../table-memory'
import { reservedBits } from './capabilities'
import type { Capabilities } from './capabilities'
import { CODE } from './faults'
import type { WalkTrace } from './walk-trace'

export const ROOT_ENTRY = layout(128, [
  { name: 'P', from: 0, to: 0 },
  { name: 'CTP', from: 12, to: 63 },
])

export const CONTEXT_ENTRY = layout(128, [
  { name: 'P', from: 0, to: 0 },
  { name: 'FPD', from: 1, to: 1 },
  { name: 'TT', from: 2, to: 3 },
  { name: 'SSPTPTR', from: 12, to: 63 },
  { name: 'AW', from: 64, to: 66 },
  { name: 'IGN', from: 67, to: 70 },
  { name: 'DID', from: 72, to: 87 },
])

/** CONTEXT_ENTRY.TT (9.3). */
export const TRANSLATION_TYPE = { untranslated: 0, deviceTlb: 1, passThrough: 2 } as const

// Masks inside the 32-bit words, worked out once.
const ROOT_P = ROOT_ENTRY.field.P.mask()
const P = CONTEXT_ENTRY.field.P.mask()
const FPD = CONTEXT_ENTRY.field.FPD.mask()
const TT = CONTEXT_ENTRY.field.TT.mask()
const TT_SHIFT = CONTEXT_ENTRY.field.TT.from
const AW = CONTEXT_ENTRY.field.AW.mask(2)
const DID = CONTEXT_ENTRY.field.DID.mask(2)
const DID_SHIFT = CONTEXT_ENTRY.field.DID.from % 32

const NO_WORDS = new Uint32Array(0)

/** An entry as it was read, once: what it means is worked out from this, and not read again. */
class Words {
  array: Uint32Array = NO_WORDS
  index = 0
  first = 0
  second = 0
  third = 0
  fourth = 0

  keep(array: Uint32Array, index: number): void {
    this.array = array
    this.index = index
    this.first = array[index]
    this.second = array[index + 1]
    this.third = array[index + 2]
    this.fourth = array[index + 3]
  }

  /** Whether memory still says the same. It does not where it is gone: nothing is in its arrays. */
  get same(): boolean {
    const { array, index } = this
    return (
      array[index] === this.first &&
      array[index + 1] === this.second &&
      array[index + 2] === this.third &&
      array[index + 3] === this.fourth
    )
  }
}

/** What a context entry says, as the last lookup left it: numbers, reused. */
export class LegacyContext {
  translationType = 0
  tableRoot = 0
  levels = 0
  domain = 0
  /** FPD: qualified faults are not recorded. */
  faultDisabled = false

  readonly #memory: TableMemory
  readonly #has: Capabilities
  readonly #rootReserved: Int32Array
  readonly #contextReserved: Int32Array
  /** Bits of the upper word of SSPTPTR that the host does not have. */
  readonly #beyondHost: number
  /** The entries of the last lookup that found no fault, and what was looked up. */
  readonly #root = new Words()
  readonly #entry = new Words()
  #rootPage = -1
  #source = -1
  #ats = false

  constructor(memory: TableMemory, has: Capabilities) {
    this.#memory = memory
    this.#has = has
    this.#rootReserved = reservedBits(has, ROOT_ENTRY, ROOT_ENTRY.field.CTP)
    this.#contextReserved = Int32Array.from(CONTEXT_ENTRY.reserved)
    const reserved = reservedBits(has, CONTEXT_ENTRY, CONTEXT_ENTRY.field.SSPTPTR)
    this.#beyondHost = reserved[1]
  }

  /**
   * @param rootPage page of the root table, as SRTP latched it
   * @param ats whether the request comes from a device TLB
   * @returns 0, or the code of the fault
   */
  lookup(rootPage: number, source: number, ats: boolean, trace?: WalkTrace): number {
    if (
      this.#rootPage === rootPage &&
      this.#source === source &&
      this.#ats === ats &&
      trace === undefined &&
      this.#root.same &&
      this.#entry.same
    ) {
      return 0
    }
    this.#rootPage = -1
    const code = this.#lookup(rootPage, source, ats, trace)
    if (code !== 0) return code
    this.#rootPage = rootPage
    this.#source = source
    this.#ats = ats
    return 0
  }

  #lookup(rootPage: number, source: number, ats: boolean, trace?: WalkTrace): number {
    this.faultDisabled = false
    const rootAt = rootPage * 4096 + (source >> 8) * 16
    if (trace !== undefined) trace.entry('root entry', rootAt, 0)
    const rootRegion = this.#memory.find(rootAt)
    if (rootRegion === undefined) return CODE['root-access']
    const root = this.#root
    root.keep(rootRegion.u32, (rootAt - rootRegion.start) >>> 2)
    const { first, second } = root
    if ((first & ROOT_P) === 0) return CODE['root-not-present']
    const bad = this.#rootReserved
    if (((first & bad[0]) | (second & bad[1]) | root.third | root.fourth) !== 0) {
      return CODE['root-reserved']
    }
    const contextAt = (second * 0x100000 + (first >>> 12)) * 4096 + (source & 255) * 16
    if (trace !== undefined) trace.entry('context entry', contextAt, 0)
    return this.#context(contextAt, ats)
  }

  #context(at: number, ats: boolean): number {
    const region = this.#memory.find(at)
    if (region === undefined) return CODE['context-access']
    const entry = this.#entry
    entry.keep(region.u32, (at - region.start) >>> 2)
    const { first: low, second: high, third } = entry
    this.faultDisabled = (low & FPD) !== 0
    if ((low & P) === 0) return CODE['context-not-present']
    const bad = this.#contextReserved
    this.translationType = (low & TT) >>> TT_SHIFT
    // Pass-through ignores SSPTPTR (9.3); QEMU checks it all the same.
    const ignored = this.translationType === TRANSLATION_TYPE.passThrough && !this.#has.qemu
    const beyond = ignored ? 0 : high & this.#beyondHost
    if (((low & bad[0]) | beyond | (third & bad[2]) | entry.fourth) !== 0) {
      return CODE['context-reserved']
    }
    this.tableRoot = high * 0x100000 + (low >>> 12)
    this.levels = (third & AW) + 2
    this.domain = (third & DID) >>> DID_SHIFT
    return this.#judge(ats)
  }

  /** What hardware supports (9.3, TT and AW). */
  #judge(ats: boolean): number {
    const has = this.#has
    if (this.levels < 3 || this.levels > has.levels) return CODE['context-invalid']
    switch (this.translationType) {
      case TRANSLATION_TYPE.untranslated:
        return ats && !has.qemu ? CODE['type-blocked'] : 0
      case TRANSLATION_TYPE.deviceTlb:
        return has.deviceTlb ? 0 : CODE['context-invalid']
      case TRANSLATION_TYPE.passThrough:
        return has.passThrough ? 0 : CODE['context-invalid']
      default:
        return CODE['context-invalid']
    }
  }
}

/**
 * From a source id to its context entry, in legacy mode (VT-d 5.10, 3.4.2, 9.1 and 9.3).
 *
 * Nothing is cached: an entry is read again for each walk, so what the guest has invalidated can
 * never come back. Not here: the walk of the tables that the entry names.
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
    this.faultDisabled = false
    const rootAt = rootPage * 4096 + (source >> 8) * 16
    if (trace !== undefined) trace.entry('root entry', rootAt, 0)
    const rootRegion = this.#memory.find(rootAt)
    if (rootRegion === undefined) return CODE['root-access']
    const root = rootRegion.u32
    const r = (rootAt - rootRegion.start) >>> 2
    const rootLow = root[r]
    const rootHigh = root[r + 1]
    if ((rootLow & ROOT_P) === 0) return CODE['root-not-present']
    const bad = this.#rootReserved
    if (((rootLow & bad[0]) | (rootHigh & bad[1]) | root[r + 2] | root[r + 3]) !== 0) {
      return CODE['root-reserved']
    }
    const contextAt = (rootHigh * 0x100000 + (rootLow >>> 12)) * 4096 + (source & 255) * 16
    if (trace !== undefined) trace.entry('context entry', contextAt, 0)
    return this.#context(contextAt, ats)
  }

  #context(at: number, ats: boolean): number {
    const region = this.#memory.find(at)
    if (region === undefined) return CODE['context-access']
    const { u32 } = region
    const c = (at - region.start) >>> 2
    const low = u32[c]
    const high = u32[c + 1]
    const third = u32[c + 2]
    this.faultDisabled = (low & FPD) !== 0
    if ((low & P) === 0) return CODE['context-not-present']
    const bad = this.#contextReserved
    this.translationType = (low & TT) >>> TT_SHIFT
    // Pass-through ignores SSPTPTR (9.3); QEMU checks it all the same.
    const ignored = this.translationType === TRANSLATION_TYPE.passThrough && !this.#has.qemu
    const beyond = ignored ? 0 : high & this.#beyondHost
    if (((low & bad[0]) | beyond | (third & bad[2]) | u32[c + 3]) !== 0) {
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

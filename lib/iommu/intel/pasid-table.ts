/**
 * From a source id to its PASID table entry, in scalable mode (VT-d 5.10, 3.4.3, 9.2, 9.4 to 9.6).
 *
 * Requests here carry no PASID, so that the context entry's RID_PASID stands in. Nothing is
 * cached. Not here: the walks of the stages that the entry names.
 */
import { layout } from '../../bits'
import { readWords } from '../table-memory'
import type { TableMemory } from '../table-memory'
import { reservedBits, setsAny } from './capabilities'
import type { Capabilities } from './capabilities'
import { CODE } from './faults'
import type { WalkTrace } from './walk-trace'

/** Half of a root entry: the lower one is for devices 0 to 15, the upper for 16 to 31. */
export const SCALABLE_ROOT_ENTRY = layout(64, [
  { name: 'P', from: 0, to: 0 },
  { name: 'CTP', from: 12, to: 63 },
])

/** PASIDE, DTE and PRE are reserved where the unit does not have what they enable. */
export const SCALABLE_CONTEXT_ENTRY = layout(256, [
  { name: 'P', from: 0, to: 0 },
  { name: 'FPD', from: 1, to: 1 },
  { name: 'DTE', from: 2, to: 2 },
  { name: 'PASIDE', from: 3, to: 3 },
  { name: 'PDTS', from: 9, to: 11 },
  { name: 'PASIDDIRPTR', from: 12, to: 63 },
  { name: 'RID_PASID', from: 64, to: 83 },
])

export const PASID_DIRECTORY_ENTRY = layout(64, [
  { name: 'P', from: 0, to: 0 },
  { name: 'FPD', from: 1, to: 1 },
  { name: 'SMPTBLPTR', from: 12, to: 63 },
])

/**
 * SSADE, EAFE and the memory types are reserved: ECAP.SSADS, EAFS and MTS are 0. So is what belongs
 * to a stage that the unit does not have.
 */
export const PASID_ENTRY = layout(512, [
  { name: 'P', from: 0, to: 0 },
  { name: 'FPD', from: 1, to: 1 },
  { name: 'AW', from: 2, to: 4 },
  { name: 'PGTT', from: 6, to: 8 },
  { name: 'SSPTPTR', from: 12, to: 63 },
  { name: 'DID', from: 64, to: 79 },
  { name: 'PWSNP', from: 87, to: 87 },
  { name: 'PGSNP', from: 88, to: 88 },
  { name: 'SRE', from: 128, to: 128 },
  { name: 'FSPM', from: 130, to: 131 },
  { name: 'WPE', from: 132, to: 132 },
  { name: 'IGN', from: 133, to: 134 },
  { name: 'FSPTPTR', from: 140, to: 191 },
])

const ROOT = SCALABLE_ROOT_ENTRY.field
const CONTEXT = SCALABLE_CONTEXT_ENTRY.field
const DIRECTORY = PASID_DIRECTORY_ENTRY.field
const ENTRY = PASID_ENTRY.field

/** PASID_ENTRY.PGTT (9.6). */
export const PASID_TYPE = { firstStage: 1, secondStage: 2, nested: 3, passThrough: 4 } as const

/** A PASID table has 64 entries of 64 bytes; a directory 2^(PDTS + 7) entries of 8 bytes. */
const TABLE_ENTRIES = 64
const LEAST_DIRECTORY = 128

/** What the tables say of a requester, as the last lookup left it: numbers, reused. */
export class ScalableContext {
  type = 0
  domain = 0
  pasid = 0
  faultDisabled = false
  secondStageRoot = 0
  secondStageLevels = 0
  firstStageRoot = 0
  firstStageLevels = 0

  readonly #memory: TableMemory
  readonly #has: Capabilities
  readonly #root = new Uint32Array(SCALABLE_ROOT_ENTRY.words)
  readonly #context = new Uint32Array(SCALABLE_CONTEXT_ENTRY.words)
  readonly #directory = new Uint32Array(PASID_DIRECTORY_ENTRY.words)
  readonly #entry = new Uint32Array(PASID_ENTRY.words)
  readonly #rootReserved: Int32Array
  readonly #contextReserved: Int32Array
  readonly #directoryReserved: Int32Array
  readonly #entryReserved: Int32Array

  constructor(memory: TableMemory, has: Capabilities) {
    this.#memory = memory
    this.#has = has
    const { DTE, PASIDE, PASIDDIRPTR } = SCALABLE_CONTEXT_ENTRY.field
    this.#rootReserved = reservedBits(has, SCALABLE_ROOT_ENTRY, SCALABLE_ROOT_ENTRY.field.CTP)
    this.#contextReserved = reservedBits(has, SCALABLE_CONTEXT_ENTRY, PASIDDIRPTR)
    if (!has.deviceTlb) this.#contextReserved[0] |= DTE.mask()
    if (!has.pasid) this.#contextReserved[0] |= PASIDE.mask()
    this.#directoryReserved = reservedBits(
      has,
      PASID_DIRECTORY_ENTRY,
      PASID_DIRECTORY_ENTRY.field.SMPTBLPTR,
    )
    this.#entryReserved = reservedInEntry(has)
  }

  /** @returns 0, or the code of the fault */
  lookup(rootPage: number, source: number, ats: boolean, trace?: WalkTrace): number {
    this.faultDisabled = false
    const root = this.#root
    const at = rootPage * 4096 + (source >> 8) * 16 + ((source & 128) === 0 ? 0 : 8)
    trace?.entry('scalable-mode root entry', at, 0)
    if (!readWords(this.#memory, at, root)) return CODE['sm-root-access']
    if (ROOT.P.read(root) === 0) return CODE['sm-root-not-present']
    if (setsAny(root, this.#rootReserved)) return CODE['sm-root-reserved']
    return this.#readContext(ROOT.CTP.read(root) * 4096 + (source & 127) * 32, ats, trace)
  }

  #readContext(at: number, ats: boolean, trace?: WalkTrace): number {
    const context = this.#context
    trace?.entry('scalable-mode context entry', at, 0)
    if (!readWords(this.#memory, at, context)) return CODE['sm-context-access']
    this.faultDisabled = CONTEXT.FPD.read(context) === 1
    if (CONTEXT.P.read(context) === 0) return CODE['sm-context-not-present']
    if (setsAny(context, this.#contextReserved)) return CODE['sm-context-reserved']
    if (ats && CONTEXT.DTE.read(context) === 0) return CODE['sm-device-tlb-off']
    this.pasid = CONTEXT.RID_PASID.read(context)
    const index = Math.floor(this.pasid / TABLE_ENTRIES)
    if (index >= LEAST_DIRECTORY << CONTEXT.PDTS.read(context)) return CODE['sm-context-invalid']
    return this.#readDirectory(CONTEXT.PASIDDIRPTR.read(context) * 4096 + index * 8, trace)
  }

  #readDirectory(at: number, trace?: WalkTrace): number {
    const directory = this.#directory
    trace?.entry('PASID directory entry', at, 0)
    if (!readWords(this.#memory, at, directory)) return CODE['sm-pasid-directory-access']
    if (DIRECTORY.FPD.read(directory) === 1) this.faultDisabled = true
    if (DIRECTORY.P.read(directory) === 0) return CODE['sm-pasid-directory-not-present']
    if (setsAny(directory, this.#directoryReserved)) return CODE['sm-pasid-directory-reserved']
    return this.#readEntry(
      DIRECTORY.SMPTBLPTR.read(directory) * 4096 + (this.pasid % TABLE_ENTRIES) * 64,
      trace,
    )
  }

  #readEntry(at: number, trace?: WalkTrace): number {
    const entry = this.#entry
    trace?.entry('PASID table entry', at, 0)
    if (!readWords(this.#memory, at, entry)) return CODE['sm-pasid-access']
    if (ENTRY.FPD.read(entry) === 1) this.faultDisabled = true
    if (ENTRY.P.read(entry) === 0) return CODE['sm-pasid-not-present']
    if (setsAny(entry, this.#entryReserved)) return CODE['sm-pasid-reserved']
    this.type = ENTRY.PGTT.read(entry)
    this.domain = ENTRY.DID.read(entry)
    this.secondStageRoot = ENTRY.SSPTPTR.read(entry)
    this.secondStageLevels = ENTRY.AW.read(entry) + 2
    this.firstStageRoot = ENTRY.FSPTPTR.read(entry)
    this.firstStageLevels = ENTRY.FSPM.read(entry) + 4
    return this.#supported() ? 0 : CODE['sm-pasid-invalid']
  }

  /** Types, widths and paging modes that CAP and ECAP report (9.6). */
  #supported(): boolean {
    const has = this.#has
    const second =
      has.secondStage && this.secondStageLevels >= 3 && this.secondStageLevels <= has.levels
    const first =
      has.firstStage &&
      (this.firstStageLevels === 4 || (this.firstStageLevels === 5 && has.levels === 5))
    switch (this.type) {
      case PASID_TYPE.firstStage:
        return first
      case PASID_TYPE.secondStage:
        return second
      case PASID_TYPE.nested:
        return first && second
      case PASID_TYPE.passThrough:
        return has.passThrough
      default:
        return false
    }
  }
}

/** What must be 0 in a PASID entry of this unit (9.6). */
function reservedInEntry(has: Capabilities): Int32Array {
  const { AW, SSPTPTR, PGSNP, WPE, FSPM, FSPTPTR } = ENTRY
  const mask = reservedBits(has, PASID_ENTRY, SSPTPTR)
  const fields = [
    ...(has.secondStage ? [] : [AW, SSPTPTR]),
    ...(has.firstStage ? [] : [WPE, FSPM, FSPTPTR]),
    ...(has.snoopControl ? [] : [PGSNP]),
  ]
  const first = reservedBits(has, PASID_ENTRY, FSPTPTR)
  return mask.map((bits, word) =>
    fields.reduce((sum, field) => sum | field.mask(word), bits | first[word]),
  )
}

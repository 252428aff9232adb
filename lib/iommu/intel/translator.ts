/**
 * One request through the unit: from RTADDR's tables to a range of guest memory, or to the code
 * of the fault (VT-d 5.10, 3.3 to 3.7). Numbers only; nothing is allocated and nothing is cached:
 * the kernel's device IOTLB is the cache, and a walk costs some tens of nanoseconds.
 *
 * Not here: recording a fault (`fault-log.ts`) and telling the device (`address-space.ts`).
 */
import { LAST_PAGE } from '../../address'
import type { AccessBits } from '../../address'
import type { AddressSpaceState, PageTranslation } from '../../memory/address-space'
import type { TableMemory } from '../table-memory'
import type { Capabilities } from './capabilities'
import { CODE } from './faults'
import { FirstStage } from './first-stage'
import type { Nesting } from './first-stage'
import { PASID_TYPE, ScalableContext } from './pasid-table'
import { LegacyContext, TRANSLATION_TYPE } from './root-context'
import { LEGACY_CODES, SCALABLE_CODES, SecondStageRules, walkSecondStage } from './second-stage'
import type { WalkTrace } from './walk-trace'

/** A device's request in this window is an interrupt, not memory (VT-d 5.10 3.15). */
export const INTERRUPT_FIRST_PAGE = 0xfee00
export const INTERRUPT_LAST_PAGE = 0xfeeff

/** RTADDR.TTM (11.4.5); a unit without scalable mode has no other than legacy. */
export const TABLE_MODE = { legacy: 0, scalable: 1 } as const
/** A table mode that the unit does not have: every request faults. */
export const UNSUPPORTED_MODE = -1

const READWRITE = 3

export class Translator {
  /** GSTS.TES. */
  enabled = false
  /** The root table's page and the mode of its tables (RTADDR.TTM), as SRTP latched them. */
  rootPage = 0
  mode = 0
  /** The last request: its domain and PASID, whether FPD hides its faults, how far it came. */
  domain = 0
  pasid = 0
  faultDisabled = false
  reachedTables = false
  /** The result is not, or not only, a second-stage leaf: its iova is none of the second stage. */
  firstStage = false
  /** Sees every entry that is read; with one, nothing is marked as accessed or dirty. */
  trace: WalkTrace | undefined = undefined

  readonly #memory: TableMemory
  readonly #has: Capabilities
  readonly #legacy: LegacyContext
  readonly #legacyRules: SecondStageRules
  readonly #scalable: ScalableContext
  readonly #firstStage: FirstStage
  readonly #nesting: Nesting
  /** The first page beyond the width of second-stage tables, by their levels. */
  readonly #endPages: readonly number[]
  /** The first page beyond the host's width. */
  readonly #hostEnd: number

  constructor(memory: TableMemory, has: Capabilities) {
    this.#memory = memory
    this.#has = has
    this.#legacy = new LegacyContext(memory, has)
    this.#legacyRules = new SecondStageRules(has, LEGACY_CODES)
    this.#scalable = new ScalableContext(memory, has)
    const rules = new SecondStageRules(has, SCALABLE_CODES)
    this.#nesting = { rules, root: 0, levels: 0, endPage: 0 }
    this.#firstStage = new FirstStage(memory, has)
    this.#hostEnd = 2 ** (has.hostAddressWidth - 12)
    this.#endPages = [0, 1, 2, 3, 4, 5].map(
      (levels) => 2 ** Math.min(9 * levels, has.addressWidth - 12),
    )
  }

  get capabilities(): Capabilities {
    return this.#has
  }

  /** What the tables say of the requester now. */
  state(source: number): AddressSpaceState {
    if (!this.enabled) return 'off'
    const { rootPage } = this
    const passes =
      this.mode === TABLE_MODE.scalable
        ? this.#scalable.lookup(rootPage, source, false) === 0 &&
          this.#scalable.type === PASID_TYPE.passThrough
        : this.mode === TABLE_MODE.legacy &&
          this.#legacy.lookup(rootPage, source, false) === 0 &&
          this.#legacy.translationType === TRANSLATION_TYPE.passThrough
    return passes ? 'identity' : 'translating'
  }

  /**
   * @param ats whether the request comes from a device TLB, so that its result is kept there
   * @returns 0 with `out` filled, or a code of `faults.ts`
   */
  translate(
    source: number,
    ats: boolean,
    page: number,
    wanted: AccessBits,
    out: PageTranslation,
  ): number {
    this.faultDisabled = false
    this.reachedTables = false
    this.firstStage = false
    if (page >= INTERRUPT_FIRST_PAGE && page <= INTERRUPT_LAST_PAGE) return CODE['interrupt-window']
    if (!this.enabled) return this.#identity(page, LAST_PAGE, out)
    switch (this.mode) {
      case TABLE_MODE.legacy:
        return this.#translateLegacy(source, ats, page, wanted, out)
      case TABLE_MODE.scalable:
        return this.#translateScalable(source, ats, page, wanted, out)
      default:
        return CODE['sm-root-table-invalid']
    }
  }

  #translateLegacy(
    source: number,
    ats: boolean,
    page: number,
    wanted: AccessBits,
    out: PageTranslation,
  ): number {
    const context = this.#legacy
    const refused = context.lookup(this.rootPage, source, ats, this.trace)
    this.faultDisabled = context.faultDisabled
    if (refused !== 0) return refused
    this.domain = context.domain
    this.pasid = 0
    this.reachedTables = true
    const { levels } = context
    const endPage = this.#endPages[levels]
    if (context.translationType === TRANSLATION_TYPE.passThrough) {
      if (this.#has.qemu) return this.#identity(page, LAST_PAGE, out)
      const end = Math.min(endPage, this.#hostEnd)
      return page >= end ? CODE['beyond-width'] : this.#identity(page, end - 1, out)
    }
    if (page >= endPage) return CODE['beyond-width']
    const code = walkSecondStage(
      this.#memory,
      this.#legacyRules,
      context.tableRoot,
      levels,
      page,
      wanted,
      out,
      this.trace,
    )
    return code === 0 ? this.#trim(page, out, CODE['output-interrupt']) : code
  }

  #translateScalable(
    source: number,
    ats: boolean,
    page: number,
    wanted: AccessBits,
    out: PageTranslation,
  ): number {
    const context = this.#scalable
    const refused = context.lookup(this.rootPage, source, ats, this.trace)
    this.faultDisabled = context.faultDisabled
    if (refused !== 0) return refused
    this.domain = context.domain
    this.pasid = context.pasid
    this.firstStage = context.type === PASID_TYPE.firstStage || context.type === PASID_TYPE.nested
    const code = this.#walkStages(context, page, wanted, out)
    if (code !== 0 || context.type === PASID_TYPE.passThrough) return code
    return this.#trim(page, out, CODE['sm-output-interrupt'])
  }

  /** The stages that the PASID entry names: one, the other, both or none (3.6 to 3.9). */
  #walkStages(
    context: ScalableContext,
    page: number,
    wanted: AccessBits,
    out: PageTranslation,
  ): number {
    const { type, firstStageRoot, firstStageLevels } = context
    const hostEnd = this.#hostEnd
    const nesting = this.#nesting
    nesting.root = context.secondStageRoot
    nesting.levels = context.secondStageLevels
    nesting.endPage = this.#endPages[context.secondStageLevels] ?? 0
    switch (type) {
      case PASID_TYPE.passThrough:
        return page >= hostEnd ? CODE['beyond-host-width'] : this.#identity(page, hostEnd - 1, out)
      case PASID_TYPE.secondStage:
        if (page >= nesting.endPage) return CODE['sm-beyond-width']
        return walkSecondStage(
          this.#memory,
          nesting.rules,
          nesting.root,
          nesting.levels,
          page,
          wanted,
          out,
          this.trace,
        )
      default: {
        const second = type === PASID_TYPE.nested ? nesting : undefined
        const stage = this.#firstStage
        return stage.walk(firstStageRoot, firstStageLevels, page, wanted, out, second, this.trace)
      }
    }
  }

  #identity(page: number, lastPage: number, out: PageTranslation): number {
    out.firstPage = 0
    out.lastPage = lastPage
    out.gpaPage = 0
    out.access = READWRITE
    cutInput(page, out)
    return 0
  }

  /**
   * Takes the interrupt window out of a leaf, on both of its sides: as an iova it is never
   * translated, and no table may lead into it (3.15). QEMU refuses the leaf as a whole.
   */
  #trim(page: number, out: PageTranslation, code: number): number {
    const { firstPage, lastPage, gpaPage } = out
    const lastGpaPage = gpaPage + (lastPage - firstPage)
    if (gpaPage <= INTERRUPT_LAST_PAGE && lastGpaPage >= INTERRUPT_FIRST_PAGE) {
      const target = gpaPage + (page - firstPage)
      const inside = target >= INTERRUPT_FIRST_PAGE && target <= INTERRUPT_LAST_PAGE
      if (inside || this.#has.qemu) return code
      const offset = gpaPage - firstPage
      cut(page, INTERRUPT_FIRST_PAGE - offset, INTERRUPT_LAST_PAGE - offset, out)
    }
    if (firstPage <= INTERRUPT_LAST_PAGE && lastPage >= INTERRUPT_FIRST_PAGE) cutInput(page, out)
    return 0
  }
}

function cutInput(page: number, out: PageTranslation): void {
  cut(page, INTERRUPT_FIRST_PAGE, INTERRUPT_LAST_PAGE, out)
}

/** Leaves of `out` the part on the side of `page`, which is outside `[first, last]`. */
function cut(page: number, first: number, last: number, out: PageTranslation): void {
  if (page < first) {
    out.lastPage = Math.min(out.lastPage, first - 1)
  } else if (out.firstPage <= last) {
    out.gpaPage += last + 1 - out.firstPage
    out.firstPage = last + 1
  }
}

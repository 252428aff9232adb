/**
 * One request through the unit: from RTADDR's tables to a range of guest memory, or to the code
 * of the fault (VT-d 4.1, 3.3 to 3.7). Numbers only; nothing is allocated and nothing is cached:
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
import { LegacyContext, TRANSLATION_TYPE } from './root-context'
import { LEGACY_CODES, SecondStageRules, walkSecondStage } from './second-stage'

/** A device's request in this window is an interrupt, not memory (VT-d 4.1 3.14). */
export const INTERRUPT_FIRST_PAGE = 0xfee00
export const INTERRUPT_LAST_PAGE = 0xfeeff

const READWRITE = 3

export class Translator {
  /** GSTS.TES. */
  enabled = false
  /** The root table's page and the mode of its tables, as SRTP latched them. */
  rootPage = 0
  /** The last request: its domain, and whether FPD hides its faults. */
  domain = 0
  faultDisabled = false

  readonly #memory: TableMemory
  readonly #has: Capabilities
  readonly #legacy: LegacyContext
  readonly #legacyRules: SecondStageRules

  constructor(memory: TableMemory, has: Capabilities) {
    this.#memory = memory
    this.#has = has
    this.#legacy = new LegacyContext(memory, has)
    this.#legacyRules = new SecondStageRules(has, LEGACY_CODES)
  }

  /** What the tables say of the requester now. */
  state(source: number): AddressSpaceState {
    if (!this.enabled) return 'off'
    const context = this.#legacy
    if (context.lookup(this.rootPage, source, false) !== 0) return 'translating'
    const passes = context.translationType === TRANSLATION_TYPE.passThrough
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
    if (page >= INTERRUPT_FIRST_PAGE && page <= INTERRUPT_LAST_PAGE) return CODE['interrupt-window']
    if (!this.enabled) return this.#identity(page, LAST_PAGE, out)
    return this.#translateLegacy(source, ats, page, wanted, out)
  }

  #translateLegacy(
    source: number,
    ats: boolean,
    page: number,
    wanted: AccessBits,
    out: PageTranslation,
  ): number {
    const context = this.#legacy
    const refused = context.lookup(this.rootPage, source, ats)
    this.faultDisabled = context.faultDisabled
    if (refused !== 0) return refused
    this.domain = context.domain
    if (context.translationType === TRANSLATION_TYPE.passThrough) {
      if (this.#has.qemu) return this.#identity(page, LAST_PAGE, out)
      if (page >= context.endPage) return CODE['beyond-width']
      return this.#identity(page, context.endPage - 1, out)
    }
    if (page >= context.endPage) return CODE['beyond-width']
    const { tableRoot, levels } = context
    const code = walkSecondStage(
      this.#memory,
      this.#legacyRules,
      tableRoot,
      levels,
      page,
      wanted,
      out,
    )
    return code === 0 ? this.#trim(page, out, CODE['output-interrupt']) : code
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
   * translated, and no table may lead into it (3.14). QEMU refuses the leaf as a whole.
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

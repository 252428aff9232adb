/**
 * What one requester sees through the unit, and who must hear when it ends.
 *
 * The object remembers under which domain it handed out translations: an invalidation names a
 * domain, and by the time it arrives the tables may name another one for this requester.
 */
import type { InspectOptions } from 'node:util'
import { LAST_PAGE, iovaRange } from '../../address'
import type { Access, AccessBits, Iova } from '../../address'
import { InvalidState } from '../../errors'
import { plain, shown, summary } from '../../inspect'
import { PageTranslation, translateByPage } from '../../memory/address-space'
import type {
  AddressSpace,
  AddressSpaceState,
  Fault,
  InvalidationSource,
  Notifier,
  SharedTranslation,
  Translation,
} from '../../memory/address-space'
import { requesterName } from '../iommu'
import { faultReason } from './faults'
import { SHARED, SHARED_WORDS } from './shared-address-space'
import type { IntelRefusal, SharedIntelState } from './shared-address-space'
import { INTERRUPT_FIRST_PAGE, INTERRUPT_LAST_PAGE, TABLE_MODE } from './translator'
import type { Translator } from './translator'

/** No translation was handed out since everything was last invalidated; or some under several. */
const NONE = -1
const MANY = -2

/** QEMU has a notifier on either side of the interrupt window, and tells the upper one first. */
const QEMU_SECTIONS = [
  [INTERRUPT_LAST_PAGE + 1, LAST_PAGE],
  [0, INTERRUPT_FIRST_PAGE - 1],
] as const

/** A refusal, to be recorded for the guest. */
export type Report = (
  space: IntelAddressSpace,
  page: number,
  code: number,
  wanted: AccessBits,
) => void

export class IntelAddressSpace implements AddressSpace {
  /** PCI: the guest has enabled the device's ATS. Set through `IntelIommu.setAts`. */
  ats = false

  readonly #translator: Translator
  readonly #report: Report
  readonly #qemu: boolean
  /** Replaced when one comes or goes, so that all of those that are told stay the same. */
  #notifiers: readonly Notifier[] = []
  readonly #scratch = new PageTranslation()
  #domain = NONE
  #pasid = NONE
  /**
   * Some were given by a first stage, whose addresses a second-stage invalidation does not name.
   */
  #firstStage = false
  #generation = 0
  /** How many hand out translations in other threads: under which domains is not known here. */
  #twins = 0

  constructor(
    /** The 16-bit source id. */
    readonly source: number,
    translator: Translator,
    report: Report,
    qemu: boolean,
  ) {
    this.#translator = translator
    this.#report = report
    this.#qemu = qemu
  }

  get requester(): number {
    return this.source
  }

  [shown](depth: number, options: InspectOptions): string {
    const fields = {
      requester: plain(requesterName(this.source)),
      state: this.state,
      ats: this.ats,
      generation: this.#generation,
      notifiers: this.#notifiers.length,
    }
    return summary('IntelAddressSpace', fields, depth, options)
  }

  get state(): AddressSpaceState {
    return this.#translator.state(this.source)
  }

  get generation(): number {
    return this.#generation
  }

  /** @throws TypeError for an access that is none of the four words */
  translate(at: Iova, wanted: Access): Translation | Fault {
    return translateByPage(this, this.#scratch, at, wanted, faultReason)
  }

  translatePage(page: number, wanted: AccessBits, out: PageTranslation): boolean {
    const translator = this.#translator
    const code = translator.translate(this.source, this.ats, page, wanted, out)
    out.reason = code
    if (code !== 0) {
      out.firstPage = page
      out.lastPage = page
      out.gpaPage = 0
      out.access = 0
      if (!out.quiet) this.#report(this, page, code, wanted)
      return false
    }
    const { domain, pasid } = translator
    if (translator.firstStage) this.#firstStage = true
    if (this.#domain !== domain) this.#domain = this.#domain === NONE ? domain : MANY
    if (this.#pasid !== pasid) this.#pasid = this.#pasid === NONE ? pasid : MANY
    return true
  }

  notify(notifier: Notifier): Disposable {
    const others = (): readonly Notifier[] => this.#notifiers.filter((one) => one !== notifier)
    this.#notifiers = [...others(), notifier]
    return {
      [Symbol.dispose]: () => {
        this.#notifiers = others()
      },
    }
  }

  /** @throws InvalidState ERR_UNSUPPORTED in QEMU's way, where not every change is told */
  share(): SharedTranslation {
    if (this.#qemu) {
      throw new InvalidState(
        'ERR_UNSUPPORTED',
        "an IOMMU with compat: 'qemu' does not tell every change, so it cannot be shared",
      )
    }
    const translator = this.#translator
    const words = new Float64Array(new SharedArrayBuffer(8 * SHARED_WORDS))
    const { source } = this
    const data: SharedIntelState = { source, capabilities: translator.capabilities, words }
    let shared = true
    this.#twins++
    return {
      module: 'iommu/intel/shared-address-space',
      export: 'openShared',
      data,
      publish: () => {
        words[SHARED.enabled] = translator.enabled ? 1 : 0
        words[SHARED.rootPage] = translator.rootPage
        words[SHARED.mode] = translator.mode
        words[SHARED.ats] = this.ats ? 1 : 0
        words[SHARED.generation] = this.#generation
      },
      record: (refusal) => {
        const { page, code, wanted, faultDisabled, reachedTables } = refusal as IntelRefusal
        translator.faultDisabled = faultDisabled
        translator.reachedTables = reachedTables
        this.#report(this, page, code, wanted)
      },
      [Symbol.dispose]: () => {
        if (shared) this.#twins--
        shared = false
      },
    }
  }

  /** Whether translations of the domain (and of the PASID, if one is given) may be held. */
  holds(domain: number, pasid?: number): boolean {
    if (this.#twins > 0) return true
    if (this.#domain !== domain && this.#domain !== MANY) return false
    return pasid === undefined || this.holdsPasid(pasid)
  }

  holdsPasid(pasid: number): boolean {
    return this.#twins > 0 || this.#pasid === pasid || this.#pasid === MANY
  }

  /** Nothing was handed out that anybody could still hold. */
  get idle(): boolean {
    return this.#domain === NONE
  }

  /** Tells every notifier, once (in QEMU's way, once per part of the address space). */
  invalidate(firstPage: number, lastPage: number, source: InvalidationSource): void {
    this.#generation++
    if (firstPage === 0 && lastPage === LAST_PAGE) {
      this.#domain = NONE
      this.#pasid = NONE
      this.#firstStage = false
    }
    if (!this.#qemu) {
      this.#tell(firstPage, lastPage, source)
      return
    }
    if (this.ats && source !== 'device-tlb') return
    const byPages = source === 'device-tlb' || source === 'iotlb'
    if (byPages && this.state !== 'translating') return
    for (const [first, last] of QEMU_SECTIONS) {
      if (firstPage > last || lastPage < first) continue
      this.#tell(Math.max(firstPage, first), Math.min(lastPage, last), source)
    }
  }

  /**
   * All are told even if one throws; the first error is thrown after, so that no wait descriptor
   * completes what has not happened. The one that threw may still hold anything: the invalidation
   * that is tried again must reach it.
   */
  #tell(firstPage: number, lastPage: number, source: InvalidationSource): void {
    let failed: { readonly error: unknown } | undefined
    for (const notifier of this.#notifiers) {
      try {
        if (notifier.invalidatePages !== undefined) {
          notifier.invalidatePages(firstPage, lastPage, source)
        } else {
          notifier.invalidate(iovaRange(firstPage, lastPage), source)
        }
      } catch (error) {
        failed ??= { error }
      }
    }
    if (failed === undefined) return
    this.#domain = MANY
    this.#pasid = MANY
    throw failed.error
  }

  /**
   * Pages of the second stage (6.5.2.3, table 23): where a first stage lies above it, they can be
   * anywhere, and all of the domain goes.
   */
  invalidateSecondStage(firstPage: number, lastPage: number): void {
    const elsewhere = this.#twins > 0 && this.#translator.mode === TABLE_MODE.scalable
    if (this.#firstStage || elsewhere) this.invalidateAll('iotlb')
    else this.invalidate(firstPage, lastPage, 'iotlb')
  }

  invalidateAll(source: InvalidationSource): void {
    this.invalidate(0, LAST_PAGE, source)
  }
}

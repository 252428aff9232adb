/**
 * What one requester sees through the unit, and who must hear when it ends.
 *
 * The object remembers under which domain it handed out translations: an invalidation names a
 * domain, and by the time it arrives the tables may name another one for this requester.
 */
import { LAST_PAGE, accessBits, accessOf, iovaRange, pageOf } from '../../address'
import type { Access, AccessBits, Gpa, Iova } from '../../address'
import { PageTranslation } from '../../memory/address-space'
import type {
  AddressSpace,
  AddressSpaceState,
  Fault,
  InvalidationSource,
  Notifier,
  Translation,
} from '../../memory/address-space'
import { faultReason } from './faults'
import type { Translator } from './translator'

/** No translation was handed out since everything was last invalidated; or some in several. */
const NO_DOMAIN = -1
const MANY_DOMAINS = -2

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
  readonly #notifiers = new Set<Notifier>()
  readonly #scratch = new PageTranslation()
  #domain = NO_DOMAIN
  #generation = 0

  constructor(
    /** The 16-bit source id. */
    readonly source: number,
    translator: Translator,
    report: Report,
  ) {
    this.#translator = translator
    this.#report = report
  }

  get requester(): number {
    return this.source
  }

  get state(): AddressSpaceState {
    return this.#translator.state(this.source)
  }

  get generation(): number {
    return this.#generation
  }

  /** @throws TypeError for an access that is none of the four words */
  translate(at: Iova, wanted: Access): Translation | Fault {
    const out = this.#scratch
    if (!this.translatePage(pageOf(at), accessBits(wanted), out)) {
      return { ok: false, iova: at, reason: faultReason(out.reason), wanted }
    }
    return {
      ok: true,
      iova: iovaRange(out.firstPage, out.lastPage),
      gpa: (BigInt(out.gpaPage) << 12n) as Gpa,
      access: accessOf(out.access),
    }
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
      this.#report(this, page, code, wanted)
      return false
    }
    if (this.#domain !== translator.domain) {
      this.#domain = this.#domain === NO_DOMAIN ? translator.domain : MANY_DOMAINS
    }
    return true
  }

  notify(notifier: Notifier): Disposable {
    this.#notifiers.add(notifier)
    return { [Symbol.dispose]: () => void this.#notifiers.delete(notifier) }
  }

  /** Whether translations of the domain may be held. */
  holds(domain: number): boolean {
    return this.#domain === domain || this.#domain === MANY_DOMAINS
  }

  /** Whether anything may be held at all. */
  get idle(): boolean {
    return this.#domain === NO_DOMAIN
  }

  /**
   * Tells every notifier, once. All are told even if one throws; the first error is thrown after,
   * so that no wait descriptor completes what has not happened.
   */
  invalidate(firstPage: number, lastPage: number, source: InvalidationSource): void {
    this.#generation++
    if (firstPage === 0 && lastPage === LAST_PAGE) this.#domain = NO_DOMAIN
    const errors: unknown[] = []
    for (const notifier of [...this.#notifiers]) {
      try {
        if (notifier.invalidatePages !== undefined) {
          notifier.invalidatePages(firstPage, lastPage, source)
        } else {
          notifier.invalidate(iovaRange(firstPage, lastPage), source)
        }
      } catch (error) {
        errors.push(error)
      }
    }
    if (errors.length > 0) throw errors[0]
  }

  invalidateAll(source: InvalidationSource): void {
    this.invalidate(0, LAST_PAGE, source)
  }
}

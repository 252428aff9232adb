/**
 * An address space that a test sets: mappings come and go by call, and nobody walks tables.
 *
 * As with a guest's tables, a change tells nobody; `invalidate` does. Each mapping is one
 * translation, as wide as it was set, less what was mapped or unmapped over it since.
 */
import { LAST_PAGE, accessBits, accessOf, iovaOfPage, iovaRange, pageOf } from '../address'
import type { Access, AccessBits, Gpa, Iova, Range } from '../address'
import { PageTranslation, translateByPage } from '../memory/address-space'
import type {
  AddressSpace,
  AddressSpaceState,
  Fault,
  FaultReason,
  InvalidationSource,
  Notifier,
  Translation,
} from '../memory/address-space'

interface Mapping {
  readonly firstPage: number
  readonly lastPage: number
  readonly gpaPage: number
  readonly access: AccessBits
}

const NOT_MAPPED = 1
const NOT_ALLOWED = 2
const REASONS: Readonly<Record<number, FaultReason>> = {
  [NOT_MAPPED]: { code: NOT_MAPPED, name: 'not mapped' },
  [NOT_ALLOWED]: { code: NOT_ALLOWED, name: 'not allowed' },
}
/** Faults kept; older ones are dropped. */
const FAULTS = 1024

export class FakeAddressSpace implements AddressSpace {
  state: AddressSpaceState
  readonly #mappings: Mapping[] = []
  readonly #notifiers = new Set<Notifier>()
  readonly #faults: Fault[] = []
  readonly #walked = new PageTranslation()
  #generation = 0

  /** @param state `'off'` and `'identity'` translate every iova to the same gpa */
  constructor(state: AddressSpaceState = 'translating') {
    this.state = state
  }

  get generation(): number {
    return this.#generation
  }

  /** What was refused so far, and recorded: the latest 1024. */
  get faults(): readonly Fault[] {
    return this.#faults
  }

  /** Maps whole pages, over what was there. @throws RangeError for parts of pages */
  map(range: Range<Iova>, to: Gpa, access: Access): void {
    if (((range.first | to) & 0xfffn) !== 0n || (range.last & 0xfffn) !== 0xfffn) {
      throw new RangeError('a mapping covers whole pages')
    }
    this.mapPages(pageOf(range.first), pageOf(range.last), pageOf(to), accessBits(access))
  }

  unmap(range: Range<Iova>): void {
    this.unmapPages(pageOf(range.first), pageOf(range.last))
  }

  /** Tells all notifiers; when it returns, all have done their part. */
  invalidate(range: Range<Iova>, source: InvalidationSource = 'device-tlb'): void {
    this.invalidatePages(pageOf(range.first), pageOf(range.last), source)
  }

  /** The number twins: inclusive pages. */
  mapPages(firstPage: number, lastPage: number, gpaPage: number, access: AccessBits): void {
    if (!(firstPage >= 0 && firstPage <= lastPage && lastPage <= LAST_PAGE)) {
      throw new RangeError(`not an inclusive range of pages: ${firstPage} to ${lastPage}`)
    }
    this.unmapPages(firstPage, lastPage)
    this.#mappings.push({ firstPage, lastPage, gpaPage, access })
  }

  unmapPages(firstPage: number, lastPage: number): void {
    for (const old of this.#mappings.splice(0)) {
      if (old.lastPage < firstPage || old.firstPage > lastPage) this.#mappings.push(old)
      else this.#keepBeside(old, firstPage, lastPage)
    }
  }

  invalidatePages(
    firstPage = 0,
    lastPage = LAST_PAGE,
    source: InvalidationSource = 'device-tlb',
  ): void {
    this.#generation++
    for (const notifier of this.#notifiers) {
      if (notifier.invalidatePages) notifier.invalidatePages(firstPage, lastPage, source)
      else notifier.invalidate(iovaRange(firstPage, lastPage), source)
    }
  }

  translate(at: Iova, wanted: Access): Translation | Fault {
    return translateByPage(this, this.#walked, at, wanted, (code) => REASONS[code])
  }

  translatePage(page: number, wanted: AccessBits, out: PageTranslation): boolean {
    const mapping = this.#find(page)
    if (mapping === undefined) return this.#refuse(page, wanted, NOT_MAPPED, out)
    out.firstPage = mapping.firstPage
    out.lastPage = mapping.lastPage
    out.gpaPage = mapping.gpaPage
    out.access = mapping.access
    out.reason = 0
    if (mapping.access === 0) return this.#refuse(page, wanted, NOT_MAPPED, out)
    if ((mapping.access & wanted) === wanted) return true
    return this.#refuse(page, wanted, NOT_ALLOWED, out)
  }

  notify(notifier: Notifier): Disposable {
    this.#notifiers.add(notifier)
    return { [Symbol.dispose]: () => void this.#notifiers.delete(notifier) }
  }

  #find(page: number): Mapping | undefined {
    if (this.state !== 'translating') {
      return { firstPage: 0, lastPage: LAST_PAGE, gpaPage: 0, access: 3 }
    }
    return this.#mappings.find((one) => one.firstPage <= page && one.lastPage >= page)
  }

  #refuse(page: number, wanted: AccessBits, reason: number, out: PageTranslation): boolean {
    out.access = 0
    out.reason = reason
    if (wanted !== 0 && !out.quiet) {
      const fault = { iova: iovaOfPage(page), reason: REASONS[reason], wanted: accessOf(wanted) }
      this.#faults.push({ ok: false, ...fault })
      if (this.#faults.length > FAULTS) this.#faults.shift()
    }
    return false
  }

  #keepBeside(old: Mapping, firstPage: number, lastPage: number): void {
    if (old.firstPage < firstPage) this.#mappings.push({ ...old, lastPage: firstPage - 1 })
    if (old.lastPage > lastPage) {
      const gpaPage = old.gpaPage + (lastPage + 1 - old.firstPage)
      this.#mappings.push({ ...old, firstPage: lastPage + 1, gpaPage })
    }
  }
}

/**
 * An address space seen through a window: a range of iovas that stands for another range of the
 * same size in a target, as a bus bridge or a memory region's alias shows it.
 *
 * Translations are cut to the window, and invalidations reach the notifier in the window's iovas.
 * Outside of it nothing is translated.
 */
import type { InspectOptions } from 'node:util'
import { PAGE_SIZE, accessBits, iovaOfPage, iovaRange, pageOf } from '../address'
import type { Access, AccessBits, Iova, Range } from '../address'
import { hex, plain, shown, summary } from '../inspect'
import { OUTSIDE_WINDOW } from './address-space'
import type {
  AddressSpace,
  AddressSpaceState,
  Fault,
  InvalidationSource,
  Notifier,
  PageTranslation,
  Translation,
} from './address-space'

export interface AliasWindow {
  /** The iovas of the alias: page aligned. */
  readonly range: Range<Iova>
  /** The target's iova that `range.first` stands for: page aligned. */
  readonly target: Iova
}

const END = 1n << 64n

export class AddressSpaceAlias implements AddressSpace {
  readonly requester?: number
  readonly #target: AddressSpace
  readonly #firstPage: number
  readonly #lastPage: number
  /** Add it to a page of the window for the page of the target. */
  readonly #offset: number

  /**
   * @throws RangeError for a window that is empty, not page aligned, or beyond 2^64 in the target
   */
  constructor(target: AddressSpace, window: AliasWindow) {
    const { first, last } = window.range
    const page = BigInt(PAGE_SIZE)
    if (first > last || first % page !== 0n || (last + 1n) % page !== 0n) {
      throw new RangeError('an alias shows whole pages, and at least one')
    }
    if (window.target % page !== 0n || window.target + (last - first) >= END) {
      throw new RangeError('an alias stands for whole pages of its target')
    }
    if (target.requester !== undefined) this.requester = target.requester
    this.#target = target
    this.#firstPage = pageOf(first)
    this.#lastPage = pageOf(last)
    this.#offset = pageOf(window.target) - this.#firstPage
  }

  [shown](depth: number, options: InspectOptions): string {
    const { first, last } = iovaRange(this.#firstPage, this.#lastPage)
    const fields = {
      window: plain(`0x${first.toString(16)}-0x${last.toString(16)}`),
      standsFor: hex(iovaOfPage(this.#firstPage + this.#offset)),
      target: this.#target,
    }
    return summary('AddressSpaceAlias', fields, depth, options)
  }

  get state(): AddressSpaceState {
    return this.#target.state
  }

  get generation(): number {
    return this.#target.generation
  }

  /** @throws TypeError for an access that is none of the four words */
  translate(at: Iova, wanted: Access): Translation | Fault {
    accessBits(wanted)
    const page = pageOf(at)
    if (page < this.#firstPage || page > this.#lastPage) {
      return { ok: false, iova: at, reason: OUTSIDE_WINDOW, wanted }
    }
    const shift = BigInt(this.#offset) * BigInt(PAGE_SIZE)
    const result = this.#target.translate((at + shift) as Iova, wanted)
    if (!result.ok) return { ...result, iova: at }
    const first = Math.max(pageOf(result.iova.first) - this.#offset, this.#firstPage)
    const last = Math.min(pageOf(result.iova.last) - this.#offset, this.#lastPage)
    const iova = iovaRange(first, last)
    const cut = iova.first + shift - result.iova.first
    return { ...result, iova, gpa: (result.gpa + cut) as typeof result.gpa }
  }

  translatePage(page: number, wanted: AccessBits, out: PageTranslation): boolean {
    if (page < this.#firstPage || page > this.#lastPage) {
      refuse(page, out)
      return false
    }
    const offset = this.#offset
    const granted = this.#target.translatePage(page + offset, wanted, out)
    const first = Math.max(out.firstPage - offset, this.#firstPage)
    out.gpaPage += granted ? first - (out.firstPage - offset) : 0
    out.firstPage = first
    out.lastPage = Math.min(out.lastPage - offset, this.#lastPage)
    return granted
  }

  notify(notifier: Notifier): Disposable {
    const tell = (first: number, last: number, source: InvalidationSource): void => {
      const from = Math.max(first - this.#offset, this.#firstPage)
      const to = Math.min(last - this.#offset, this.#lastPage)
      if (from > to) return
      if (notifier.invalidatePages !== undefined) notifier.invalidatePages(from, to, source)
      else notifier.invalidate(iovaRange(from, to), source)
    }
    return this.#target.notify({
      invalidate: (range, source) => {
        tell(pageOf(range.first), pageOf(range.last), source)
      },
      invalidatePages: tell,
    })
  }
}

function refuse(page: number, out: PageTranslation): void {
  out.firstPage = page
  out.lastPage = page
  out.gpaPage = 0
  out.access = 0
  out.reason = OUTSIDE_WINDOW.code
}

/**
 * What a trace tells of a guest's tables, as an address space for handlers that are simulated.
 *
 * A trace does not hold the tables, but what was seen of them: walks that were made, and pages that
 * stood in a ring. A page is known from then until an invalidation covers it. Invalidations of
 * everything say nothing about which pages are gone; there, what a ring still needs is kept.
 */
import { LAST_PAGE } from '../address'
import type { AccessBits } from '../address'
import { Shadow } from '../iotlb/shadow'
import type { AddressSpace, Notifier, PageTranslation } from '../memory/address-space'
import { SOURCES } from './event'
import type { EventOf } from './event'

/** Ranges that are remembered; older ones are forgotten. */
const RANGES = 1 << 20
const NOT_KNOWN = 1

export class KnownTables implements AddressSpace {
  readonly state = 'translating'
  readonly generation = 0
  readonly #ranges = new Shadow(RANGES)
  readonly #notifiers = new Set<Notifier>()

  learn({ firstPage, lastPage, gpaPage, access }: EventOf<'mapped' | 'walk'>): void {
    const ranges = this.#ranges
    const slot = ranges.find(firstPage)
    if (slot >= 0 && ranges.lastPage(slot) === lastPage && ranges.hvaPage(slot) === gpaPage) {
      if (ranges.firstPage(slot) === firstPage && ranges.access(slot) === access) return
    }
    ranges.remove(firstPage, lastPage)
    ranges.insert(firstPage, lastPage, gpaPage, access as AccessBits)
  }

  /** @param needed calls back for each page that is surely still mapped */
  invalidate(event: EventOf<'invalidation'>, needed: (keep: (page: number) => void) => void): void {
    const { firstPage, lastPage } = event
    if (firstPage === 0 && lastPage === LAST_PAGE) this.#keepOnly(needed)
    else this.#ranges.remove(firstPage, lastPage)
    for (const notifier of this.#notifiers) {
      notifier.invalidatePages?.(firstPage, lastPage, SOURCES[event.source])
    }
  }

  translate(): never {
    throw new TypeError('a handler walks by page')
  }

  translatePage(page: number, wanted: AccessBits, out: PageTranslation): boolean {
    const ranges = this.#ranges
    const slot = ranges.find(page)
    out.access = slot < 0 ? 0 : ranges.access(slot)
    const granted = slot >= 0 && (out.access & wanted) === wanted
    out.reason = granted ? 0 : NOT_KNOWN
    out.firstPage = granted ? ranges.firstPage(slot) : page
    out.lastPage = granted ? ranges.lastPage(slot) : page
    out.gpaPage = granted ? ranges.hvaPage(slot) : 0
    return granted
  }

  notify(notifier: Notifier): Disposable {
    this.#notifiers.add(notifier)
    return { [Symbol.dispose]: () => void this.#notifiers.delete(notifier) }
  }

  #keepOnly(needed: (keep: (page: number) => void) => void): void {
    const ranges = this.#ranges
    const kept = new Map<number, readonly [number, number, AccessBits]>()
    needed((page) => {
      const slot = ranges.find(page)
      if (slot < 0) return
      const range = [ranges.lastPage(slot), ranges.hvaPage(slot), ranges.access(slot)] as const
      kept.set(ranges.firstPage(slot), range)
    })
    ranges.clear()
    for (const [firstPage, [lastPage, gpaPage, access]] of kept) {
      ranges.insert(firstPage, lastPage, gpaPage, access)
    }
  }
}

/**
 * One answer in the making: a walk, clipped to host memory, and what grows around it.
 *
 * A device can be given only what is both translated and backed by one region of guest memory: a
 * vhost worker that meets a hole in host memory spins for ever. This is the one place where a
 * translation becomes a host address, so it is the place that clips.
 */
import { LAST_PAGE, PAGE_SIZE } from '../address'
import type { AccessBits } from '../address'
import { PageTranslation } from '../memory/address-space'
import type { AddressSpace } from '../memory/address-space'
import type { GrowingReply } from './reply-policy'
import type { Shadow } from './shadow'
import { count } from './stats'

/** What the loop needs of `GuestMemory`. */
export interface HostMemory {
  /** The region that holds the guest-physical address, or undefined. */
  find(gpa: number): HostRegion | undefined
}

export interface HostRegion {
  /** Guest-physical address of the first byte, and of the byte after the last; page aligned. */
  readonly start: number
  readonly end: number
  /** The host page of the first byte. */
  readonly hvaPage: number
}

/** translation: the tables refuse. memory: they grant what is not guest memory. */
export type WalkRefusal = 'translation' | 'memory'

/** Neighbours looked at for one reply, whatever the policy: what bounds the work of a miss. */
const NEIGHBOURS = 512

export class Reply implements GrowingReply {
  firstPage = 0
  lastPage = 0
  /** The host page of `firstPage`. */
  hvaPage = 0
  /** All that the tables grant. */
  access: AccessBits = 0
  /** After a refused walk: whose it was, and the reason code of the tables. */
  refusal: WalkRefusal = 'translation'
  reason = 0
  readonly #found = new PageTranslation()
  #region: HostRegion | undefined
  #neighbours = 0

  constructor(
    private readonly space: AddressSpace,
    private readonly memory: HostMemory,
    private readonly shadow: Shadow,
    private readonly counters: Float64Array,
  ) {}

  get pages(): number {
    return this.lastPage - this.firstPage + 1
  }

  /**
   * Walks to a page, and becomes the widest true range around it that one region backs.
   * @param quiet a refusal is not recorded as the device's fault
   */
  walk(page: number, wanted: AccessBits, quiet: boolean): boolean {
    const found = this.#found
    this.counters[count.translations]++
    this.#neighbours = NEIGHBOURS
    found.reason = 0
    found.quiet = quiet
    found.above = 0
    found.below = 0
    const granted = this.space.translatePage(page, wanted, found)
    if (!granted || found.access === 0 || (found.access & wanted) !== wanted) {
      this.refusal = 'translation'
      this.reason = found.reason
      return false
    }
    const gpaPage = found.gpaPage + (page - found.firstPage)
    const region = this.memory.find(gpaPage * PAGE_SIZE)
    if (region === undefined) {
      this.refusal = 'memory'
      this.reason = 0
      return false
    }
    const below = Math.min(page - found.firstPage, gpaPage - region.start / PAGE_SIZE)
    const above = Math.min(found.lastPage - page, region.end / PAGE_SIZE - 1 - gpaPage)
    this.#region = region
    this.firstPage = page - below
    this.lastPage = page + above
    this.hvaPage = region.hvaPage + (gpaPage - below - region.start / PAGE_SIZE)
    this.access = found.access
    return true
  }

  growUp(most: number): number {
    const next = this.lastPage + 1
    const limit = Math.min(most, this.#freeAbove(next))
    const added = limit > 0 ? this.#continues(next, this.hvaPage + this.pages, limit, 1) : 0
    this.lastPage += added
    return added
  }

  growDown(most: number): number {
    const next = this.firstPage - 1
    const limit = Math.min(most, this.#freeBelow(next))
    const added = limit > 0 ? this.#continues(next, this.hvaPage - 1, limit, -1) : 0
    this.firstPage -= added
    this.hvaPage -= added
    return added
  }

  /** Grows as far as it can within a range, over what the device holds there already. */
  growWithin(firstPage: number, lastPage: number): void {
    while (this.lastPage < lastPage) {
      const next = this.lastPage + 1
      const added = this.#continues(next, this.hvaPage + this.pages, lastPage - this.lastPage, 1)
      if (added === 0) break
      this.lastPage += added
    }
    while (this.firstPage > firstPage) {
      const next = this.firstPage - 1
      const added = this.#continues(next, this.hvaPage - 1, this.firstPage - firstPage, -1)
      if (added === 0) break
      this.firstPage -= added
      this.hvaPage -= added
    }
  }

  /** How many pages from `page` upwards the device does not hold. */
  #freeAbove(page: number): number {
    if (page > LAST_PAGE) return 0
    const slot = this.shadow.findFrom(page)
    return slot < 0 ? Infinity : this.shadow.firstPage(slot) - page
  }

  #freeBelow(page: number): number {
    if (page < 0) return 0
    const slot = this.shadow.findUpTo(page)
    return slot < 0 ? Infinity : page - this.shadow.lastPage(slot)
  }

  /**
   * How many pages from `page` on (`step` 1 up, -1 down), at most `most`, one more translation
   * maps to the host memory from `hvaPage` on, in the same region and with the same access.
   */
  #continues(page: number, hvaPage: number, most: number, step: 1 | -1): number {
    const region = this.#region
    if (region === undefined || page < 0 || page > LAST_PAGE || this.#neighbours === 0) return 0
    this.#neighbours--
    this.counters[count.translations]++
    const found = this.#found
    const further = Math.min(most, NEIGHBOURS) - 1
    found.above = step === 1 ? further : 0
    found.below = step === 1 ? 0 : further
    if (!this.space.translatePage(page, 0, found) || found.access !== this.access) return 0
    const gpaPage = found.gpaPage + (page - found.firstPage)
    const offset = gpaPage - region.start / PAGE_SIZE
    const pages = (region.end - region.start) / PAGE_SIZE
    if (offset < 0 || offset >= pages || region.hvaPage + offset !== hvaPage) return 0
    return step === 1
      ? Math.min(most, found.lastPage - page + 1, pages - offset)
      : Math.min(most, page - found.firstPage + 1, offset + 1)
  }
}

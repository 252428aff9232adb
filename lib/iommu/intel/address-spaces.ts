/**
 * The address spaces of one unit, and which of them an invalidation reaches.
 *
 * A device with ATS on keeps what it was told until a device-TLB descriptor names it; a device
 * with ATS off has nothing of its own, so that for it the IOTLB descriptors count (VT-d 5.10 4.1,
 * 6.5.2). Whatever changes the tables under a device reaches it always: the guest cannot be relied
 * on to follow with a device-TLB descriptor, and keeping a dead translation would be a leak.
 */
import { LAST_PAGE } from '../../address'
import type { InvalidationSource } from '../../memory/address-space'
import { IntelAddressSpace } from './address-space'
import type { Report } from './address-space'
import type { Capabilities } from './capabilities'
import { TABLE_MODE } from './translator'
import type { Translator } from './translator'

export class AddressSpaces {
  readonly #spaces = new Map<number, IntelAddressSpace>()
  readonly #translator: Translator
  readonly #report: Report
  readonly #qemu: boolean

  constructor(translator: Translator, has: Capabilities, report: Report) {
    this.#translator = translator
    this.#report = report
    this.#qemu = has.qemu
  }

  /** The same object for the same requester each time. */
  of(source: number): IntelAddressSpace {
    let space = this.#spaces.get(source)
    if (space === undefined) {
      space = new IntelAddressSpace(source, this.#translator, this.#report, this.#qemu)
      this.#spaces.set(source, space)
    }
    return space
  }

  /** Without making an address space for one that nobody asked for. */
  hasAts(source: number): boolean {
    return this.#spaces.get(source)?.ats ?? false
  }

  everything(source: InvalidationSource): void {
    this.#each(
      () => true,
      (space) => {
        space.invalidateAll(source)
      },
    )
  }

  /** Context entries of a domain: also those of which nothing is known to be held. */
  contextDomain(domain: number): void {
    // In scalable mode a context entry has no domain: all of them are meant (6.5.2.1).
    if (this.#translator.mode === TABLE_MODE.scalable) this.everything('context')
    else this.pasidCache(domain, undefined)
  }

  /** PASID entries of a domain, or of one PASID in it; each implies the translations under it. */
  pasidCache(domain: number, pasid: number | undefined): void {
    if (this.#qemu) {
      this.everything('context')
      return
    }
    this.#each(
      (space) => space.idle || space.holds(domain, pasid),
      (space) => {
        space.invalidateAll('context')
      },
    )
  }

  /** @param ignored source id bits that do not matter (FM) */
  contextDevice(sourceId: number, ignored: number): void {
    this.#each(
      (space) =>
        ((space.source ^ sourceId) & ~ignored) === 0 && !(this.#qemu && space.state === 'identity'),
      (space) => {
        space.invalidateAll('context')
      },
    )
  }

  iotlbEverything(): void {
    this.#each(
      (space) => !space.ats,
      (space) => {
        space.invalidateAll('iotlb')
      },
    )
  }

  iotlbDomain(domain: number): void {
    this.#iotlb(domain, undefined, 0, LAST_PAGE)
  }

  /** @param mask how many low bits of the page number do not matter (AM) */
  iotlbPages(domain: number, page: number, mask: number): void {
    const first = this.#qemu ? page : alignedDown(page, mask)
    const last = lastOf(first, mask)
    this.#each(
      (space) => !space.ats && space.holds(domain),
      (space) => {
        space.invalidateSecondStage(first, last)
      },
    )
  }

  pasidIotlb(domain: number, pasid: number): void {
    this.#iotlb(domain, pasid, 0, LAST_PAGE)
  }

  pasidIotlbPages(domain: number, pasid: number, page: number, mask: number): void {
    const first = alignedDown(page, mask)
    this.#iotlb(domain, pasid, first, lastOf(first, mask))
  }

  #iotlb(domain: number, pasid: number | undefined, firstPage: number, lastPage: number): void {
    this.#each(
      (space) => !space.ats && space.holds(domain, pasid),
      (space) => {
        space.invalidate(firstPage, lastPage, 'iotlb')
      },
    )
  }

  /**
   * A source id that is not here is no error: the descriptor may be for another device.
   * @param pasid undefined for all
   */
  deviceTlb(sourceId: number, firstPage: number, lastPage: number, pasid?: number): void {
    const space = this.#spaces.get(sourceId)
    if (space?.ats !== true || (pasid !== undefined && !space.holdsPasid(pasid))) return
    space.invalidate(firstPage, lastPage, 'device-tlb')
  }

  /** All are told even if one fails; then the first error is thrown. */
  #each(
    which: (space: IntelAddressSpace) => boolean,
    what: (space: IntelAddressSpace) => void,
  ): void {
    let failed: { readonly error: unknown } | undefined
    for (const space of this.#spaces.values()) {
      if (!which(space)) continue
      try {
        what(space)
      } catch (error) {
        failed ??= { error }
      }
    }
    if (failed !== undefined) throw failed.error
  }
}

function alignedDown(page: number, mask: number): number {
  return page - (page % 2 ** mask)
}

function lastOf(first: number, mask: number): number {
  return Math.min(first + 2 ** mask - 1, LAST_PAGE)
}

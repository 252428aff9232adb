/**
 * The address spaces of one unit, and which of them an invalidation reaches.
 *
 * A device with ATS on keeps what it was told until a device-TLB descriptor names it; a device
 * with ATS off has nothing of its own, so that for it the IOTLB descriptors count (VT-d 4.1 4.1,
 * 6.5.2). Whatever changes the tables under a device reaches it always: the guest cannot be relied
 * on to follow with a device-TLB descriptor, and keeping a dead translation would be a leak.
 */
import { LAST_PAGE } from '../../address'
import type { InvalidationSource } from '../../memory/address-space'
import { IntelAddressSpace } from './address-space'
import type { Report } from './address-space'
import type { Translator } from './translator'

export class AddressSpaces {
  readonly #spaces = new Map<number, IntelAddressSpace>()
  readonly #translator: Translator
  readonly #report: Report

  constructor(translator: Translator, report: Report) {
    this.#translator = translator
    this.#report = report
  }

  /** The same object for the same requester each time. */
  of(source: number): IntelAddressSpace {
    let space = this.#spaces.get(source)
    if (space === undefined) {
      space = new IntelAddressSpace(source, this.#translator, this.#report)
      this.#spaces.set(source, space)
    }
    return space
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
    this.#each(
      (space) => space.idle || space.holds(domain),
      (space) => {
        space.invalidateAll('context')
      },
    )
  }

  /** @param ignored source id bits that do not matter (FM) */
  contextDevice(sourceId: number, ignored: number): void {
    this.#each(
      (space) => ((space.source ^ sourceId) & ~ignored) === 0,
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
    this.iotlbPages(domain, 0, LAST_PAGE)
  }

  iotlbPages(domain: number, firstPage: number, lastPage: number): void {
    this.#each(
      (space) => !space.ats && space.holds(domain),
      (space) => {
        space.invalidate(firstPage, lastPage, 'iotlb')
      },
    )
  }

  /** A source id that is not here is no error: the descriptor may be for another device. */
  deviceTlb(sourceId: number, firstPage: number, lastPage: number): void {
    const space = this.#spaces.get(sourceId)
    if (space?.ats === true) space.invalidate(firstPage, lastPage, 'device-tlb')
  }

  /** All are told even if one fails; then the first error is thrown. */
  #each(
    which: (space: IntelAddressSpace) => boolean,
    what: (space: IntelAddressSpace) => void,
  ): void {
    const errors: unknown[] = []
    for (const space of this.#spaces.values()) {
      if (!which(space)) continue
      try {
        what(space)
      } catch (error) {
        errors.push(error)
      }
    }
    if (errors.length > 0) throw errors[0]
  }
}

/**
 * The address space of a function whose bus number the guest can change: whoever looks through it
 * always sees that of the source id that the function has now.
 *
 * A change of the number takes back everything that was handed out under the old one.
 */
import { LAST_PAGE, iovaRange } from '../address'
import type { Access, AccessBits, Iova } from '../address'
import type { Iommu } from '../iommu/iommu'
import type {
  AddressSpace,
  AddressSpaceState,
  Fault,
  Notifier,
  PageTranslation,
  Translation,
} from '../memory/address-space'

interface Registration {
  readonly notifier: Notifier
  behind: Disposable
}

export class RequesterSpace implements AddressSpace {
  readonly #iommu: Iommu
  readonly #registrations = new Set<Registration>()
  #source: number
  #space: AddressSpace
  #changes = 0

  constructor(iommu: Iommu, source: number) {
    this.#iommu = iommu
    this.#source = source
    this.#space = iommu.addressSpace(source)
  }

  get requester(): number {
    return this.#source
  }

  set requester(source: number) {
    if (source === this.#source) return
    this.#source = source
    this.#space = this.#iommu.addressSpace(source)
    this.#changes++
    for (const registration of this.#registrations) {
      registration.behind[Symbol.dispose]()
      registration.behind = this.#space.notify(registration.notifier)
      registration.notifier.invalidate(iovaRange(0, LAST_PAGE), 'disabled')
    }
  }

  get state(): AddressSpaceState {
    return this.#space.state
  }

  get generation(): number {
    return this.#space.generation + this.#changes
  }

  translate(at: Iova, wanted: Access): Translation | Fault {
    return this.#space.translate(at, wanted)
  }

  translatePage(page: number, wanted: AccessBits, out: PageTranslation): boolean {
    return this.#space.translatePage(page, wanted, out)
  }

  notify(notifier: Notifier): Disposable {
    const registration = { notifier, behind: this.#space.notify(notifier) }
    this.#registrations.add(registration)
    return {
      [Symbol.dispose]: () => {
        this.#registrations.delete(registration)
        registration.behind[Symbol.dispose]()
      },
    }
  }
}

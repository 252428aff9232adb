/**
 * What a device sees: iovas, some of which are translated to guest-physical memory.
 *
 * This is the seam between those who translate (`iommu/`) and those who must hold translations
 * and hear of their end (`iotlb/`). Neither knows the other by name.
 *
 * Everything is counted in 4 KiB pages on the hot path, and every range is inclusive. A translation
 * is the widest true range around the address: two pages are in one translation only if the same
 * table entry, identity or window grants both.
 */
import { accessBits, accessOf, iovaRange, pageOf } from '../address'
import type { Access, AccessBits, Gpa, Iova, Range } from '../address'
import type { GuestMemory } from './guest-memory'

/** Why an address was refused: a mnemonic, the code of the specification where there is one. */
export interface FaultReason {
  /**
   * The reason code of VT-d 5.10 7.1.3, table 30; from 0x100 on what the specification does not
   * number.
   */
  readonly code: number
  readonly name: string
}

/** A device's access to 0xfee00000 to 0xfeefffff is an interrupt, not memory (VT-d 5.10 3.15). */
export const INTERRUPT_WINDOW: FaultReason = { code: 0x100, name: 'interrupt-window' }
/** The address is outside the window of an alias (`alias.ts`). */
export const OUTSIDE_WINDOW: FaultReason = { code: 0x101, name: 'outside-window' }

export interface Translation {
  readonly ok: true
  /** The widest true range around the address asked for. */
  readonly iova: Range<Iova>
  /** Where `iova.first` is in guest-physical memory. */
  readonly gpa: Gpa
  /** What the tables grant, which may be more than was wanted, and never less. */
  readonly access: Access
}

export interface Fault {
  readonly ok: false
  readonly iova: Iova
  readonly reason: FaultReason
  readonly wanted: Access
}

/**
 * The number twin of `Translation | Fault`, reused by its caller: nothing is allocated per walk.
 */
export class PageTranslation {
  /** Inclusive page range around the page asked for. */
  firstPage = 0
  lastPage = 0
  /** The guest-physical page of `firstPage`. */
  gpaPage = 0
  access: AccessBits = 0
  /** The code of the `FaultReason` when the translation failed, 0 otherwise. */
  reason = 0
  /**
   * Set by the caller: what is refused is not recorded, because it is not known that a device asks.
   */
  quiet: boolean | undefined = undefined
  /**
   * Set by the caller: so many pages on either side of the leaf may come with it, where the tables
   * map them on, with the same access. Whoever translates may leave that undone.
   */
  above: number | undefined = undefined
  below: number | undefined = undefined
}

/**
 * Why something was invalidated. device-tlb and iotlb: the guest named pages. context: what leads
 * to the tables changed. disabled: translation or the device's ATS was switched, or all was reset.
 */
export type InvalidationSource = 'device-tlb' | 'iotlb' | 'context' | 'disabled'

/**
 * Who must hear of an invalidation. The call is synchronous, and its return is the completion:
 * when it returns, nobody behind the notifier uses the old translation.
 */
export interface Notifier {
  invalidate(range: Range<Iova>, source: InvalidationSource): void
  /** The number twin, called instead of `invalidate` where it is there. Inclusive pages. */
  invalidatePages?(firstPage: number, lastPage: number, source: InvalidationSource): void
}

/**
 * off: no IOMMU in the path, iova is gpa. identity: the IOMMU passes requests through.
 * translating: tables decide.
 */
export type AddressSpaceState = 'off' | 'identity' | 'translating'

export interface AddressSpace {
  /** The 16-bit source id of the one who looks through it, where there is exactly one. */
  readonly requester?: number
  readonly state: AddressSpaceState
  /** Rises at each invalidation that reaches this address space, and at each change of state. */
  readonly generation: number
  /**
   * A refusal is recorded where the specification says so, and returned. Never throws. `none`
   * asks what is there, for one who looks ahead: it is granted where anything is, and what is
   * refused is not recorded, because no device asked.
   */
  translate(at: Iova, wanted: Access): Translation | Fault
  /**
   * The hot path: fills `out`, answers whether `wanted` is granted. Records faults likewise, and
   * for `wanted` 0, or where `out.quiet` is set, none.
   */
  translatePage(page: number, wanted: AccessBits, out: PageTranslation): boolean
  /** Disposing ends the notifications. */
  notify(notifier: Notifier): Disposable
  /**
   * For one who translates in another thread too. Until it is disposed, notifications may be of
   * more than was handed out. Not every address space can be shared.
   * @throws InvalidState ERR_UNSUPPORTED where this one cannot be, as it is set up
   */
  share?(): SharedTranslation
}

/** How another thread of the process makes a twin of an address space, over the same memory. */
export interface SharedTranslation extends Disposable {
  /** The module that makes the twin: an absolute path, or one below the library's own folder. */
  readonly module: string
  /** The name of the `SharedAddressSpaceMaker` in it. */
  readonly export: string
  /** For the maker. `postMessage` can carry it. */
  readonly data: unknown
  /**
   * Tells the twin what has changed, apart from guest memory. To be called first, and in each
   * notification, while the twin translates nothing.
   */
  publish(): void
  /** Records what the twin was refused, as if it had been refused here. */
  record(refusal: unknown): void
}

/**
 * @param refused takes what `SharedTranslation.record` is to be called with, in the other thread
 */
export type SharedAddressSpaceMaker = (
  data: unknown,
  memory: GuestMemory,
  refused: (refusal: unknown) => void,
) => AddressSpace

/**
 * `translate` for one who has `translatePage`: the same answer in the words of the callers.
 * @param out what to walk into
 * @param reasonOf the reason that a code stands for
 * @throws TypeError for an access that is none of the four words
 */
export function translateByPage(
  space: Pick<AddressSpace, 'translatePage'>,
  out: PageTranslation,
  at: Iova,
  wanted: Access,
  reasonOf: (code: number) => FaultReason,
): Translation | Fault {
  if (!space.translatePage(pageOf(at), accessBits(wanted), out)) {
    return { ok: false, iova: at, reason: reasonOf(out.reason), wanted }
  }
  return {
    ok: true,
    iova: iovaRange(out.firstPage, out.lastPage),
    gpa: (BigInt(out.gpaPage) << 12n) as Gpa,
    access: accessOf(out.access),
  }
}

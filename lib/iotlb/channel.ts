/**
 * The way to a device IOTLB that lives elsewhere: MISS comes in, UPDATE and INVALIDATE go out.
 *
 * The kernel (`vhost/kernel-channel.ts`), the fake (`testing/fake-channel.ts`) and decorators
 * (recorder, fault injector) implement it; nobody above knows which one it holds.
 */
import { iovaOfPage } from '../address'
import type { Access, AccessBits, Hva, Iova, Range } from '../address'

/** A question of the device. Objects are reused: valid until the next `drain()`. */
export class Miss {
  /** The 4 KiB page of the address that failed, and the byte within it (not page aligned). */
  page = 0
  offset = 0
  /** What the access wanted; a used ring asks with `read` although it will be written (K8). */
  access: AccessBits = 0

  get iova(): Iova {
    return (iovaOfPage(this.page) + BigInt(this.offset)) as Iova
  }
}

export interface IotlbChannel {
  /**
   * How many entries the device holds before it evicts the oldest (`max_iotlb_entries`). Never
   * below the truth: what is thought evicted is not invalidated.
   */
  readonly limit: number
  /** Reads everything that is pending, at most 64 at a time; empty when there is none. */
  drain(): readonly Miss[]
  /**
   * Grants a range. Ranges are page aligned. An UPDATE never replaces: invalidate first (K3).
   * @throws RangeError for ranges that are not page aligned or not in the device's memory
   * @throws SystemError when the device refuses
   */
  update(range: Range<Iova>, hva: Hva, access: Access): void
  /** Takes back every entry that the range touches, whole (K4). Returning is completion (K11). */
  invalidate(range: Range<Iova>): void
  /** The number twins, inclusive pages; `hvaPage` is the host page of `firstPage`. */
  updatePages(firstPage: number, lastPage: number, hvaPage: number, access: AccessBits): void
  invalidatePages(firstPage: number, lastPage: number): void
  /** Called in a turn of the event loop, and in each further one as long as misses are pending. */
  onReadable(listener: () => void): Disposable
}

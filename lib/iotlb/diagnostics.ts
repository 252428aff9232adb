/**
 * What happens on a device's channel, for whoever subscribes by Node's `diagnostics_channel`.
 *
 * A subscriber needs no reference to the device and no option of it: an observability agent can be
 * loaded beside a program that knows nothing of it. While nobody subscribes, a message costs one
 * look at a flag and allocates nothing. Publishing is synchronous: a subscriber that is slow makes
 * the device slow, and what it throws Node reports as an uncaught exception.
 *
 * | channel | message |
 * |---|---|
 * | `vhost-iotlb:miss` | `MissMessage`: the device asked |
 * | `vhost-iotlb:update` | `UpdateMessage`: an UPDATE was written |
 * | `vhost-iotlb:invalidate` | `InvalidateMessage`: an INVALIDATE was written, and took so long |
 * | `vhost-iotlb:fault` | `FaultMessage`: a miss could not be answered |
 * | `vhost-iotlb:stall` | `StallMessage` (`vhost/net.ts`): a queue stopped, and what was found there |
 *
 * Messages are of the thread that answers the device.
 */
import { channel } from 'node:diagnostics_channel'
import { accessBits, accessOf, iovaRange, pageOf } from '../address'
import type { Access, AccessBits, Hva, Iova, Range } from '../address'
import type { IotlbChannel, Miss } from './channel'
import type { UnansweredMiss } from './unanswered'

/** Whose message it is. */
export interface DiagnosticSource {
  /** The source id of the device, where it is known. */
  readonly requester: number | undefined
  /** Which pair of its queues. */
  readonly pair: number
}

export interface MissMessage extends DiagnosticSource {
  readonly iova: Iova
  readonly wanted: Access
}

export interface UpdateMessage extends DiagnosticSource {
  readonly iova: Range<Iova>
  readonly hva: Hva
  readonly access: Access
}

export interface InvalidateMessage extends DiagnosticSource {
  readonly iova: Range<Iova>
  /** How long the write took: when it returns, the device uses the range no more (K11). */
  readonly microseconds: number
}

export type FaultMessage = DiagnosticSource & UnansweredMiss

/** The channels by what they tell. */
export const diagnostics = {
  miss: channel('vhost-iotlb:miss'),
  update: channel('vhost-iotlb:update'),
  invalidate: channel('vhost-iotlb:invalidate'),
  fault: channel('vhost-iotlb:fault'),
  stall: channel('vhost-iotlb:stall'),
} as const

/** A channel whose messages are published to those who subscribed. `VhostNet` has one by itself. */
export function observed(inner: IotlbChannel, source: DiagnosticSource): IotlbChannel {
  return new ObservedChannel(inner, source)
}

class ObservedChannel implements IotlbChannel {
  constructor(
    private readonly inner: IotlbChannel,
    private readonly source: DiagnosticSource,
  ) {}

  get limit(): number {
    return this.inner.limit
  }

  drain(): readonly Miss[] {
    const misses = this.inner.drain()
    if (diagnostics.miss.hasSubscribers) this.#missed(misses)
    return misses
  }

  update(range: Range<Iova>, hva: Hva, access: Access): void {
    this.inner.update(range, hva, access)
    if (diagnostics.update.hasSubscribers) {
      const pages = [pageOf(range.first), pageOf(range.last), pageOf(hva)] as const
      this.#updated(...pages, accessBits(access))
    }
  }

  invalidate(range: Range<Iova>): void {
    this.invalidatePages(pageOf(range.first), pageOf(range.last))
  }

  updatePages(firstPage: number, lastPage: number, hvaPage: number, access: AccessBits): void {
    this.inner.updatePages(firstPage, lastPage, hvaPage, access)
    if (diagnostics.update.hasSubscribers) this.#updated(firstPage, lastPage, hvaPage, access)
  }

  invalidatePages(firstPage: number, lastPage: number): void {
    if (!diagnostics.invalidate.hasSubscribers) {
      this.inner.invalidatePages(firstPage, lastPage)
      return
    }
    const started = performance.now()
    this.inner.invalidatePages(firstPage, lastPage)
    const microseconds = (performance.now() - started) * 1000
    const iova = iovaRange(firstPage, lastPage)
    const message: InvalidateMessage = { ...this.source, iova, microseconds }
    diagnostics.invalidate.publish(message)
  }

  onReadable(listener: () => void): Disposable {
    return this.inner.onReadable(listener)
  }

  #missed(misses: readonly Miss[]): void {
    for (const { iova, access } of misses) {
      const message: MissMessage = { ...this.source, iova, wanted: accessOf(access) }
      diagnostics.miss.publish(message)
    }
  }

  #updated(firstPage: number, lastPage: number, hvaPage: number, access: AccessBits): void {
    const message: UpdateMessage = {
      ...this.source,
      iova: iovaRange(firstPage, lastPage),
      hva: (BigInt(hvaPage) << 12n) as Hva,
      access: accessOf(access),
    }
    diagnostics.update.publish(message)
  }
}

/**
 * A virtio-net device as its driver sees it: feature bits, queues, kicks and calls.
 *
 * The kernel's vhost-net (`vhost/net.ts`) and the device in plain JavaScript
 * (`testing/loopback-device.ts`) both are one; a driver does not know which it has.
 */
import type { RingAddresses } from './ring-layout'

export interface NetDevice {
  /** Every feature bit offered, those of the transport included. */
  readonly features: bigint
  /** The 16-bit source id of its DMA, where it is known. */
  readonly requester: number | undefined
  setFeatures(bits: bigint): void
  /**
   * Queue 2n receives and queue 2n + 1 transmits, for pair n.
   * @param ring addresses as the device uses them: iovas with ACCESS_PLATFORM, gpas without
   */
  setQueue(index: number, ring: RingAddresses, state?: { readonly availIndex: number }): void
  start(): void
  /** When it returns, the device touches neither rings nor buffers any more. */
  stop(): void
  /** The chains up to this free-running index are written, and about to become visible. */
  offering?(index: number, availIndex: number): void
  /** Tells the device that a queue has new chains. */
  kick(index: number): void
  /** The device has completed chains, in a turn of the event loop of its own. */
  onCall(index: number, listener: () => void): Disposable
  /** A queue can't go on: the guest's mistake, or a mapping that is not there. */
  onError?(listener: (index: number) => void): Disposable
}

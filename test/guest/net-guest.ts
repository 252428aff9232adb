/**
 * A guest with one network device, for the tests of its driver: memory, pages, an IOMMU, and a
 * device whose rings a test works by hand.
 */
import { expect } from 'vitest'
import { MiB, PAGE_SIZE } from '../../lib/address'
import { NetDriver } from '../../lib/guest/net-driver'
import type { NetDriverOptions } from '../../lib/guest/net-driver'
import { PageAllocator } from '../../lib/guest/page-allocator'
import { IntelIommu } from '../../lib/iommu/intel/intel-iommu'
import { PageTranslation } from '../../lib/memory/address-space'
import type { AddressSpace } from '../../lib/memory/address-space'
import { GuestMemory } from '../../lib/memory/guest-memory'
import { LoopbackDevice } from '../../lib/testing/loopback-device'
import type { LoopbackOptions } from '../../lib/testing/loopback-device'
import { physicalView, translatedView } from '../../lib/virtio/dma-view'
import { features, hasFeature } from '../../lib/virtio/net'
import type { NetDevice } from '../../lib/virtio/net-device'
import type { RingAddresses } from '../../lib/virtio/ring-layout'
import { SplitQueue } from '../../lib/virtio/split-queue'

export const SOURCE = 0x18

export class Guest implements Disposable {
  readonly memory = GuestMemory.allocate(8 * MiB)
  readonly pages = new PageAllocator(this.memory)
  readonly iommu = new IntelIommu(this.memory)
  readonly space: AddressSpace = this.iommu.addressSpace(SOURCE)

  loopback(options: Partial<LoopbackOptions> = {}): LoopbackDevice {
    const { memory, space } = this
    return new LoopbackDevice({ memory, addressSpace: space, requester: SOURCE, ...options })
  }

  attach(nic: NetDevice, options: Partial<NetDriverOptions> = {}): NetDriver {
    const { memory, iommu, pages } = this
    return NetDriver.attach(nic, { memory, iommu, pages, mapping: 'strict', ...options })
  }

  /** The first byte of guest memory behind a device page. */
  gpaOf(page: number): number {
    const out = new PageTranslation()
    expect(this.space.translatePage(page, 0, out)).toBe(true)
    return (out.gpaPage + page - out.firstPage) * PAGE_SIZE
  }

  [Symbol.dispose](): void {
    this.memory.close()
  }
}

export function frameOf(bytes: number, seed = 0): Uint8Array {
  return Uint8Array.from({ length: bytes }, (_, at) => (at * 7 + seed) % 253)
}

/** Byte for byte; much faster than `toEqual`. */
export function expectFrames(found: readonly Uint8Array[], wanted: readonly Uint8Array[]): void {
  expect(found.map(({ length }) => length)).toEqual(wanted.map(({ length }) => length))
  expect(found.findIndex((frame, i) => Buffer.compare(frame, wanted[i]) !== 0)).toBe(-1)
}

export async function take(driver: NetDriver, count: number): Promise<Uint8Array[]> {
  const frames: Uint8Array[] = []
  for await (const frame of driver.frames()) {
    frames.push(frame)
    if (frames.length === count) break
  }
  return frames
}

/** Both rings as a device sees them. */
export class HandDevice implements NetDevice {
  readonly features = features(
    'VIRTIO_F_VERSION_1',
    'VIRTIO_F_ACCESS_PLATFORM',
    'VIRTIO_F_EVENT_IDX',
    'VIRTIO_F_INDIRECT_DESC',
    'VIRTIO_NET_F_MRG_RXBUF',
  )
  readonly requester = SOURCE
  readonly rings: RingAddresses[] = []
  readonly kicks: number[] = []
  readonly log: string[] = []
  readonly #listeners: (() => void)[] = []
  #acknowledged = 0n

  constructor(private readonly guest: Guest) {}

  setFeatures(bits: bigint): void {
    this.log.push('features')
    this.#acknowledged = bits
  }
  setQueue(index: number, ring: RingAddresses): void {
    this.log.push(`queue ${index}`)
    this.rings[index] = ring
  }
  start(): void {
    this.log.push('start')
  }
  stop(): void {
    this.log.push('stop')
  }
  kick(index: number): void {
    this.kicks.push(index)
  }
  onCall(index: number, listener: () => void): Disposable {
    this.#listeners[index] = listener
    return { [Symbol.dispose]: () => undefined }
  }
  call(index: number): void {
    this.#listeners[index]()
  }
  queue(index: number): SplitQueue {
    const { memory, space } = this.guest
    const translated = hasFeature(this.#acknowledged, 'VIRTIO_F_ACCESS_PLATFORM')
    const view = translated ? translatedView(memory, space) : physicalView(memory)
    return new SplitQueue(view, this.rings[index], { eventIndex: true })
  }
  /** Completes received buffers with these lengths, `count` in the first one's header. */
  deliver(queue: SplitQueue, count: number, ...lengths: number[]): void {
    for (const [i, length] of lengths.entries()) {
      expect(queue.next()).toBe(true)
      const { chain } = queue
      const at = this.guest.gpaOf(chain.page[0])
      this.guest.memory.view(at, PAGE_SIZE).fill(i + 1)
      if (i === 0)
        this.guest.memory.view(at, 12).set([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, count & 255, count >> 8])
      queue.complete(chain.head, length)
    }
    queue.publish()
    this.call(0)
  }
}

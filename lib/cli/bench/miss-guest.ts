/**
 * The driver's side of what measures misses: a TX ring, and buffers that are mapped one by one,
 * each with a frame in it. Who the device is, and who answers it, is the rigs' affair.
 */
import { MiB, PAGE_SIZE, READ, READWRITE } from '../../address'
import { IntelIommuDriver } from '../../guest/intel-iommu-driver'
import { PageAllocator } from '../../guest/page-allocator'
import { IntelIommu } from '../../iommu/intel/intel-iommu'
import type { AddressSpace } from '../../memory/address-space'
import type { GuestMemory } from '../../memory/guest-memory'
import { DriverQueue } from '../../virtio/driver-queue'
import { features } from '../../virtio/net'
import type { RingAddresses } from '../../virtio/ring-layout'
import { frameOf } from './contestant'

/** The queue that frames leave by. */
export const TX = 1
export const RING = 256
/** From the descriptors to the end of the used ring, with what is between them. */
export const RING_PAGES = 16
const AVAIL_AT = 0x4000n
const USED_AT = 0x8000n
const HEADER_BYTES = 12
const FRAME_BYTES = 64
export const FEATURES = features(
  'VIRTIO_F_VERSION_1',
  'VIRTIO_F_ACCESS_PLATFORM',
  'VIRTIO_NET_F_MRG_RXBUF',
)
/** Enough memory for the driver, with the most buffers. */
export const MEMORY_BYTES = 128 * MiB
const REQUESTER = '00:03.0'

export class MissGuest {
  readonly addressSpace: AddressSpace
  /** The first of the ring's pages, as the device says it, and the ring there. */
  readonly ringPage: number
  readonly ring: RingAddresses
  /** Device pages of the buffers. */
  readonly pages: readonly number[]
  readonly queue: DriverQueue

  /** @param live buffers */
  constructor(memory: GuestMemory, live: number) {
    const iommu = new IntelIommu(memory)
    this.addressSpace = iommu.addressSpace(REQUESTER)
    const driver = new IntelIommuDriver(iommu, memory, { requester: REQUESTER, mode: 'strict' })
    driver.enable()
    const pages = PageAllocator.of(memory)
    const ringAt = pages.allocate(RING_PAGES)
    const buffersAt = pages.allocate(live)
    this.ringPage = driver.mapPages(ringAt, RING_PAGES, READWRITE)
    this.ring = ringIn(this.ringPage)
    this.pages = Array.from({ length: live }, (_, i) => driver.mapPages(buffersAt + i, 1, READ))
    const frame = frameOf(FRAME_BYTES)
    for (let i = 0; i < live; i++) {
      memory.view((buffersAt + i) * PAGE_SIZE + HEADER_BYTES, FRAME_BYTES).set(frame)
    }
    this.queue = new DriverQueue(memory, ringIn(ringAt))
    this.queue.disableCalls()
  }

  /** Makes the frame at this device page available. */
  offer(page: number): void {
    const { queue } = this
    queue.begin()
    queue.segment(page, 0, HEADER_BYTES + FRAME_BYTES, false)
    queue.end(0)
    queue.publish()
  }
}

function ringIn(page: number): RingAddresses {
  const base = BigInt(page) * BigInt(PAGE_SIZE)
  return { size: RING, desc: base, avail: base + AVAIL_AT, used: base + USED_AT }
}

// A vhost-net device and a guest that the script plays by hand: what the next two examples share.
// Buffers are single pages; which of them the device may reach is up to the script.
import {
  DriverQueue,
  GuestMemory,
  IntelIommu,
  IntelIommuDriver,
  MiB,
  Tap,
  VhostNet,
  features,
  gpa,
  ringLayout,
} from 'vhost-iotlb'

export const RX = 0
export const TX = 1
export const REQUESTER = '00:03.0'
const RINGS = 48 * MiB
const BUFFERS = 56 * MiB
const RING_SIZE = 16
const PAGE = 4096
const NET_HEADER = 12

export class OneDevice {
  memory = GuestMemory.allocate(64 * MiB)
  iommu = new IntelIommu(this.memory)
  guest = new IntelIommuDriver(this.iommu, this.memory, { requester: REQUESTER, mode: 'strict' })
  tap = Tap.open('lab%d')
  queues = []

  constructor(options = {}) {
    const { memory, iommu, tap } = this
    this.guest.enable()
    const addressSpace = iommu.addressSpace(REQUESTER)
    this.nic = VhostNet.open({ memory, addressSpace, backend: tap, ...options })
    this.nic.setFeatures(features('VIRTIO_F_VERSION_1', 'VIRTIO_F_ACCESS_PLATFORM'))
    for (const index of [RX, TX]) this.#place(index)
    this.nic.start()
  }

  #place(index) {
    const layout = ringLayout(RING_SIZE)
    const at = RINGS + index * MiB
    const parts = (base) => ({
      size: RING_SIZE,
      desc: base + BigInt(layout.desc),
      avail: base + BigInt(layout.avail),
      used: base + BigInt(layout.used),
    })
    this.queues[index] = new DriverQueue(this.memory, parts(BigInt(at)))
    this.nic.setQueue(index, parts(this.guest.map(gpa(at), layout.bytes, 'readwrite')))
  }

  /** Maps buffer `page` for the device. @returns its iova */
  map(page, access) {
    return this.guest.map(gpa(BUFFERS + page * PAGE), PAGE, access)
  }

  /** The bytes of a buffer after the header that virtio-net puts before a frame. */
  frame(page, length) {
    return this.memory.view(BUFFERS + page * PAGE + NET_HEADER, length)
  }

  /** Offers one buffer to the device, mapped or not. */
  offer(queue, iova, length = PAGE) {
    this.queues[queue].add([{ address: iova, length, writable: queue === RX }], 0)
    this.queues[queue].publish()
    this.nic.kick(queue)
  }

  /** Whether the device has completed something on a queue. */
  completed(queue) {
    return this.queues[queue].collect()
  }

  close() {
    for (const each of [this.nic, this.memory, this.tap]) each.close()
  }
}

/** Until something is so, or a second has passed. @returns whether it is */
export async function becomes(condition) {
  const end = Date.now() + 1000
  while (!condition()) {
    if (Date.now() > end) return false
    await new Promise((resolve) => setTimeout(resolve, 5))
  }
  return true
}

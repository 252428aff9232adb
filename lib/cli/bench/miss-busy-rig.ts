/**
 * A device whose misses a Worker answers, and a driver that never leaves its turn of the event loop:
 * what a script that computes is to its network card.
 *
 * More pages are mapped than the device has entries, so that each is asked for again by the time
 * it is used again, and nobody has to take it back.
 */
import { MiB, PAGE_SIZE, READ, READWRITE } from '../../address'
import { IntelIommuDriver } from '../../guest/intel-iommu-driver'
import { PageAllocator } from '../../guest/page-allocator'
import { IntelIommu } from '../../iommu/intel/intel-iommu'
import { exact } from '../../iotlb/reply-policy'
import { GuestMemory } from '../../memory/guest-memory'
import { moduleParameter } from '../../vhost/module-parameters'
import { VhostNet } from '../../vhost/net'
import { Tap } from '../../vhost/tap'
import { DriverQueue } from '../../virtio/driver-queue'
import { features } from '../../virtio/net'
import { frameOf } from './contestant'

const TX = 1
const RING = 256
const RING_PAGES = 16
const HEADER_BYTES = 12
const FRAME_BYTES = 64
const LATE_MS = 10_000
const FEATURES = features(
  'VIRTIO_F_VERSION_1',
  'VIRTIO_F_ACCESS_PLATFORM',
  'VIRTIO_NET_F_MRG_RXBUF',
)

export class BusyRig implements Disposable {
  readonly #open: Disposable[] = []
  readonly #nic: VhostNet
  readonly #queue: DriverQueue
  readonly #pages: readonly number[]
  #next = 0

  constructor() {
    try {
      const memory = this.#kept(GuestMemory.allocate(128 * MiB))
      const iommu = new IntelIommu(memory)
      const guest = new IntelIommuDriver(iommu, memory, { requester: '00:03.0', mode: 'strict' })
      guest.enable()
      const pages = PageAllocator.of(memory)
      const ringAt = pages.allocate(RING_PAGES)
      const ringPage = guest.mapPages(ringAt, RING_PAGES, READWRITE)
      const live = moduleParameter('vhost/max_iotlb_entries') + RING
      const buffersAt = pages.allocate(live)
      this.#pages = Array.from({ length: live }, (_, i) => guest.mapPages(buffersAt + i, 1, READ))
      const frame = frameOf(FRAME_BYTES)
      for (let i = 0; i < live; i++) {
        memory.view((buffersAt + i) * PAGE_SIZE + HEADER_BYTES, FRAME_BYTES).set(frame)
      }
      const backend = this.#kept(Tap.open('busy%d'))
      const addressSpace = iommu.addressSpace('00:03.0')
      const policy = { reply: exact, lookAhead: 'off', serve: 'worker' } as const
      this.#nic = this.#kept(VhostNet.open({ memory, addressSpace, backend, ...policy }))
      this.#nic.setFeatures(FEATURES)
      const parts = (base: bigint) => ({
        size: RING,
        ...{ desc: base, avail: base + 0x4000n, used: base + 0x8000n },
      })
      this.#queue = new DriverQueue(memory, parts(BigInt(ringAt * PAGE_SIZE)))
      this.#queue.disableCalls()
      this.#nic.setQueue(TX, parts(BigInt(ringPage) * BigInt(PAGE_SIZE)))
      this.#nic.start()
    } catch (error) {
      this[Symbol.dispose]()
      throw error
    }
  }

  /** Sends from a page that the device has to ask for. @returns microseconds until it is sent */
  round(): number {
    const queue = this.#queue
    queue.begin()
    queue.segment(this.#pages[this.#next], 0, HEADER_BYTES + FRAME_BYTES, false)
    queue.end(0)
    queue.publish()
    this.#next = (this.#next + 1) % this.#pages.length
    const started = performance.now()
    this.#nic.kick(TX)
    while (!queue.collect()) {
      if (performance.now() > started + LATE_MS) throw new Error('the frame was not sent')
    }
    return (performance.now() - started) * 1000
  }

  [Symbol.dispose](): void {
    for (const each of this.#open.reverse()) each[Symbol.dispose]()
  }

  #kept<T extends Disposable>(made: T): T {
    this.#open.push(made)
    return made
  }
}

/**
 * One TX ring, pages that are mapped one by one, and a clock at the channel: rounds of a question
 * and its answer, one at a time. The same round is `miss-loop.c`.
 *
 * The parts of the library below `VhostNet` are put together by hand here, so that the channel can
 * be decorated with the clock. Nothing but callbacks runs in a round, so that the event loop is
 * waiting when the question comes.
 */
import { MiB, PAGE_SIZE, READ, READWRITE } from '../../address'
import { IntelIommuDriver } from '../../guest/intel-iommu-driver'
import { PageAllocator } from '../../guest/page-allocator'
import { IntelIommu } from '../../iommu/intel/intel-iommu'
import type { IotlbChannel } from '../../iotlb/channel'
import { MissHandler } from '../../iotlb/miss-handler'
import type { ReplyPolicy } from '../../iotlb/reply-policy'
import { GuestMemory } from '../../memory/guest-memory'
import { KernelChannel } from '../../vhost/kernel-channel'
import { Tap } from '../../vhost/tap'
import { VhostDevice } from '../../vhost/vhost-device'
import { Vring } from '../../vhost/vring'
import { DriverQueue } from '../../virtio/driver-queue'
import { features } from '../../virtio/net'
import { frameOf } from './contestant'

const TX = 1
const RING = 256
const HEADER_BYTES = 12
const FRAME_BYTES = 64
const FEATURES = features(
  'VIRTIO_F_VERSION_1',
  'VIRTIO_F_ACCESS_PLATFORM',
  'VIRTIO_NET_F_MRG_RXBUF',
)
const RING_PAGES = 16
const LATE_MS = 10_000
/** How often to look for a frame to be sent before the event loop has its turn. */
const LOOKS = 2000

export interface MissRigOptions {
  /** Mappings of the guest; the device holds as many of them as it can. */
  readonly live: number
  readonly reply: ReplyPolicy
  /** As `VhostNetOptions`; with it a round begins where the last one was answered. */
  readonly busyPollMicroseconds?: number
}

export class MissRig implements Disposable {
  readonly handler: MissHandler
  readonly #open: Disposable[] = []
  readonly #queue: DriverQueue
  readonly #ring: Vring
  readonly #spins: boolean
  /** Device pages of the buffers; the frame goes out of one after the other. */
  readonly #pages: readonly number[]
  #next = 0
  #started = 0
  #waiting = false
  #times: number[] = []
  #left = 0
  #ended: ((error?: Error) => void) | undefined

  constructor({ live, reply, busyPollMicroseconds = 0 }: MissRigOptions) {
    this.#spins = busyPollMicroseconds > 0
    try {
      const memory = this.#kept(GuestMemory.allocate(128 * MiB))
      const iommu = new IntelIommu(memory)
      const guest = new IntelIommuDriver(iommu, memory, { requester: '00:03.0', mode: 'strict' })
      guest.enable()
      const pages = PageAllocator.of(memory)
      const ringAt = pages.allocate(RING_PAGES)
      const buffersAt = pages.allocate(live)
      const ringPage = guest.mapPages(ringAt, RING_PAGES, READWRITE)
      this.#pages = Array.from({ length: live }, (_, i) => guest.mapPages(buffersAt + i, 1, READ))
      const device = this.#kept(VhostDevice.open())
      const pin = memory.pin(this, device.descriptor)
      device.setFeatures(FEATURES)
      device.setMemory(undefined)
      const channel = new KernelChannel({
        descriptor: device.descriptor,
        version: device.messageVersion,
        busyPollMicroseconds,
      })
      this.handler = new MissHandler({
        channel: this.#timed(channel),
        addressSpace: iommu.addressSpace('00:03.0'),
        memory,
        reply,
        lookAhead: 'off',
      })
      if (this.#spins) channel.onReadable(this.#finish)
      const tap = Tap.open('miss%d')
      this.#ring = new Vring(TX)
      const parts = (base: bigint) => ({
        size: RING,
        ...{ desc: base, avail: base + 0x4000n, used: base + 0x8000n },
      })
      this.#queue = new DriverQueue(memory, parts(BigInt(ringAt * PAGE_SIZE)))
      this.#queue.disableCalls()
      this.handler.preload(ringPage, ringPage + RING_PAGES - 1, READWRITE)
      device.setRing(TX, parts(BigInt(ringPage) * BigInt(PAGE_SIZE)), 0)
      device.setEvents(TX, this.#ring.events)
      device.setBackend(TX, tap.queues[0])
      const frame = frameOf(FRAME_BYTES)
      for (let i = 0; i < live; i++) {
        memory.view((buffersAt + i) * PAGE_SIZE + HEADER_BYTES, FRAME_BYTES).set(frame)
      }
      for (const page of this.#pages) this.handler.prefetch(page)
      this.#kept({
        [Symbol.dispose]: () => {
          device.setBackend(TX, undefined)
          this.handler.close()
          channel.close()
          device.close()
          pin[Symbol.dispose]()
          this.#ring.close()
          tap.close()
        },
      })
    } catch (error) {
      this[Symbol.dispose]()
      throw error
    }
  }

  /** @returns microseconds of each round, from the kick to the return of the answering write */
  async run(rounds: number): Promise<readonly number[]> {
    this.#times = []
    this.#left = rounds
    const ended = new Promise<void>((resolve, reject) => {
      this.#ended = (error) => {
        if (error === undefined) resolve()
        else reject(error)
      }
    })
    setImmediate(this.#round)
    await ended
    return this.#times
  }

  [Symbol.dispose](): void {
    for (const each of this.#open.reverse()) each[Symbol.dispose]()
  }

  /** Takes one page back, sends from it. */
  readonly #round = (): void => {
    const page = this.#pages[this.#next++ % this.#pages.length]
    this.handler.invalidatePages(page, page, 'device-tlb')
    const queue = this.#queue
    queue.begin()
    queue.segment(page, 0, HEADER_BYTES + FRAME_BYTES, false)
    queue.end(0)
    queue.publish()
    this.#waiting = true
    this.#started = performance.now()
    this.#ring.kick()
  }

  /** After the answer: the next round when the frame is sent. */
  readonly #finish = (): void => {
    if (this.#waiting || this.#left === 0) return
    for (let look = 0; look < LOOKS; look++) {
      if (!this.#queue.collect()) continue
      if (--this.#left === 0) this.#ended?.()
      else if (this.#spins) this.#round()
      else setImmediate(this.#round)
      return
    }
    if (performance.now() > this.#started + LATE_MS) this.#ended?.(new Error('no frame was sent'))
    else setImmediate(this.#finish)
  }

  /** Notes when the first answer after a kick is in the kernel. */
  #timed(channel: KernelChannel): IotlbChannel {
    return {
      limit: channel.limit,
      drain: () => channel.drain(),
      update: (range, hva, access) => {
        channel.update(range, hva, access)
      },
      invalidate: (range) => {
        channel.invalidate(range)
      },
      updatePages: (firstPage, lastPage, hvaPage, access) => {
        channel.updatePages(firstPage, lastPage, hvaPage, access)
        if (!this.#waiting) return
        this.#times.push((performance.now() - this.#started) * 1000)
        this.#waiting = false
        if (!this.#spins) setImmediate(this.#finish)
      },
      invalidatePages: (firstPage, lastPage) => {
        channel.invalidatePages(firstPage, lastPage)
      },
      onReadable: (listener) => channel.onReadable(listener),
    }
  }

  #kept<T extends Disposable>(made: T): T {
    this.#open.push(made)
    return made
  }
}

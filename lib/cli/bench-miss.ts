/**
 * How long a question takes: from the kick that makes the kernel ask to the answer in its table,
 * one question at a time, with an event loop that has nothing else to do.
 *
 * The parts of the library below `VhostNet` are put together by hand here, so that the channel can
 * be decorated with a clock. The same round is `miss-loop.c`, the floor.
 */
import { spawn } from 'node:child_process'
import { join } from 'node:path'
import { setImmediate as turn } from 'node:timers/promises'
import { MiB, PAGE_SIZE, READ, READWRITE } from '../address'
import { IntelIommuDriver } from '../guest/intel-iommu-driver'
import { PageAllocator } from '../guest/page-allocator'
import { IntelIommu } from '../iommu/intel/intel-iommu'
import type { IotlbChannel } from '../iotlb/channel'
import { MissHandler } from '../iotlb/miss-handler'
import { exact, merged } from '../iotlb/reply-policy'
import type { ReplyPolicy } from '../iotlb/reply-policy'
import { GuestMemory } from '../memory/guest-memory'
import { raw } from '../raw'
import { KernelChannel } from '../vhost/kernel-channel'
import { Tap } from '../vhost/tap'
import { VhostDevice } from '../vhost/vhost-device'
import { DriverQueue } from '../virtio/driver-queue'
import { features } from '../virtio/net'
import { frameOf } from './bench-contestant'
import type { Contestant } from './bench-contestant'
import { percentile } from './bench-figures'
import type { Sample } from './bench-figures'
import { text } from './bench-peers'

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
const ONE = Uint8Array.of(1, 0, 0, 0, 0, 0, 0, 0)

export function missContestants(rounds: number): readonly Contestant[] {
  const loop = (name: string, reply: ReplyPolicy): Contestant => ({
    section: 'miss',
    name,
    run: () => roundTrips({ count: rounds, live: 64, reply }),
  })
  return [loop('loop, exact', exact), loop('loop, merged', merged(128 * 1024))]
}

export function mappingContestants(rounds: number): readonly Contestant[] {
  return [1, 64, 2048, 16384].map((live) => ({
    section: 'mappings',
    name: live === 1 ? '1 mapping' : `${live} mappings`,
    run: () => roundTrips({ count: rounds, live, reply: exact }),
  }))
}

export function cFloor(programs: string, rounds: number): readonly Contestant[] {
  return (['poll', 'spinning'] as const).map((how) => ({
    section: 'miss',
    name: `c, ${how}`,
    run: async () => {
      const flags = how === 'spinning' ? ['spin'] : []
      const output = await text(spawn(join(programs, 'miss-loop'), [String(rounds), ...flags]))
      const { p50, p90, p99 } = JSON.parse(output) as Record<string, number>
      return { p50us: p50 / 1000, p90us: p90 / 1000, p99us: p99 / 1000 }
    },
  }))
}

interface RoundTripOptions {
  readonly count: number
  /** Mappings of the guest; the device holds as many of them as it can. */
  readonly live: number
  readonly reply: ReplyPolicy
}

async function roundTrips({ count, live, reply }: RoundTripOptions): Promise<Sample> {
  using rig = new MissRig(live, reply)
  const times: number[] = []
  const warm = Math.ceil(count / 10)
  for (let i = 0; i < count + warm; i++) {
    const us = await rig.round()
    if (i >= warm) times.push(us)
  }
  const [p50us, p90us, p99us] = [50, 90, 99].map((percent) => percentile(times, percent))
  return { p50us, p90us, p99us, entries: rig.handler.stats().entries }
}

/** One TX ring, pages that are mapped one by one, and a clock at the channel. */
class MissRig implements Disposable {
  readonly handler: MissHandler
  readonly #open: Disposable[] = []
  readonly #queue: DriverQueue
  readonly #kick: ReturnType<typeof raw.eventfd>
  /** Device pages of the buffers; the frame goes out of one after the other. */
  readonly #pages: readonly number[]
  #next = 0
  #answered = 0
  #waiting: (() => void) | undefined

  constructor(live: number, reply: ReplyPolicy) {
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
      })
      this.handler = new MissHandler({
        channel: this.#timed(channel),
        addressSpace: iommu.addressSpace('00:03.0'),
        memory,
        reply,
        lookAhead: 'off',
      })
      const tap = Tap.open('miss%d')
      this.#kick = raw.eventfd()
      const events = { kick: this.#kick, call: raw.eventfd(), error: raw.eventfd() }
      const parts = (base: bigint) => ({
        size: RING,
        ...{ desc: base, avail: base + 0x4000n, used: base + 0x8000n },
      })
      this.#queue = new DriverQueue(memory, parts(BigInt(ringAt * PAGE_SIZE)))
      this.#queue.disableCalls()
      this.handler.preload(ringPage, ringPage + RING_PAGES - 1, READWRITE)
      device.setRing(TX, parts(BigInt(ringPage) * BigInt(PAGE_SIZE)), 0)
      device.setEvents(TX, events)
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
          for (const descriptor of Object.values(events)) descriptor.close()
          tap.close()
        },
      })
    } catch (error) {
      this[Symbol.dispose]()
      throw error
    }
  }

  /** Takes one page back, sends from it. @returns microseconds from the kick to the answer */
  async round(): Promise<number> {
    const page = this.#pages[this.#next++ % this.#pages.length]
    this.handler.invalidatePages(page, page, 'device-tlb')
    const queue = this.#queue
    queue.begin()
    queue.segment(page, 0, HEADER_BYTES + FRAME_BYTES, false)
    queue.end(0)
    queue.publish()
    this.#answered = 0
    const answered = new Promise<void>((resolve) => (this.#waiting = resolve))
    const started = performance.now()
    raw.writeMany(this.#kick, ONE, ONE.byteLength, 1)
    await answered
    const us = (this.#answered - started) * 1000
    const late = started + LATE_MS
    while (!queue.collect()) {
      if (performance.now() > late) throw new Error('the frame was not sent')
      await turn()
    }
    return us
  }

  [Symbol.dispose](): void {
    for (const each of this.#open.reverse()) each[Symbol.dispose]()
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
        if (this.#waiting === undefined) return
        this.#answered = performance.now()
        this.#waiting()
        this.#waiting = undefined
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

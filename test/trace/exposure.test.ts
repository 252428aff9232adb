import { describe, expect, it } from 'vitest'
import { MiB } from '../../lib/address'
import { physicalDma } from '../../lib/guest/dma'
import type { GuestDma } from '../../lib/guest/dma'
import { IntelIommuDriver } from '../../lib/guest/intel-iommu-driver'
import { IntelIommu } from '../../lib/iommu/intel/intel-iommu'
import { MissHandler } from '../../lib/iotlb/miss-handler'
import { GuestMemory } from '../../lib/memory/guest-memory'
import { FakeVhost } from '../../lib/testing/fake-channel'
import { ExposureMeter } from '../../lib/trace/exposure'
import { byte } from '../iotlb/support'

class Clock {
  now = 100
  readonly read = (): number => this.now
}

/** iova is gpa, and unmapping does nothing. */
const plain: GuestDma = { ...physicalDma, mode: 'static' }

describe('an exposure meter', () => {
  it('counts a page from its unmapping to its invalidation, in bytes times seconds', () => {
    const clock = new Clock()
    const meter = new ExposureMeter(clock.read)
    const channel = meter.channel(new FakeVhost())
    const dma = meter.dma(plain)
    dma.mapPages(10, 2, 3)
    channel.updatePages(10, 11, 0x7000, 3)
    clock.now += 4
    dma.unmapPages(10, 1)
    clock.now += 1
    channel.invalidatePages(10, 11)
    clock.now += 5
    expect(meter.read()).toEqual({
      ...{ seconds: 10, staleBytes: 4096, byteSeconds: 4096, longest: 1 },
      reachableBytes: (2 * 4096 * 5) / 10,
      inFlightBytes: (2 * 4096 * 4 + 4096 * 6) / 10,
    })
  })

  it('counts nothing for a page that the device does not hold, until it does', () => {
    const clock = new Clock()
    const meter = new ExposureMeter(clock.read)
    const channel = meter.channel(new FakeVhost())
    const dma = meter.dma(plain)
    dma.mapPages(10, 1, 3)
    dma.unmapPages(10, 1)
    clock.now += 5
    expect(meter.read().byteSeconds).toBe(0)
    channel.updatePages(0, 511, 0x7000, 3)
    clock.now += 2
    expect(meter.read()).toMatchObject({ byteSeconds: 2 * 4096, longest: 2 })
    dma.mapPages(10, 1, 3)
    clock.now += 9
    expect(meter.read()).toMatchObject({ byteSeconds: 2 * 4096, longest: 2 })
  })

  it('ends with an eviction, and with the last table that holds the page', () => {
    const clock = new Clock()
    const meter = new ExposureMeter(clock.read)
    const small = meter.channel(new FakeVhost({ limit: 1 }))
    const other = meter.channel(new FakeVhost())
    const dma = meter.dma(plain)
    dma.mapPages(10, 1, 3)
    for (const channel of [small, other]) channel.updatePages(10, 10, 0x7000, 3)
    dma.unmapPages(10, 1)
    clock.now += 1
    other.invalidatePages(10, 10)
    clock.now += 1
    small.updatePages(20, 20, 0x7000, 3)
    clock.now += 1
    expect(meter.read()).toMatchObject({ byteSeconds: 2 * 4096, longest: 2, staleBytes: 4096 })
  })

  it('begins anew, and what is stale then is stale from then on', () => {
    const clock = new Clock()
    const meter = new ExposureMeter(clock.read)
    const channel = meter.channel(new FakeVhost())
    const dma = meter.dma(plain)
    dma.mapPages(10, 1, 3)
    const range = { first: byte(10), last: byte(11) - 1n } as Parameters<typeof channel.update>[0]
    channel.update(range, byte(0x7000) as Parameters<typeof channel.update>[1], 'readwrite')
    dma.unmapPages(10, 1)
    clock.now += 7
    meter.restart()
    clock.now += 1
    channel.invalidate(range)
    expect(meter.read()).toMatchObject({ seconds: 1, byteSeconds: 4096, longest: 1 })
  })

  it.each([
    // Strict waits for the invalidation before its unmapping returns; lazy waits for a timer first.
    ['strict', 0, 3 / 11],
    ['lazy', 3 + 1, 2 / 11],
    ['static', 8, 2 / 10],
  ] as const)('shows mapping %s as what it is', (mode, staleSeconds, inFlight) => {
    const clock = new Clock()
    class SlowVhost extends FakeVhost {
      override invalidatePages(first: number, last: number): void {
        clock.now += 1
        super.invalidatePages(first, last)
      }
    }
    const meter = new ExposureMeter(clock.read)
    using memory = GuestMemory.allocate(8 * MiB)
    const iommu = new IntelIommu(memory)
    const timers: (() => void)[] = []
    const inner = new IntelIommuDriver(iommu, memory, {
      ...{ requester: '00:03.0', mode },
      after: (_, callback) => {
        timers.push(callback)
        return { [Symbol.dispose]: () => undefined }
      },
    })
    const vhost = new SlowVhost()
    const addressSpace = iommu.addressSpace('00:03.0')
    using handler = new MissHandler({ channel: meter.channel(vhost), addressSpace, memory })
    const dma = meter.dma(inner)
    dma.enable()
    const pool = dma.pool?.(512, 4)
    const page = pool?.map(0, 3) ?? dma.mapPages(512, 1, 3)
    vhost.access(byte(page), 'write')
    handler.handle()
    clock.now += 2
    if (pool === undefined) dma.unmapPages(page, 1)
    else pool.unmap(0, 1)
    clock.now += 3
    for (const timer of timers) timer()
    clock.now += 5
    const read = meter.read()
    expect(read.byteSeconds).toBe(staleSeconds * 4096)
    expect(read.inFlightBytes).toBeCloseTo(inFlight * 4096)
    if (mode === 'static') expect(read.reachableBytes).toBe(2 * MiB)
    dma.disable()
  })
})

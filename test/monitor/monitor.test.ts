import { describe, expect, it } from 'vitest'
import { diagnostics } from '../../lib/iotlb/diagnostics'
import { LATENCY_CLASSES, Monitor, rates } from '../../lib/monitor/monitor'
import { iovaMap, plainLines, screen } from '../../lib/monitor/screen'
import { FakeDevice } from './support'

function invalidated(requester: number, microseconds: number): void {
  diagnostics.invalidate.publish({ requester, pair: 0, microseconds })
}

describe('a monitor', () => {
  it('says what devices count and hold, and how long their invalidations took', () => {
    const device = new FakeDevice(0x18)
    device.hold(0x200, 0x2ff, 'write')
    device.hold(0x100, 0x100, 'read')
    using monitor = new Monitor([device, new FakeDevice(undefined)])
    for (const time of [0.5, 3, 12, 40_000]) invalidated(0x18, time)
    const { devices, pid } = monitor.sample()
    expect(pid).toBe(process.pid)
    expect(devices.map(({ name }) => name)).toEqual(['00:03.0', 'device 1'])
    expect(devices[0]).toMatchObject({
      bytesMapped: 257 * 4096,
      entries: [
        [0x100, 0x100, 1],
        [0x200, 0x2ff, 2],
      ],
      invalidation: { count: 4, longest: 40_000, microseconds: 40_015.5 },
    })
    const { classes } = devices[0].invalidation
    expect(classes).toHaveLength(LATENCY_CLASSES.length + 1)
    expect(classes.flatMap((count, i) => (count > 0 ? [LATENCY_CLASSES[i]] : []))).toEqual([
      ...[1, 5, 20],
      undefined,
    ])
    expect(devices[1].invalidation.count).toBe(0)
  })

  it('listens while it is open, and no longer', () => {
    expect(diagnostics.invalidate.hasSubscribers).toBe(false)
    const monitor = new Monitor([new FakeDevice(0x18)])
    expect(diagnostics.invalidate.hasSubscribers).toBe(true)
    monitor.close()
    expect(diagnostics.invalidate.hasSubscribers).toBe(false)
  })

  it('makes rates of two samples', () => {
    const device = new FakeDevice(0x18)
    using monitor = new Monitor([device])
    device.counters = { chains: 100, misses: 100, updates: 7 }
    const before = { ...monitor.sample(), at: 0 }
    device.counters = { chains: 1100, misses: 110, updates: 27, invalidates: 40 }
    for (let i = 0; i < 99; i++) invalidated(0x18, 4)
    invalidated(0x18, 9000)
    const now = { ...monitor.sample(), at: 2000 }
    const [rate] = rates(before, now)
    expect(rate).toMatchObject({ chains: 500, misses: 5, updates: 10, invalidates: 20 })
    expect(rate.hitRate).toBeCloseTo(0.99)
    expect(rate.invalidationMicroseconds).toBeCloseTo((99 * 4 + 9000) / 100)
    expect(rate.slowInvalidationMicroseconds).toBe(5)
    expect(rates(now, { ...now, at: now.at + 1000 })).toMatchObject([
      { chains: 0, hitRate: undefined, invalidationMicroseconds: undefined },
    ])
  })
})

describe('a screen', () => {
  it('has no line of more than 80 columns, whatever the figures are', () => {
    const device = new FakeDevice(0xffff)
    const huge = { chains: 1e15, misses: 1e15, updates: 1e15, invalidates: 1e15, stalls: 1e15 }
    device.hold(0, 0, 'read')
    for (let i = 0; i < 40; i++) device.hold(2 ** 51 + i * 2 ** 20, 2 ** 51 + i * 2 ** 20, 'write')
    using monitor = new Monitor([device])
    const before = monitor.sample()
    device.counters = { ...device.counters, ...huge, pages: 2 ** 52, evictions: 1e15, ahead: 1e15 }
    const lines = screen(before, monitor.sample())
    expect(Math.max(...lines.map(({ length }) => length))).toBeLessThanOrEqual(80)
    expect(lines.join('\n')).toContain('ff:1f.7')
  })

  it('draws where a device can reach, a row for each region of it', () => {
    const device = new FakeDevice(0x18)
    device.hold(0x100, 0x107, 'read')
    device.hold(0x110, 0x117, 'readwrite')
    device.hold(0xfff00, 0xfffff, 'write')
    using monitor = new Monitor([device])
    const [low, high, ...rest] = iovaMap(monitor.sample().devices[0])
    expect(low).toBe(`00:03.0 0x000100000 ${'████████        ████████'.padEnd(48)} 4 KiB rw`)
    expect(high).toContain('0x0fff00000 ███')
    expect(high.endsWith('32 KiB -w')).toBe(true)
    expect(rest).toEqual([])
  })

  it('shades what is reachable in part', () => {
    const device = new FakeDevice(0x18)
    for (let i = 0; i < 64; i++) device.hold(0x100 + i * 8, 0x100 + i * 8 + (i % 4), 'read')
    using monitor = new Monitor([device])
    expect(iovaMap(monitor.sample().devices[0])[0]).toContain('░▒░▒░▒')
  })

  it('says so where a device can reach nothing', () => {
    using monitor = new Monitor([new FakeDevice(0x18)])
    expect(iovaMap(monitor.sample().devices[0])).toEqual(['00:03.0 none'])
  })

  it('is a line for each device where there is no screen', () => {
    const device = new FakeDevice(0x18)
    using monitor = new Monitor([device])
    const before = { ...monitor.sample(), at: 0 }
    device.counters = { chains: 500, misses: 5, entries: 3, pages: 512 }
    const now = { ...monitor.sample(), at: 1000 }
    expect(plainLines(before, now)).toEqual([
      '00:03.0: 500 chains/s, 5 misses/s, hit rate 99.00 %; ' +
        '0 updates/s, 0 invalidates/s; 3 entries, 2 MiB, 0 stalls',
    ])
  })
})

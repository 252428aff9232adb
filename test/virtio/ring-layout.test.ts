import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { checkQueueSize, passesEvent, ringLayout } from '../../lib/virtio/ring-layout'

describe('ringLayout', () => {
  it('lays out 256 chains in 6726 bytes, as Linux does with virtio-pci', () => {
    expect(ringLayout(256)).toEqual({
      size: 256,
      desc: 0,
      avail: 4096,
      used: 4672,
      descBytes: 4096,
      availBytes: 518,
      usedBytes: 2054,
      bytes: 6726,
    })
  })

  it('aligns each part as virtio 1.3, 2.7 wants it, and lets none overlap', () => {
    for (let size = 1; size <= 32768; size *= 2) {
      const layout = ringLayout(size, 4)
      expect(layout.avail % 2).toBe(0)
      expect(layout.used % 4).toBe(0)
      expect(layout.avail).toBeGreaterThanOrEqual(layout.desc + 16 * size)
      expect(layout.used).toBeGreaterThanOrEqual(layout.avail + 6 + 2 * size)
      expect(layout.bytes).toBe(layout.used + 6 + 8 * size)
    }
  })

  it('refuses sizes that 2.7 does not allow', () => {
    for (const size of [0, 3, 65536, 1.5, -4, NaN]) {
      expect(() => {
        checkQueueSize(size)
      }).toThrow(RangeError)
    }
    expect(() => ringLayout(4, 2)).toThrow(RangeError)
  })
})

describe('passesEvent', () => {
  it('says that an index moved past the event, whatever the wrap (2.7.7.1)', () => {
    const index = fc.integer({ min: 0, max: 0xffff })
    fc.assert(
      fc.property(index, index, fc.integer({ min: 0, max: 32768 }), (event, before, steps) => {
        const now = (before + steps) & 0xffff
        let passed = false
        for (let at = 0; at < steps; at++) passed ||= ((before + at) & 0xffff) === event
        expect(passesEvent(event, now, before)).toBe(passed)
      }),
      { numRuns: 60 },
    )
  })
})

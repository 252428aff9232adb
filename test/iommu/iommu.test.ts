import { describe, expect, it } from 'vitest'
import { requesterName, sourceId } from '../../lib/iommu/iommu'

describe('sourceId', () => {
  it('is bus, device and function in 16 bits (VT-d 5.10 3.4.1)', () => {
    expect(sourceId('00:03.0')).toBe(0x0018)
    expect(sourceId('0000:ff:1f.7')).toBe(0xffff)
    expect(sourceId(0x0100)).toBe(0x0100)
  })

  it.each(['', '3.0', '00:03', '00:20.0', '00:03.8', 'zz:03.0', ' 00:03.0'])(
    'refuses %j',
    (name) => {
      expect(() => sourceId(name)).toThrow(TypeError)
    },
  )

  it.each(['0001:00:03.0', -1, 0x10000, 1.5])('refuses %s, which is out of range', (name) => {
    expect(() => sourceId(name)).toThrow(RangeError)
  })

  it('is what requesterName names', () => {
    for (const name of ['00:00.0', '00:03.0', 'ff:1f.7']) {
      expect(requesterName(sourceId(name))).toBe(name)
    }
  })
})

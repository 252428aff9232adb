import { describe, expect, it } from 'vitest'
import { READ, READWRITE, WRITE } from '../../lib/address'
import { Shadow } from '../../lib/iotlb/shadow'
import { byte } from './support'

describe('the shadow', () => {
  it('says what the device may do with a page without asking', () => {
    const shadow = new Shadow(8)
    shadow.insert(4, 7, 100, READ)
    shadow.insert(8, 8, 50, READWRITE)
    expect([3, 4, 7, 8, 9].map((page) => shadow.granted(page))).toEqual([0, READ, READ, 3, 0])
  })

  it('refuses an entry that overlaps another: the kernel would keep both, and use the older', () => {
    const shadow = new Shadow(8)
    shadow.insert(4, 7, 100, READ)
    expect(() => {
      shadow.insert(7, 9, 200, READ)
    }).toThrow(RangeError)
    expect(shadow.entries).toBe(1)
  })

  it('refuses an overlapping entry before it evicts for it', () => {
    const shadow = new Shadow(1)
    shadow.insert(4, 7, 100, READ)
    expect(() => {
      shadow.insert(7, 9, 200, READ)
    }).toThrow(RangeError)
    expect([shadow.entries, shadow.evictions, shadow.granted(4)]).toEqual([1, 0, READ])
  })

  it('K5: evicts in the order of insertion', () => {
    const shadow = new Shadow(2)
    shadow.insert(9, 9, 109, READ)
    shadow.insert(1, 1, 101, READ)
    expect(shadow.full).toBe(true)
    shadow.insert(5, 5, 105, READ)
    expect([shadow.granted(9), shadow.evictions, shadow.entries]).toEqual([0, 1, 2])
    shadow.insert(9, 9, 109, WRITE)
    expect([shadow.granted(1), shadow.granted(5), shadow.granted(9)]).toEqual([0, READ, WRITE])
  })

  it('K4: loses every entry that an INVALIDATE touches, whole', () => {
    const shadow = new Shadow(8)
    shadow.insert(0, 15, 100, READ)
    shadow.insert(16, 31, 200, READ)
    shadow.insert(32, 32, 300, READ)
    expect(shadow.remove(15, 16)).toBe(2)
    expect([shadow.entries, shadow.pages]).toEqual([1, 1])
  })

  it('shows its entries as the device would list them', () => {
    const shadow = new Shadow(8)
    shadow.insert(16, 31, 0x7f00_0000_0, READ)
    shadow.insert(4, 7, 100, READWRITE)
    expect(shadow.snapshot()).toEqual([
      { iova: { first: 0x10000n, last: 0x1ffffn }, hva: 0x7f00_0000_0000n, access: 'read' },
      { iova: { first: byte(4), last: byte(8) - 1n }, hva: byte(100), access: 'readwrite' },
    ])
  })

  it('finds the neighbours of a page on both sides', () => {
    const shadow = new Shadow(8)
    shadow.insert(10, 19, 100, READ)
    shadow.insert(30, 39, 200, READ)
    const first = (slot: number): number => (slot < 0 ? -1 : shadow.firstPage(slot))
    expect([5, 15, 20, 40].map((page) => first(shadow.findFrom(page)))).toEqual([10, 10, 30, -1])
    expect([5, 15, 20, 40].map((page) => first(shadow.findUpTo(page)))).toEqual([-1, 10, 10, 30])
  })

  it('holds more than the usual 2048 entries where the device does', () => {
    const shadow = new Shadow(16384)
    for (let i = 0; i < 16385; i++) shadow.insert(i * 2, i * 2, i + 7, READ, i)
    expect([shadow.entries, shadow.evictions, shadow.granted(0)]).toEqual([16384, 1, 0])
    const slot = shadow.find(32766)
    expect([shadow.hvaPage(slot), shadow.turn(slot)]).toEqual([16390, 16383])
  })

  it('is for a device that holds at least one entry', () => {
    expect(() => new Shadow(0)).toThrow(RangeError)
    expect(() => new Shadow(1.5)).toThrow(RangeError)
  })
})

import { describe, expect, it, vi } from 'vitest'
import { LAST_PAGE, READ, READWRITE, WRITE, gpa, iova, iovaRange } from '../../lib/address'
import { PageTranslation } from '../../lib/memory/address-space'
import { FakeAddressSpace } from '../../lib/testing/fake-address-space'
import { byte } from '../iotlb/support'

describe('the fake address space', () => {
  it('translates to the widest range that was mapped at once', () => {
    const space = new FakeAddressSpace()
    space.map(iovaRange(16, 31), gpa(0x50000), 'read')
    expect(space.translate(iova(0x12345), 'read')).toEqual({
      ok: true,
      iova: iovaRange(16, 31),
      gpa: 0x50000n,
      access: 'read',
    })
  })

  it('keeps what is left beside a new mapping or a hole, each where it was', () => {
    const space = new FakeAddressSpace()
    space.mapPages(0, 9, 100, READ)
    space.mapPages(4, 5, 200, WRITE)
    space.unmapPages(9, 20)
    const out = new PageTranslation()
    const found = [3, 4, 6, 8].map((page) => {
      space.translatePage(page, 0, out)
      return [out.firstPage, out.lastPage, out.gpaPage, out.access]
    })
    expect(found).toEqual([
      [0, 3, 100, READ],
      [4, 5, 200, WRITE],
      [6, 8, 106, READ],
      [6, 8, 106, READ],
    ])
    expect(space.translatePage(9, READ, out)).toBe(false)
  })

  it('records what is refused, but not what was only asked for ahead', () => {
    const space = new FakeAddressSpace()
    space.mapPages(5, 5, 1, READ)
    const out = new PageTranslation()
    expect([space.translatePage(5, WRITE, out), out.reason]).toEqual([false, 2])
    expect([space.translatePage(6, READ, out), out.reason]).toEqual([false, 1])
    expect([space.translatePage(6, 0, out), space.translatePage(5, 0, out)]).toEqual([false, true])
    expect(space.translate(iova(byte(6, 3)), 'none')).toMatchObject({ ok: false })
    expect(space.faults).toEqual([
      { ok: false, iova: byte(5), reason: { code: 2, name: 'not allowed' }, wanted: 'write' },
      { ok: false, iova: byte(6), reason: { code: 1, name: 'not mapped' }, wanted: 'read' },
    ])
  })

  it('tells its notifiers, in pages where they take them, until they are disposed of', () => {
    const space = new FakeAddressSpace()
    const invalidate = vi.fn()
    const invalidatePages = vi.fn()
    const subscription = space.notify({ invalidate })
    space.notify({ invalidate: vi.fn(), invalidatePages })
    space.invalidate(iovaRange(5, 6), 'iotlb')
    expect(invalidate).toHaveBeenCalledWith(iovaRange(5, 6), 'iotlb')
    expect(invalidatePages).toHaveBeenCalledWith(5, 6, 'iotlb')
    subscription[Symbol.dispose]()
    space.invalidatePages()
    expect(invalidate).toHaveBeenCalledTimes(1)
    expect(invalidatePages).toHaveBeenLastCalledWith(0, LAST_PAGE, 'device-tlb')
    expect(space.generation).toBe(2)
  })

  it('is all of guest memory to a device without an IOMMU', () => {
    const space = new FakeAddressSpace('off')
    expect(space.translate(iova(0x12345), 'readwrite')).toEqual({
      ok: true,
      iova: iovaRange(0, LAST_PAGE),
      gpa: 0n,
      access: 'readwrite',
    })
    expect(space.translatePage(7, READWRITE, new PageTranslation())).toBe(true)
  })

  it('maps whole pages only', () => {
    const space = new FakeAddressSpace()
    const odd = { first: iova(0x1001), last: iova(0x1fff) }
    expect(() => {
      space.map(odd, gpa(0), 'read')
    }).toThrow(RangeError)
    expect(() => {
      space.mapPages(3, 2, 0, READ)
    }).toThrow(RangeError)
  })
})

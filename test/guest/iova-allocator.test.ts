import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { IovaAllocator } from '../../lib/guest/iova-allocator'

const LAST_39_BIT = 2 ** 27 - 1

function roundedUp(pages: number): number {
  return 2 ** Math.ceil(Math.log2(pages))
}

describe('IovaAllocator', () => {
  it('begins below 4 GiB and goes down, as Linux does for PCI devices', () => {
    const iovas = new IovaAllocator({ lastPage: LAST_39_BIT })
    expect(iovas.allocate()).toBe(0xfffff)
    expect(iovas.allocate()).toBe(0xffffe)
    expect(iovas.allocate(2)).toBe(0xffffc)
  })

  it('goes above 4 GiB when there is no room below', () => {
    const iovas = new IovaAllocator({ lastPage: LAST_39_BIT })
    expect(iovas.allocate(2 ** 19)).toBe(2 ** 19)
    expect(iovas.allocate(2 ** 19)).toBe(LAST_39_BIT + 1 - 2 ** 19)
  })

  it('gives a freed range of a usual size to the next who asks for that size', () => {
    const iovas = new IovaAllocator({ lastPage: LAST_39_BIT })
    const first = iovas.allocate(3)
    iovas.allocate(3)
    iovas.free(first, 3)
    expect(iovas.allocate(4)).toBe(first)
  })

  it('gives out ranges that are aligned, allowed and disjoint, whatever is freed when', () => {
    const step = fc.record({ pages: fc.integer({ min: 1, max: 100 }), free: fc.nat() })
    fc.assert(
      fc.property(fc.array(step, { maxLength: 150 }), (steps) => {
        const iovas = new IovaAllocator({ firstPage: 3, lastPage: 4000 })
        iovas.reserve(1000, 1015)
        const live: { first: number; pages: number }[] = []
        for (const { pages, free } of steps) {
          if (free % 2 === 0 && live.length > 0) {
            const [range] = live.splice(free % live.length, 1)
            iovas.free(range.first, range.pages)
            continue
          }
          let first: number
          try {
            first = iovas.allocate(pages)
          } catch (error) {
            expect(error).toMatchObject({ code: 'ERR_EXHAUSTED' })
            continue
          }
          expect(first % roundedUp(pages)).toBe(0)
          expect(first).toBeGreaterThanOrEqual(3)
          expect(first + pages - 1).toBeLessThanOrEqual(4000)
          expect(first > 1015 || first + pages - 1 < 1000).toBe(true)
          for (const other of live) {
            expect(first + pages <= other.first || other.first + other.pages <= first).toBe(true)
          }
          live.push({ first, pages })
        }
      }),
      { numRuns: 100 },
    )
  })

  it('uses the cached ranges before it says that there is no room', () => {
    const iovas = new IovaAllocator({ firstPage: 64, lastPage: 127 })
    const singles = Array.from({ length: 64 }, () => iovas.allocate())
    expect(() => iovas.allocate()).toThrow(expect.objectContaining({ code: 'ERR_EXHAUSTED' }))
    for (const page of singles) iovas.free(page)
    expect(iovas.allocate(64)).toBe(64)
    iovas.free(64, 64)
    expect(new Set(Array.from({ length: 64 }, () => iovas.allocate())).size).toBe(64)
  })

  it('notices a range that is freed twice when it looks at it', () => {
    const iovas = new IovaAllocator({ lastPage: 4000 })
    const first = iovas.allocate(64)
    iovas.free(first, 64)
    expect(() => {
      iovas.free(first, 64)
    }).toThrow(RangeError)
  })
})

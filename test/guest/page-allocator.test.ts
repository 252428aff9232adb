import fc from 'fast-check'
import { afterAll, describe, expect, it } from 'vitest'
import { MiB, PAGE_SIZE } from '../../lib/address'
import { InvalidState } from '../../lib/errors'
import { PageAllocator } from '../../lib/guest/page-allocator'
import { GuestMemory } from '../../lib/memory/guest-memory'

const memory = GuestMemory.fromRegions([
  { gpa: 0, bytes: 2 * MiB },
  { gpa: 16 * MiB + 5 * PAGE_SIZE, bytes: 1 * MiB },
])
const PAGES = 512 + 256 - 1
afterAll(() => {
  memory.close()
})

describe('PageAllocator', () => {
  it('gives out every page of the memory but the one at gpa 0', () => {
    const pages = new PageAllocator(memory)
    expect(pages.freePages).toBe(PAGES)
    const seen = new Set<number>()
    while (pages.freePages > 0) seen.add(pages.allocate())
    expect(seen.size).toBe(PAGES)
    expect(seen.has(0)).toBe(false)
    for (const page of seen) expect(memory.find(page * PAGE_SIZE)).toBeDefined()
    expect(() => pages.allocate()).toThrow(expect.objectContaining({ code: 'ERR_EXHAUSTED' }))
  })

  it('gives out blocks that are aligned to their size and never overlap, and gets all back', () => {
    const step = fc.record({ pages: fc.integer({ min: 1, max: 70 }), free: fc.nat() })
    fc.assert(
      fc.property(fc.array(step, { maxLength: 80 }), (steps) => {
        const allocator = new PageAllocator(memory)
        const blocks: { first: number; pages: number }[] = []
        const used = new Set<number>()
        for (const { pages, free } of steps) {
          if (free % 3 === 0 && blocks.length > 0) {
            const [block] = blocks.splice(free % blocks.length, 1)
            allocator.free(block.first, block.pages)
            for (let i = 0; i < block.pages; i++) used.delete(block.first + i)
            continue
          }
          const first = allocator.allocate(pages)
          expect(first % 2 ** Math.ceil(Math.log2(pages))).toBe(0)
          for (let i = 0; i < pages; i++) {
            expect(used.has(first + i)).toBe(false)
            used.add(first + i)
          }
          blocks.push({ first, pages })
          expect(allocator.freePages).toBe(PAGES - used.size)
        }
        for (const { first, pages } of blocks) allocator.free(first, pages)
        expect(allocator.freePages).toBe(PAGES)
        expect(allocator.allocate(256) % 256).toBe(0)
      }),
      { numRuns: 60 },
    )
  })

  it('joins what was freed page by page into large blocks', () => {
    const pages = new PageAllocator(memory)
    const first = pages.allocate(256)
    for (let i = 255; i >= 0; i--) pages.free(first + i)
    expect(pages.allocate(256)).toBe(first)
  })

  it('refuses to free what is free, and what is not memory', () => {
    const pages = new PageAllocator(memory)
    const first = pages.allocate(4)
    pages.free(first + 1)
    for (const [page, count] of [
      [first, 2],
      [first + 1, 1],
      [600, 1],
      [511, 2],
      [first, 0],
    ]) {
      expect(() => {
        pages.free(page, count)
      }).toThrow(RangeError)
    }
    expect(pages.freePages).toBe(PAGES - 3)
  })

  it('refuses block sizes that no block has', () => {
    const pages = new PageAllocator(memory)
    for (const count of [0, -1, 1.5, 2 ** 18 + 1]) {
      expect(() => pages.allocate(count)).toThrow(RangeError)
    }
    expect(() => pages.allocate(2 ** 18)).toThrow(InvalidState)
  })

  it('is one for all who play a guest in the same memory', () => {
    expect(PageAllocator.of(memory)).toBe(PageAllocator.of(memory))
  })
})

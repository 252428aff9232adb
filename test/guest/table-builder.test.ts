import fc from 'fast-check'
import { afterAll, describe, expect, it } from 'vitest'
import { MiB } from '../../lib/address'
import type { AccessBits } from '../../lib/address'
import { PageAllocator } from '../../lib/guest/page-allocator'
import { TableBuilder } from '../../lib/guest/table-builder'
import type { LeafLevel, Levels } from '../../lib/guest/table-builder'
import { GuestMemory } from '../../lib/memory/guest-memory'

const memory = GuestMemory.allocate(8 * MiB)
afterAll(() => {
  memory.close()
})

interface Leaf {
  readonly gpaPage: number
  readonly access: number
  /** 4 KiB pages of the leaf. */
  readonly span: number
}

/** VT-d 4.1, 3.7 and 9.8, read as literally as possible. */
function walk(root: number, levels: number, iovaPage: number): Leaf | undefined {
  let table = BigInt(root) << 12n
  let access = 3n
  for (let level = levels; level >= 1; level--) {
    const index = (BigInt(iovaPage) >> BigInt(9 * (level - 1))) & 511n
    const entry = memory.u64(Number(table + 8n * index))
    access &= entry
    if ((access & 3n) === 0n) return undefined
    expect(entry & ~0x000ffffffffff083n).toBe(0n)
    const leaf = level === 1 || (entry & 0x80n) !== 0n
    const address = entry & 0x000ffffffffff000n
    if (!leaf) {
      table = address
      continue
    }
    const span = 1n << BigInt(9 * (level - 1))
    expect((address >> 12n) % span).toBe(0n)
    const within = BigInt(iovaPage) % span
    return {
      gpaPage: Number((address >> 12n) + within),
      access: Number(access),
      span: Number(span),
    }
  }
  return undefined
}

describe('TableBuilder', () => {
  for (const levels of [3, 4, 5] as const) {
    it(`${levels} levels say what was mapped and not unmapped, to a walker`, () => {
      const last = 2 ** (9 * levels) - 1
      const place = fc.oneof(
        fc.nat(40),
        fc.nat(40).map((page) => last - 40 - page),
      )
      const step = fc.record({
        at: place,
        count: fc.integer({ min: 1, max: 20 }),
        gpaPage: fc.oneof(fc.nat(1000), fc.integer({ min: 2 ** 39, max: 2 ** 40 - 100 })),
        access: fc.constantFrom<AccessBits>(1, 2, 3),
        unmap: fc.boolean(),
        freeTables: fc.boolean(),
      })
      fc.assert(
        fc.property(fc.array(step, { maxLength: 40 }), (steps) => {
          const pages = new PageAllocator(memory)
          const before = pages.freePages
          const tables = new TableBuilder(memory, pages, levels)
          const model = new Map<number, { gpaPage: number; access: number }>()
          for (const { at, count, gpaPage, access, unmap, freeTables } of steps) {
            const run = Array.from({ length: count }, (_, i) => at + i)
            const mapped = run.filter((page) => model.has(page)).length
            if (unmap) {
              expect(tables.unmapPages(at, count, freeTables)).toBe(mapped)
              for (const page of run) model.delete(page)
            } else if (mapped === 0) {
              tables.mapPages(at, gpaPage, count, access)
              run.forEach((page, i) => model.set(page, { gpaPage: gpaPage + i, access }))
            }
          }
          for (let at = 0; at < 64; at++) {
            for (const page of [at, last - at]) {
              const leaf = walk(tables.rootPage, levels, page)
              expect(leaf && { gpaPage: leaf.gpaPage, access: leaf.access }).toEqual(
                model.get(page),
              )
            }
          }
          expect(tables.unmapPages(0, last + 1, true)).toBe(model.size)
          expect(pages.freePages).toBe(before - 1)
          tables.close()
          expect(pages.freePages).toBe(before)
        }),
        { numRuns: 40 },
      )
    })
  }

  it('uses the largest leaves that both addresses allow, and no larger ones than asked for', () => {
    const G = 2 ** 18
    const cases: [number, number, number, LeafLevel, number[]][] = [
      [0, 0, 512, 3, [512]],
      [0, 0, 511, 3, [1]],
      [512, 1024, 1024, 3, [512]],
      [512, 1025, 1024, 3, [1]],
      [G, 0, G, 3, [G]],
      [G, 0, G, 2, [512]],
      [G, 512, G, 3, [512]],
      [0, 0, 1024, 1, [1]],
    ]
    for (const [iovaPage, gpaPage, count, largest, spans] of cases) {
      const pages = new PageAllocator(memory)
      const tables = new TableBuilder(memory, pages, 4)
      tables.mapPages(iovaPage, gpaPage, count, 3, largest)
      const found = walk(tables.rootPage, 4, iovaPage + count - 1)
      expect(found).toEqual({ gpaPage: gpaPage + count - 1, access: 3, span: spans[0] })
      expect(walk(tables.rootPage, 4, iovaPage + count)).toBeUndefined()
      expect(tables.unmapPages(iovaPage, count)).toBe(count)
      expect(walk(tables.rootPage, 4, iovaPage)).toBeUndefined()
      tables.close()
    }
  })

  it('puts a run that begins and ends between large leaves together from all sizes', () => {
    const pages = new PageAllocator(memory)
    const tables = new TableBuilder(memory, pages, 3)
    tables.mapPages(510, 510, 2 + 1024 + 3, 1, 3)
    const spans = [510, 511, 512, 1535, 1536, 1538].map((at) => walk(tables.rootPage, 3, at)?.span)
    expect(spans).toEqual([1, 1, 512, 512, 1, 1])
    tables.close()
  })

  it('refuses to map what is mapped, by whatever size', () => {
    const tables = new TableBuilder(memory, new PageAllocator(memory), 4)
    const inUse = expect.objectContaining({ code: 'ERR_IN_USE' }) as Error
    tables.mapPages(512, 512, 512, 3, 2)
    tables.mapPage(5, 5, 1)
    for (const map of [
      () => {
        tables.mapPage(5, 6, 1)
      },
      () => {
        tables.mapPage(700, 6, 1)
      },
      () => {
        tables.mapPages(512, 0, 512, 3, 2)
      },
      () => {
        tables.mapPages(0, 0, 512, 3, 2)
      },
    ]) {
      expect(map).toThrow(inUse)
    }
    expect(walk(tables.rootPage, 4, 5)?.gpaPage).toBe(5)
  })

  it('puts a large leaf where empty tables were', () => {
    const pages = new PageAllocator(memory)
    const tables = new TableBuilder(memory, pages, 4)
    tables.mapPage(7, 7, 1)
    tables.unmapPage(7)
    const before = pages.freePages
    tables.mapPages(0, 512, 512, 3, 2)
    expect(walk(tables.rootPage, 4, 9)).toEqual({ gpaPage: 521, access: 3, span: 512 })
    expect(pages.freePages).toBe(before + 1)
  })

  it('forgets a table that it gave back', () => {
    const pages = new PageAllocator(memory)
    const tables = new TableBuilder(memory, pages, 4)
    tables.mapPage(512, 1, 3)
    expect(tables.unmapPages(512, 512, true)).toBe(1)
    const elsewhere = pages.allocate()
    tables.mapPage(513, 2, 3)
    expect(walk(tables.rootPage, 4, 513)?.gpaPage).toBe(2)
    expect(elsewhere).toBeGreaterThan(0)
  })

  it('refuses to cut a large leaf', () => {
    const tables = new TableBuilder(memory, new PageAllocator(memory), 4)
    tables.mapPages(512, 512, 512, 3, 2)
    expect(() => tables.unmapPages(600, 1)).toThrow(RangeError)
    expect(tables.unmapPage(600)).toBe(false)
    expect(walk(tables.rootPage, 4, 600)?.span).toBe(512)
  })

  it('ends where its levels end', () => {
    for (const [levels, end] of [
      [3, 2 ** 27],
      [4, 2 ** 36],
      [5, 2 ** 45],
    ] as [Levels, number][]) {
      const tables = new TableBuilder(memory, new PageAllocator(memory), levels)
      expect(tables.endPage).toBe(end)
      tables.mapPage(end - 1, 1, 3)
      for (const page of [end, -1]) {
        expect(() => {
          tables.mapPage(page, 1, 3)
        }).toThrow(RangeError)
      }
      expect(() => {
        tables.mapPages(end - 1, 1, 2, 3)
      }).toThrow(RangeError)
    }
  })

  it('says so when there is no page for a table', () => {
    const pages = new PageAllocator(memory)
    const tables = new TableBuilder(memory, pages, 4)
    while (pages.freePages > 2) pages.allocate()
    expect(() => {
      tables.mapPage(0, 1, 3)
    }).toThrow(expect.objectContaining({ code: 'ERR_EXHAUSTED' }))
  })
})

import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { IntervalMap } from '../../lib/memory/interval-map'

type Pair = readonly [bigint, bigint]

/** What the map should be: a list in the order of insertion, searched from end to end. */
class Oracle {
  ranges: Pair[] = []

  find(page: bigint): Pair | undefined {
    return this.ranges.find(([first, last]) => first <= page && page <= last)
  }

  touching(first: bigint, last: bigint): Pair[] {
    return this.ranges.filter((range) => range[0] <= last && first <= range[1])
  }

  remove(gone: readonly Pair[]): void {
    this.ranges = this.ranges.filter((range) => !gone.includes(range))
  }

  get sorted(): Pair[] {
    return [...this.ranges].sort((a, b) => (a[0] < b[0] ? -1 : 1))
  }
}

const pair = (map: IntervalMap, slot: number): Pair => [
  BigInt(map.firstPage(slot)),
  BigInt(map.lastPage(slot)),
]

function inOrderOfInsertion(map: IntervalMap): Pair[] {
  const found: Pair[] = []
  for (let slot = map.oldest; slot >= 0; slot = map.newerThan(slot)) found.push(pair(map, slot))
  return found
}

function inOrderOfPages(map: IntervalMap): Pair[] {
  return Array.from({ length: map.size }, (_, position) => pair(map, map.at(position)))
}

describe('an interval map', () => {
  it('finds a range by any of its pages, and by no other', () => {
    const map = new IntervalMap(4)
    const slot = map.insert(10, 19)
    expect([9, 10, 15, 19, 20].map((page) => map.find(page))).toEqual([-1, slot, slot, slot, -1])
  })

  it('takes no range that touches another, and one that adjoins it', () => {
    const map = new IntervalMap(4)
    map.insert(10, 19)
    expect([map.insert(5, 10), map.insert(19, 19), map.insert(0, 30)]).toEqual([-1, -1, -1])
    expect([map.insert(5, 9), map.insert(20, 20)]).not.toContain(-1)
    expect([map.size, map.pages]).toEqual([3, 16])
  })

  it('holds the whole of a 64-bit address space in one range', () => {
    const map = new IntervalMap(1)
    map.insert(0, 2 ** 52 - 1)
    expect([map.find(0), map.find(2 ** 52 - 1), map.pages]).toEqual([0, 0, 2 ** 52])
  })

  it('refuses an empty range and a capacity of none', () => {
    expect(() => new IntervalMap(4).insert(2, 1)).toThrow(RangeError)
    expect(() => new IntervalMap(4).insert(Number.NaN, 1)).toThrow(RangeError)
    expect(() => new IntervalMap(0)).toThrow(RangeError)
  })

  it('names the next range above a page that is in none', () => {
    const map = new IntervalMap(4)
    map.insert(30, 39)
    const lower = map.insert(10, 19)
    expect(map.at(map.position(0))).toBe(lower)
    expect(map.firstPage(map.at(map.position(20)))).toBe(30)
    expect(map.at(map.position(40))).toBe(-1)
  })

  it('grows beyond its capacity and keeps every slot', () => {
    const map = new IntervalMap(2)
    const slots = Array.from({ length: 100 }, (_, i) => map.insert(1000 - 10 * i, 1000 - 10 * i))
    expect(new Set(slots).size).toBe(100)
    expect(slots.map((slot) => map.firstPage(slot))).toEqual(
      Array.from({ length: 100 }, (_, i) => 1000 - 10 * i),
    )
    expect(map.capacity).toBeGreaterThanOrEqual(100)
  })

  const page = fc.oneof(fc.integer({ min: 0, max: 80 }), fc.constant(2 ** 52 - 1))
  const operation = fc.record({
    what: fc.constantFrom('insert', 'insert', 'insert', 'removeTouching', 'removeOldest', 'clear'),
    at: page,
    pages: fc.integer({ min: 1, max: 12 }),
  })

  it('is at each step what a list searched end to end is', () => {
    fc.assert(
      fc.property(fc.array(operation, { maxLength: 120 }), (operations) => {
        const map = new IntervalMap(3)
        const oracle = new Oracle()
        for (const { what, at, pages } of operations) {
          const last = Math.min(at + pages - 1, 2 ** 52 - 1)
          const touching = oracle.touching(BigInt(at), BigInt(last))
          expect(map.touches(at, last)).toBe(touching.length > 0)
          if (what === 'insert') {
            expect(map.insert(at, last) >= 0).toBe(touching.length === 0)
            if (touching.length === 0) oracle.ranges.push([BigInt(at), BigInt(last)])
          } else if (what === 'removeTouching') {
            expect(map.removeTouching(at, last)).toBe(touching.length)
            oracle.remove(touching)
          } else if (what === 'removeOldest') {
            if (map.oldest >= 0) map.remove(map.oldest)
            oracle.ranges.shift()
          } else if (pages === 1) {
            map.clear()
            oracle.ranges = []
          }
          expect(inOrderOfInsertion(map)).toEqual(oracle.ranges)
          expect(inOrderOfPages(map)).toEqual(oracle.sorted)
          expect(BigInt(map.pages)).toBe(
            oracle.ranges.reduce((sum, [from, to]) => sum + to - from + 1n, 0n),
          )
          const found = map.find(last)
          expect(found < 0 ? undefined : pair(map, found)).toEqual(oracle.find(BigInt(last)))
        }
      }),
      { numRuns: 150 },
    )
  })

  it('moves many neighbours at once as it moves few', () => {
    const map = new IntervalMap(16)
    const oracle = new Oracle()
    let seed = 7
    const random = (below: number): number => {
      seed = (Math.imul(seed, 1103515245) + 12345) & 0x7fffffff
      return (seed >>> 8) % below
    }
    for (let i = 0; i < 3000; i++) {
      const first = random(20_000)
      const last = first + random(6)
      const wide = i % 500 === 499 ? 2000 : 0
      const touching = oracle.touching(BigInt(first), BigInt(last + wide))
      if (touching.length === 0) {
        map.insert(first, last)
        oracle.ranges.push([BigInt(first), BigInt(last)])
      } else if (i % 3 === 0) {
        expect(map.removeTouching(first, last + wide)).toBe(touching.length)
        oracle.remove(touching)
      }
    }
    expect(map.size).toBeGreaterThan(500)
    expect(inOrderOfPages(map)).toEqual(oracle.sorted)
    expect(inOrderOfInsertion(map)).toEqual(oracle.ranges)
  })
})

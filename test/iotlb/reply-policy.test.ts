import { describe, expect, it } from 'vitest'
import { KiB, MiB, READ, READWRITE } from '../../lib/address'
import { exact, merged } from '../../lib/iotlb/reply-policy'
import { byte, hostMemory, hvaOf, loop } from './support'
import type { Loop } from './support'

/** Maps each page for itself, gpa page = iova page + shift. */
function mapSingles({ space }: Loop, first: number, last: number, shift = 100): void {
  for (let page = first; page <= last; page++) space.mapPages(page, page, page + shift, READ)
}

/** The pages of the first entry that the device was given for a read miss at a page. */
function answered(made: Loop, page: number): readonly [number, number] {
  made.vhost.access(byte(page), 'read')
  made.vhost.settle()
  const { iova } = made.vhost.entries[made.vhost.entries.length - 1]
  return [Number(iova.first >> 12n), Number(iova.last >> 12n)]
}

describe('the exact policy', () => {
  it('answers with the translation itself and no neighbour', () => {
    const made = loop({ reply: exact })
    mapSingles(made, 0, 15)
    expect(answered(made, 5)).toEqual([5, 5])
  })

  it('answers an identity with all of the region that holds the page', () => {
    const made = loop({
      memory: hostMemory({ gpaPage: 0, pages: 16 }, { gpaPage: 32, pages: 16 }),
    })
    made.space.state = 'identity'
    expect(answered(made, 40)).toEqual([32, 47])
    expect(answered(made, 3)).toEqual([0, 15])
  })
})

describe('the merged policy', () => {
  it('takes neighbours that continue iova and host memory, up to the limit, upwards first', () => {
    const made = loop({ reply: merged(32 * KiB) })
    mapSingles(made, 0, 63)
    expect(answered(made, 20)).toEqual([20, 27])
  })

  it('takes those below with what the limit leaves', () => {
    const made = loop({ reply: merged(32 * KiB) })
    mapSingles(made, 0, 22)
    expect(answered(made, 20)).toEqual([15, 22])
  })

  it('gives each page its own host page', () => {
    const made = loop({ reply: merged(64 * KiB) })
    mapSingles(made, 10, 20)
    answered(made, 15)
    expect(made.vhost.access(byte(10, 7), 'read').hva).toBe(hvaOf(110, 7))
    expect(made.vhost.access(byte(20, 7), 'read').hva).toBe(hvaOf(120, 7))
  })

  it('stops where the host memory does not continue', () => {
    const made = loop({ reply: merged(MiB) })
    mapSingles(made, 0, 9)
    mapSingles(made, 10, 19, 500)
    mapSingles(made, 20, 29)
    expect(answered(made, 15)).toEqual([10, 19])
  })

  it('stops where the access differs, more or less', () => {
    const made = loop({ reply: merged(MiB) })
    mapSingles(made, 0, 20)
    made.space.mapPages(12, 12, 112, READWRITE)
    made.space.mapPages(8, 8, 108, 2)
    expect(answered(made, 10)).toEqual([9, 11])
  })

  it('stops at what is not mapped, and leaves no fault behind', () => {
    const made = loop({ reply: merged(MiB) })
    mapSingles(made, 5, 9)
    expect(answered(made, 7)).toEqual([5, 9])
    expect(made.space.faults).toEqual([])
  })

  it('stops at the end of a region, even where the next one happens to follow in the host', () => {
    const made = loop({
      reply: merged(MiB),
      memory: hostMemory(
        { gpaPage: 0, pages: 16, hvaPage: 0x1000 },
        { gpaPage: 16, pages: 16, hvaPage: 0x1010 },
      ),
    })
    mapSingles(made, 0, 31, 0)
    expect(answered(made, 10)).toEqual([0, 15])
    expect(answered(made, 20)).toEqual([16, 31])
  })

  it('stops at what the device holds already', () => {
    const made = loop({ reply: merged(16 * KiB) })
    mapSingles(made, 0, 31)
    expect(answered(made, 10)).toEqual([10, 13])
    expect(answered(made, 8)).toEqual([6, 9])
    expect(made.handler.stats().invalidates).toBe(0)
  })

  it('takes a part of a larger neighbour, and the whole of a larger translation', () => {
    const made = loop({ reply: merged(32 * KiB) })
    mapSingles(made, 0, 3)
    made.space.mapPages(4, 35, 104, READ)
    expect(answered(made, 2)).toEqual([2, 9])
    made.space.invalidatePages()
    expect(answered(made, 20)).toEqual([4, 35])
  })

  it('looks at a bounded number of neighbours, however large the limit', () => {
    const made = loop({ reply: merged(1024 * MiB) })
    mapSingles(made, 0, 2000)
    const [first, last] = answered(made, 0)
    expect(last - first + 1).toBe(513)
    expect(made.handler.stats().translations).toBe(513)
  })

  it('stops at both ends of the address space', () => {
    const made = loop({ reply: merged(MiB) })
    mapSingles(made, 0, 1)
    made.space.mapPages(2 ** 52 - 1, 2 ** 52 - 1, 7, READ)
    expect(answered(made, 1)).toEqual([0, 1])
    expect(answered(made, 2 ** 52 - 1)).toEqual([2 ** 52 - 1, 2 ** 52 - 1])
  })

  it('wants a limit of whole pages', () => {
    for (const limit of [0, -4096, 100, 4097, Number.NaN, Infinity]) {
      expect(() => merged(limit)).toThrow(RangeError)
    }
  })
})

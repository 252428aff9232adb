import { afterAll, describe, expect, it } from 'vitest'
import { MiB, PAGE_SIZE } from '../../lib/address'
import type { AccessBits } from '../../lib/address'
import type { AddressSpace } from '../../lib/memory/address-space'
import { GuestMemory } from '../../lib/memory/guest-memory'
import { DmaWindow, Located, physicalView, translatedView } from '../../lib/virtio/dma-view'

const memory = GuestMemory.fromRegions([
  { gpa: 0, bytes: 1 * MiB },
  { gpa: 4 * MiB, bytes: 1 * MiB },
])
afterAll(() => {
  memory.close()
})

/** One range of pages, at iova = gpa + shift. */
function space(first: number, last: number, gpaPage: number, access: AccessBits): AddressSpace {
  return {
    state: 'translating',
    generation: 0,
    translate: () => {
      throw new Error('the hot path only')
    },
    translatePage: (page, wanted, out) => {
      if (page < first || page > last || (access & wanted) !== wanted) return false
      Object.assign(out, { firstPage: first, lastPage: last, gpaPage, access })
      return true
    },
    notify: () => ({ [Symbol.dispose]: () => undefined }),
  }
}

describe('DmaView', () => {
  it('says which pages lie together, by gpa', () => {
    const out = new Located()
    expect(physicalView(memory).locate(1025, 3, out)).toBe(true)
    expect([out.firstPage, out.lastPage, out.base]).toEqual([1024, 1279, 0])
    expect(physicalView(memory).locate(256, 1, out)).toBe(false)
    expect(physicalView(memory).locate(2 ** 52 - 1, 1, out)).toBe(false)
  })

  it('cuts a translation where memory ends', () => {
    const out = new Located()
    const view = translatedView(memory, space(2 ** 40, 2 ** 40 + 999, 200, 3))
    expect(view.locate(2 ** 40 + 10, 1, out)).toBe(true)
    expect([out.firstPage, out.lastPage]).toEqual([2 ** 40, 2 ** 40 + 55])
    expect(out.base).toBe(200 * PAGE_SIZE)
    expect(view.locate(2 ** 40 + 60, 1, out)).toBe(false)
    expect(out.firstPage).toBeGreaterThan(out.lastPage)
  })
})

describe('DmaWindow', () => {
  it('copies over the border of two translations, and no further than granted', () => {
    const pages = [7, 3, 9]
    const scattered: AddressSpace = {
      ...space(0, 0, 0, 0),
      translatePage: (page, wanted, out) => {
        if (page > 2 || (page === 2 && wanted !== 1)) return false
        Object.assign(out, { firstPage: page, lastPage: page, gpaPage: pages[page], access: 3 })
        if (page === 2) out.access = 1
        return true
      },
    }
    const window = new DmaWindow(translatedView(memory, scattered))
    const bytes = Uint8Array.from({ length: 6000 }, (_, at) => at % 251)
    expect(window.write(0, 100, bytes, 0, 6000)).toBe(true)
    const expected = memory.view(7 * PAGE_SIZE + 100, 3996)
    expect([...expected]).toEqual([...bytes.subarray(0, 3996)])
    const back = new Uint8Array(6000)
    expect(window.read(0, 100, back, 0, 6000)).toBe(true)
    expect(back).toEqual(bytes)
    expect(window.write(0, 2 * PAGE_SIZE - 1, bytes, 0, 2)).toBe(false)
    expect(window.read(0, 2 * PAGE_SIZE - 1, back, 0, 2)).toBe(true)
    expect(window.read(0, 3 * PAGE_SIZE - 1, back, 0, 2)).toBe(false)
  })

  it('asks again for more than was granted before', () => {
    const window = new DmaWindow(translatedView(memory, space(5, 5, 1, 1)))
    expect(window.reach(5, 0, 1)).toBe(PAGE_SIZE)
    expect(window.reach(5, 0, 2)).toBe(-1)
    expect(window.reach(5, 0, 1)).toBe(PAGE_SIZE)
  })

  it('refuses what lies beyond the last page', () => {
    const window = new DmaWindow(translatedView(memory, space(0, 2 ** 52 - 1, 0, 3)))
    expect(window.reach(2 ** 52 - 1, PAGE_SIZE, 1)).toBe(-1)
  })
})

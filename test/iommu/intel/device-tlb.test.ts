/** The size encoding of device-TLB descriptors (VT-d 5.10 6.5.2.5), as observed too. */
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { LAST_PAGE } from '../../../lib/address'
import { deviceTlbRange } from '../../../lib/iommu/intel/device-tlb'

const range = (address: bigint, size: boolean): [number, number] => {
  const out = { firstPage: 0, lastPage: 0 }
  deviceTlbRange(Number(address >> 12n), size, out)
  return [out.firstPage, out.lastPage]
}

describe('deviceTlbRange', () => {
  it('is one page with S clear, whatever the address', () => {
    expect(range(0xffeb9000n, false)).toEqual([0xffeb9, 0xffeb9])
    expect(range(0xfffffffffffff000n, false)).toEqual([LAST_PAGE, LAST_PAGE])
  })

  it.each([
    [0x12340000n, 2],
    [0x12341000n, 4],
    [0x12343000n, 8],
    [0x12347000n, 16],
    [0x1234f000n, 32],
    [0x121ff000n, 1024],
  ])('with S set, 0x%s is %i pages, aligned to their size', (address, pages) => {
    const page = Number(address >> 12n)
    const first = page - (page % pages)
    expect(range(address, true)).toEqual([first, first + pages - 1])
  })

  it.each([0x7ffffffffffff000n, 0xfffffffffffff000n])(
    'all ones, 0x%s, is everything',
    (address) => {
      expect(range(address, true)).toEqual([0, LAST_PAGE])
    },
  )

  it('one zero bit below the top is half of everything', () => {
    expect(range(0x3ffffffffffff000n, true)).toEqual([0, 2 ** 51 - 1])
    expect(range(0xbffffffffffff000n, true)).toEqual([2 ** 51, LAST_PAGE])
  })

  it('holds the page that was named, and is a power of two, for any address', () => {
    fc.assert(
      fc.property(fc.bigInt({ min: 0n, max: (1n << 52n) - 1n }), (page) => {
        const [first, last] = range(page << 12n, true)
        const pages = BigInt(last) - BigInt(first) + 1n
        expect(pages & (pages - 1n)).toBe(0n)
        expect(BigInt(first) % pages).toBe(0n)
        expect(first <= Number(page) && Number(page) <= last).toBe(true)
      }),
    )
  })
})

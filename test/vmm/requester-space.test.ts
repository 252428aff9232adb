import { expect, it } from 'vitest'
import type { Iova, Range } from '../../lib/address'
import type { Iommu } from '../../lib/iommu/iommu'
import { PageTranslation } from '../../lib/memory/address-space'
import { FakeAddressSpace } from '../../lib/testing/fake-address-space'
import { RequesterSpace } from '../../lib/vmm/requester-space'

function setUp() {
  const spaces = new Map<unknown, FakeAddressSpace>()
  const iommu: Iommu = {
    addressSpace: (requester) => {
      const space = spaces.get(requester) ?? new FakeAddressSpace()
      spaces.set(requester, space)
      return space
    },
    explain: () => [],
    reset: () => undefined,
  }
  const seen: [Range<Iova>, string][] = []
  const space = new RequesterSpace(iommu, 0x100)
  const registration = space.notify({ invalidate: (range, source) => seen.push([range, source]) })
  return { space, seen, registration, of: (source: number) => spaces.get(source)! }
}

const translates = (space: RequesterSpace): boolean =>
  space.translatePage(5, 1, new PageTranslation())

it('translates as the source id that the function has now', () => {
  const { space, of } = setUp()
  of(0x100).mapPages(5, 5, 9, 3)
  expect(translates(space)).toBe(true)
  space.requester = 0x200
  expect(translates(space)).toBe(false)
  of(0x200).mapPages(5, 5, 9, 3)
  expect(translates(space)).toBe(true)
  expect(space.requester).toBe(0x200)
})

it('takes everything back when the source id changes, and says that it is another space', () => {
  const { space, seen } = setUp()
  const before = space.generation
  space.requester = 0x100
  expect(seen).toEqual([])
  space.requester = 0x200
  expect(seen).toEqual([[{ first: 0n, last: (1n << 64n) - 1n }, 'disabled']])
  expect(space.generation).not.toBe(before)
})

it('hears of invalidations under the new id, and no more under the old one', () => {
  const { space, seen, of, registration } = setUp()
  space.requester = 0x200
  seen.length = 0
  of(0x100).invalidatePages(1, 1)
  expect(seen).toEqual([])
  of(0x200).invalidatePages(1, 1)
  expect(seen).toHaveLength(1)
  registration[Symbol.dispose]()
  of(0x200).invalidatePages(1, 1)
  expect(seen).toHaveLength(1)
})

import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { GiB, MiB, PAGE_SIZE, gpa, iova } from '../../lib/address'
import type { Iova } from '../../lib/address'
import { IntelIommuDriver } from '../../lib/guest/intel-iommu-driver'
import { IntelIommu } from '../../lib/iommu/intel/intel-iommu'
import { PageTranslation } from '../../lib/memory/address-space'
import { GuestMemory } from '../../lib/memory/guest-memory'
import {
  Clock,
  SOURCE,
  driverOf,
  fresh,
  heard,
  iommu,
  memory,
  pageAt,
  pages,
  setUp,
  space,
} from './iommu-guest'

beforeEach(() => {
  fresh()
})
afterEach(() => {
  memory.close()
})

function gpaAt(at: Iova): bigint | undefined {
  const found = space.translate(at, 'none')
  return found.ok ? found.gpa + (at - found.iova.first) : undefined
}

const modes = ['off', 'passthrough', 'static', 'strict', 'lazy'] as const
const orders = ['6.12', '6.1'] as const

describe('IntelIommuDriver in every mode', () => {
  for (const mode of modes) {
    for (const order of orders) {
      for (const deviceTlb of [true, false]) {
        it(`${mode}, ${order}, ATS ${deviceTlb ? 'on' : 'off'}: maps what the device reaches`, () => {
          const before = pages.freePages
          const driver = driverOf({ mode, order, deviceTlb })
          const at = driver.map(gpa(0x123456), 10_000, 'readwrite')
          expect(at & 0xfffn).toBe(0x456n)
          for (const offset of [0n, 9_999n])
            expect(gpaAt(iova(at + offset))).toBe(0x123456n + offset)
          driver.unmap(at)
          driver.flush()
          const kept = mode === 'strict' || mode === 'lazy' ? undefined : 0x123456n
          expect(gpaAt(at)).toBe(kept)
          driver.disable()
          expect(pages.freePages).toBe(before)
          expect(space.state).toBe('off')
        })
      }
    }
  }

  it('refuses calls before enable() and twice', () => {
    const driver = new IntelIommuDriver(iommu, memory, { requester: SOURCE, mode: 'strict', pages })
    const notStarted = expect.objectContaining({ code: 'ERR_NOT_STARTED' }) as Error
    expect(() => driver.map(gpa(0), 1, 'read')).toThrow(notStarted)
    expect(() => {
      driver.unmapPages(1, 1)
    }).toThrow(notStarted)
    driver.enable()
    expect(() => {
      driver.enable()
    }).toThrow(expect.objectContaining({ code: 'ERR_ALREADY_STARTED' }))
    driver.disable()
    driver.disable()
  })

  it('refuses to map what is not memory, and to unmap what is not mapped', () => {
    const driver = driverOf({})
    expect(() => driver.map(gpa(8 * MiB), 1, 'read')).toThrow(RangeError)
    expect(() => driver.map(gpa(8 * MiB - 1), 2, 'read')).toThrow(RangeError)
    expect(() => driver.map(gpa(0), 0, 'read')).toThrow(RangeError)
    expect(() => {
      driver.unmap(iova(0x1000))
    }).toThrow(RangeError)
    const at = driver.map(gpa(0), 2 * PAGE_SIZE, 'read')
    driver.unmap(at)
    expect(() => {
      driver.unmap(at)
    }).toThrow(RangeError)
    expect(() => {
      driver.unmapPages(Number(at >> 12n), 1)
    }).toThrow(RangeError)
  })
})

describe('ATS', () => {
  it('is switched on for translated devices alone, and off again', () => {
    const switched: [string, boolean][] = []
    for (const mode of modes) {
      for (const deviceTlb of [true, false]) {
        setUp(new IntelIommu(memory))
        const setAts = iommu.setAts.bind(iommu)
        iommu.setAts = (requester, on) => {
          expect(requester).toBe(SOURCE)
          switched.push([mode, on])
          setAts(requester, on)
        }
        driverOf({ mode, deviceTlb }).disable()
      }
    }
    expect(switched).toEqual(
      ['static', 'strict', 'lazy'].flatMap((mode) => [
        [mode, true],
        [mode, false],
      ]),
    )
  })

  it('stays off where the unit has no device TLBs (ECAP.DT)', () => {
    setUp(new IntelIommu(memory, { deviceTlb: false }))
    const driver = driverOf({})
    const page = driver.mapPages(7, 1, 1)
    expect(pageAt(page)).toBe(7)
    driver.unmapPages(page, 1)
    expect(heard).toEqual([{ first: page, last: page, source: 'iotlb' }])
  })
})

describe('off and passthrough', () => {
  it('off leaves the unit alone', () => {
    driverOf({ mode: 'off' })
    expect(iommu.read(0x1c, 4)).toBe(0n)
    expect(space.state).toBe('off')
  })

  it('passthrough lets gpas through, and leaves ATS off (9.3: TT = 10b blocks its requests)', () => {
    driverOf({ mode: 'passthrough' })
    expect(space.state).toBe('identity')
    expect(gpaAt(iova(0x5678))).toBe(0x5678n)
  })

  it('passthrough needs a unit that has it', () => {
    setUp(new IntelIommu(memory, { passThrough: false }))
    expect(() => driverOf({ mode: 'passthrough' })).toThrow(
      expect.objectContaining({ code: 'ERR_UNSUPPORTED' }),
    )
  })
})

describe('static', () => {
  /** Pages of the translation around a gpa. */
  function leafAt(page: number): number {
    const out = new PageTranslation()
    expect(space.translatePage(page, 3, out)).toBe(true)
    expect(out.gpaPage + page - out.firstPage).toBe(page)
    return out.lastPage - out.firstPage + 1
  }

  it('maps all of memory at iova = gpa with pages of the size asked for', () => {
    for (const [pageSize, span] of [
      ['4K', 1],
      ['2M', 512],
    ] as const) {
      const driver = driverOf({ mode: 'static', pageSize })
      for (const page of [0, 1, 700, 2047]) expect(leafAt(page)).toBe(span)
      expect(pageAt(2048)).toBeUndefined()
      driver.disable()
    }
  })

  it('uses what pages the unit has, and what fit', () => {
    driverOf({ mode: 'static' })
    expect(leafAt(700)).toBe(512)
    setUp(new IntelIommu(memory, { superpages: 'none' }))
    driverOf({ mode: 'static', pageSize: '1G' })
    expect(leafAt(700)).toBe(1)
  })

  it('maps every region', () => {
    memory.close()
    fresh(
      GuestMemory.fromRegions([
        { gpa: 0, bytes: 4 * MiB },
        { gpa: 4 * GiB, bytes: 2 * MiB },
      ]),
    )
    driverOf({ mode: 'static' })
    expect(leafAt(2 ** 20 + 17)).toBe(512)
    expect(pageAt(1024)).toBeUndefined()
  })
})

describe('strict', () => {
  it('grants what was asked for and no more', () => {
    const driver = driverOf({})
    const page = driver.mapPages(7, 1, 2)
    expect(pageAt(page, 2)).toBe(7)
    expect(pageAt(page, 1)).toBeUndefined()
  })

  it('the table has changed before anybody hears of it, and the iova is free only then', () => {
    const driver = driverOf({})
    const page = driver.mapPages(7, 3, 1)
    let told = 0
    space.notify({
      invalidate: () => {
        told++
        for (let i = 0; i < 3; i++) expect(pageAt(page + i, 0)).toBeUndefined()
        expect(driver.mapPages(100, 3, 1)).not.toBe(page)
      },
    })
    driver.unmapPages(page, 3)
    expect(told).toBe(1)
    expect(driver.mapPages(9, 3, 1)).toBe(page)
    expect(pageAt(page)).toBe(9)
  })

  it('6.12 sends IOTLB, device TLB and wait at once, 6.1 with a wait after each', () => {
    for (const [order, waits] of [
      ['6.12', 1],
      ['6.1', 2],
    ] as const) {
      const driver = driverOf({ order })
      const before = driver.submitted
      driver.unmapPages(driver.mapPages(7, 1, 1), 1)
      expect(driver.submitted.invalidations - before.invalidations).toBe(2)
      expect(driver.submitted.submissions - before.submissions).toBe(waits)
      driver.disable()
    }
  })

  it('without ATS sends no device-TLB invalidation, and the device hears all the same', () => {
    const driver = driverOf({ deviceTlb: false })
    const before = driver.submitted
    const page = driver.mapPages(7, 1, 1)
    expect(pageAt(page)).toBe(7)
    driver.unmapPages(page, 1)
    expect(driver.submitted.invalidations - before.invalidations).toBe(1)
    expect(heard).toEqual([{ first: page, last: page, source: 'iotlb' }])
  })

  it('with ATS the device hears through its own TLB', () => {
    const driver = driverOf({})
    const page = driver.mapPages(7, 1, 1)
    driver.unmapPages(page, 1)
    expect(heard).toEqual([{ first: page, last: page, source: 'device-tlb' }])
  })

  it('invalidates an aligned block that covers the range, for any length and place', () => {
    for (const pinned of [0, 1, 2, 5]) {
      for (const count of [1, 2, 3, 4, 5, 17, 33, 100]) {
        const driver = driverOf({})
        if (pinned > 0) driver.mapPages(7, pinned, 1)
        const page = driver.mapPages(7, count, 1)
        heard.length = 0
        driver.unmapPages(page, count)
        expect(heard).toHaveLength(1)
        expect(heard[0].first).toBeLessThanOrEqual(page)
        expect(heard[0].last).toBeGreaterThanOrEqual(page + count - 1)
        driver.disable()
      }
    }
  })

  it('refuses to unmap a run that no single mapping can have', () => {
    const driver = driverOf({})
    const page = driver.mapPages(7, 4, 1)
    expect(() => {
      driver.unmapPages(page + 1, 2)
    }).toThrow(RangeError)
    expect(pageAt(page + 1)).toBe(8)
  })

  it('keeps off the range where interrupts go (VT-d 4.1, 3.15)', () => {
    setUp(new IntelIommu(memory, { addressWidth: 39 }))
    const driver = driverOf({})
    const pagesOfWindow = 0x100
    for (let i = 0; i < 40; i++) {
      const page = driver.mapPages(7, pagesOfWindow, 1)
      expect(page + pagesOfWindow <= 0xfee00 || page > 0xfeeff).toBe(true)
    }
  })

  it('takes back what it began when memory for tables runs out, and goes on after', () => {
    const driver = driverOf({})
    const page = driver.mapPages(7, 1, 1)
    const held: number[] = []
    while (pages.freePages > 0) held.push(pages.allocate())
    expect(() => driver.mapPages(7, 1500, 1)).toThrow(
      expect.objectContaining({ code: 'ERR_EXHAUSTED' }),
    )
    expect(pageAt(page)).toBe(7)
    for (const each of held) pages.free(each)
    const large = driver.mapPages(7, 1500, 1)
    driver.disable()
    const fresh = driverOf({})
    fresh.mapPages(7, 1, 1)
    expect(fresh.mapPages(7, 1500, 1)).toBe(large)
    for (const at of [0, 700, 1499]) expect(pageAt(large + at)).toBe(7 + at)
  })
})

describe('lazy', () => {
  it('does not use an iova again before the flush', () => {
    const clock = new Clock()
    const driver = driverOf({ mode: 'lazy', after: clock.after })
    const seen = new Set<number>()
    for (let i = 0; i < 255; i++) {
      const page = driver.mapPages(7, 1, 1)
      expect(seen.has(page)).toBe(false)
      seen.add(page)
      driver.unmapPages(page, 1)
    }
    expect(heard).toEqual([])
    driver.flush()
    expect(seen.has(driver.mapPages(7, 1, 1))).toBe(true)
  })

  it('256 unmapped ranges share one domain-wide invalidation', () => {
    const clock = new Clock()
    const driver = driverOf({ mode: 'lazy', after: clock.after })
    const before = driver.submitted
    for (let i = 0; i < 512; i++) driver.unmapPages(driver.mapPages(7, 1, 1), 1)
    expect(driver.submitted.submissions - before.submissions).toBe(2)
    expect(driver.submitted.invalidations - before.invalidations).toBe(4)
    expect(heard).toHaveLength(2)
    expect(heard[0]).toEqual({ first: 0, last: 2 ** 52 - 1, source: 'device-tlb' })
  })

  it('6.12 sends IOTLB, device TLB and wait at once, 6.1 with a wait after each', () => {
    for (const [order, waits] of [
      ['6.12', 1],
      ['6.1', 2],
    ] as const) {
      const driver = driverOf({ mode: 'lazy', order, after: new Clock().after })
      const before = driver.submitted
      driver.unmapPages(driver.mapPages(7, 1, 1), 1)
      driver.flush()
      driver.flush()
      expect(driver.submitted.invalidations - before.invalidations).toBe(2)
      expect(driver.submitted.submissions - before.submissions).toBe(waits)
      driver.disable()
    }
  })

  it('so do fewer after 10 ms, and nothing ticks when nothing waits', () => {
    const clock = new Clock()
    const driver = driverOf({ mode: 'lazy', after: clock.after })
    expect(clock.running.size).toBe(0)
    driver.unmapPages(driver.mapPages(7, 1, 1), 1)
    driver.unmapPages(driver.mapPages(7, 2, 1), 2)
    expect(clock.running.size).toBe(1)
    clock.tick()
    expect(heard).toHaveLength(1)
    expect(clock.running.size).toBe(0)
    driver.unmapPages(driver.mapPages(7, 1, 1), 1)
    expect(clock.running.size).toBe(1)
    driver.disable()
    expect(clock.running.size).toBe(0)
  })

  it('the table entry is gone at once', () => {
    const driver = driverOf({ mode: 'lazy', after: new Clock().after })
    const page = driver.mapPages(7, 1, 1)
    driver.unmapPages(page, 1)
    expect(pageAt(page)).toBeUndefined()
  })
})

describe('caching mode (VT-d 4.1, 6.1)', () => {
  it('makes lazy strict, and invalidates what is mapped', () => {
    setUp(new IntelIommu(memory, { cachingMode: true }))
    const driver = driverOf({ mode: 'lazy' })
    const before = driver.submitted
    const page = driver.mapPages(7, 1, 1)
    expect(driver.submitted.invalidations - before.invalidations).toBe(1)
    driver.unmapPages(page, 1)
    expect(driver.submitted.invalidations - before.invalidations).toBe(3)
    expect(driver.mapPages(7, 1, 1)).toBe(page)
  })
})

describe('two devices behind one unit', () => {
  it('have tables of their own', () => {
    const one = driverOf({})
    const two = new IntelIommuDriver(iommu, memory, { requester: '00:04.0', mode: 'strict', pages })
    two.enable()
    const page = one.mapPages(7, 1, 3)
    expect(two.mapPages(9, 1, 3)).toBe(page)
    const other = new PageTranslation()
    expect(iommu.addressSpace('00:04.0').translatePage(page, 3, other)).toBe(true)
    expect(other.gpaPage).toBe(9)
    expect(pageAt(page)).toBe(7)
    one.disable()
    expect(pageAt(page)).toBeUndefined()
    expect(iommu.addressSpace('00:04.0').translatePage(page, 3, other)).toBe(true)
    two.disable()
    expect(iommu.read(0x1c, 4) >> 31n).toBe(0n)
  })
})

describe('faults', () => {
  it('a stale address faults, and the driver reads the record', () => {
    const driver = driverOf({})
    const page = driver.mapPages(7, 1, 1)
    driver.unmapPages(page, 1)
    expect(pageAt(page, 2)).toBeUndefined()
    expect(driver.takeFaults()).toEqual([{ source: SOURCE, page, reason: 5, access: 'write' }])
    expect(driver.takeFaults()).toEqual([])
  })
})

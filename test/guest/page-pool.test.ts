import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { IntelIommuDriver } from '../../lib/guest/intel-iommu-driver'
import type { IntelIommuDriverOptions } from '../../lib/guest/intel-iommu-driver'
import { Clock, SOURCE, driverOf, fresh, heard, iommu, memory, pageAt, pages } from './iommu-guest'

beforeEach(() => {
  fresh()
})
afterEach(() => {
  memory.close()
})

describe('a pool of pages', () => {
  it('keeps pages that follow one another together, each at an iova of its own', () => {
    const driver = driverOf({})
    const pool = driver.pool(100, 16)
    const first = pool.map(0, 1)
    for (let at = 1; at < 16; at++) expect(pool.map(at, 1)).toBe(first + at)
    for (let at = 0; at < 16; at++) expect(pageAt(first + at)).toBe(100 + at)
    const other = driver.mapPages(7, 16, 1)
    expect(other + 15 < first || other > first + 15).toBe(true)
    pool.unmap(0, 16)
    pool.close()
    expect(driver.mapPages(7, 16, 1)).toBe(first)
  })

  it('invalidates a run in one submission, exactly, and before the page is mapped again', () => {
    for (const [order, waits] of [
      ['6.12', 1],
      ['6.1', 2],
    ] as const) {
      for (const [from, count, blocks] of [
        [0, 16, 1],
        [0, 1, 1],
        [1, 7, 3],
        [3, 10, 4],
      ]) {
        const driver = driverOf({ order })
        const pool = driver.pool(100, 16)
        const first = pool.map(0, 3)
        for (let at = 1; at < 16; at++) pool.map(at, 3)
        for (let at = 0; at < 16; at++) expect(pageAt(first + at)).toBe(100 + at)
        const before = driver.submitted
        heard.length = 0
        pool.unmap(from, count)
        expect(driver.submitted.submissions - before.submissions).toBe(waits)
        expect(driver.submitted.invalidations - before.invalidations).toBe(2 * blocks)
        const told = heard.flatMap((each) =>
          Array.from({ length: each.last - each.first + 1 }, (_, at) => each.first + at),
        )
        const run = Array.from({ length: count }, (_, at) => first + from + at)
        expect(told.sort((a, b) => a - b)).toEqual(run)
        for (let at = 0; at < 16; at++) {
          const gone = at >= from && at < from + count
          expect(pageAt(first + at)).toBe(gone ? undefined : 100 + at)
        }
        expect(pool.map(from, 1)).toBe(first + from)
        driver.disable()
      }
    }
  })

  it('refuses to unmap what is not mapped', () => {
    const pool = driverOf({}).pool(100, 4)
    pool.map(1, 1)
    expect(() => {
      pool.unmap(1, 2)
    }).toThrow(RangeError)
  })

  it('in other modes is what mapPages and unmapPages make of it', () => {
    for (const mode of ['passthrough', 'static', 'lazy'] as const) {
      const driver = driverOf({ mode, after: new Clock().after })
      const pool = driver.pool(100, 4)
      const mapped = [0, 1, 2, 3].map((at) => pool.map(at, 1))
      expect(mapped.map((page) => pageAt(page))).toEqual([100, 101, 102, 103])
      const before = driver.submitted
      pool.unmap(0, 4)
      expect(driver.submitted).toEqual(before)
      expect(pageAt(mapped[0])).toBe(mode === 'lazy' ? undefined : 100)
      pool.close()
      driver.disable()
    }
  })

  it('invalidates the domain where the unit has no page-selective invalidation (CAP.PSI)', () => {
    const PSI = 1n << 39n
    const whole: IntelIommuDriverOptions = { requester: SOURCE, mode: 'strict', pages }
    const unit = {
      read: (offset: number, size: number) =>
        iommu.read(offset, size) & (offset === 8 ? ~PSI : ~0n),
      write: iommu.write.bind(iommu),
      addressSpace: iommu.addressSpace.bind(iommu),
    }
    const driver = new IntelIommuDriver(unit, memory, { ...whole, deviceTlb: false })
    driver.enable()
    const everything = [{ first: 0, last: 2 ** 52 - 1, source: 'iotlb' }]
    const page = driver.mapPages(7, 1, 1)
    expect(pageAt(page)).toBe(7)
    heard.length = 0
    driver.unmapPages(page, 1)
    expect(heard).toEqual(everything)
    const pool = driver.pool(100, 4)
    const pooled = [0, 1, 2].map((at) => pool.map(at, 1))
    expect(pooled.map((each) => pageAt(each))).toEqual([100, 101, 102])
    heard.length = 0
    pool.unmap(0, 3)
    expect(heard).toEqual(everything)
  })
})

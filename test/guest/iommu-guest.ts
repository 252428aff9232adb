/**
 * A guest with one device behind one unit, for the tests of its IOMMU driver: the unit, the
 * device's address space, and what it hears of invalidations. `fresh()` begins anew.
 */
import { expect } from 'vitest'
import { MiB } from '../../lib/address'
import type { AccessBits } from '../../lib/address'
import { IntelIommuDriver } from '../../lib/guest/intel-iommu-driver'
import type { After, IntelIommuDriverOptions } from '../../lib/guest/intel-iommu-driver'
import { PageAllocator } from '../../lib/guest/page-allocator'
import { IntelIommu } from '../../lib/iommu/intel/intel-iommu'
import { PageTranslation } from '../../lib/memory/address-space'
import type { AddressSpace, InvalidationSource } from '../../lib/memory/address-space'
import { GuestMemory } from '../../lib/memory/guest-memory'

export const REQUESTER = '00:03.0'
export const SOURCE = 0x18

export let memory: GuestMemory
export let iommu: IntelIommu
export let space: AddressSpace
export let pages: PageAllocator
export let heard: { first: number; last: number; source: InvalidationSource }[]

/** New memory, and a unit with all that it can do. */
export function fresh(made = GuestMemory.allocate(8 * MiB)): void {
  memory = made
  setUp(new IntelIommu(memory))
}

/** Another unit in the same memory. */
export function setUp(unit: IntelIommu): void {
  iommu = unit
  space = iommu.addressSpace(REQUESTER)
  pages = new PageAllocator(memory)
  heard = []
  space.notify({
    invalidate: (range, source) => {
      heard.push({ first: Number(range.first >> 12n), last: Number(range.last >> 12n), source })
    },
  })
}

/** A clock that a test moves: callbacks run when it says so. */
export class Clock {
  readonly running = new Set<() => void>()
  readonly after: After = (milliseconds, callback) => {
    expect(milliseconds).toBe(10)
    const run = (): void => {
      this.running.delete(run)
      callback()
    }
    this.running.add(run)
    return { [Symbol.dispose]: () => void this.running.delete(run) }
  }

  tick(): void {
    for (const run of [...this.running]) run()
  }
}

/** Enabled; what it said until then is not in `heard`. */
export function driverOf(options: Partial<IntelIommuDriverOptions>): IntelIommuDriver {
  const driver = new IntelIommuDriver(iommu, memory, {
    requester: REQUESTER,
    mode: 'strict',
    pages,
    ...options,
  })
  driver.enable()
  heard.length = 0
  return driver
}

/** Where the device finds a page, if anywhere. */
export function pageAt(page: number, wanted: AccessBits = 1): number | undefined {
  const out = new PageTranslation()
  return space.translatePage(page, wanted, out) ? out.gpaPage + page - out.firstPage : undefined
}

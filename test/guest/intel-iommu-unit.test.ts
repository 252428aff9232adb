import { afterAll, describe, expect, it } from 'vitest'
import { MiB, PAGE_SIZE } from '../../lib/address'
import { IntelIommuUnit } from '../../lib/guest/intel-iommu-unit'
import type { DriverOrder } from '../../lib/guest/intel-iommu-unit'
import { PageAllocator } from '../../lib/guest/page-allocator'
import { IntelIommu } from '../../lib/iommu/intel/intel-iommu'
import type { MmioDevice } from '../../lib/iommu/iommu'
import { GuestMemory } from '../../lib/memory/guest-memory'

const memory = GuestMemory.allocate(4 * MiB)
afterAll(() => {
  memory.close()
})

/** Notes each access; addresses that the driver chose are written as `page`. */
class Recorded implements MmioDevice {
  readonly trace: string[] = []
  constructor(private readonly unit: MmioDevice) {}

  read(offset: number, size: number): bigint {
    this.trace.push(`R ${offset.toString(16)}/${size}`)
    return this.unit.read(offset, size)
  }

  write(offset: number, value: bigint, size: number): void {
    const isAddress = offset === 0x20 || offset === 0x90
    const shown = isAddress && value % 4096n === 0n ? 'page' : value.toString(16)
    this.trace.push(`W ${offset.toString(16)}/${size} ${shown}`)
    this.unit.write(offset, value, size)
  }
}

const ENTRY = { type: 'untranslated', domain: 1, levels: 3, tablePage: 5 } as const

function attached(
  order: DriverOrder,
  iommu = new IntelIommu(memory),
): { unit: IntelIommuUnit; trace: string[]; pages: PageAllocator } {
  const recorded = new Recorded(iommu)
  const pages = new PageAllocator(memory)
  const unit = IntelIommuUnit.of(recorded, memory, pages, order)
  unit.attach(0x18, ENTRY)
  return { unit, trace: recorded.trace, pages }
}

const FAULT_MESSAGE = ['W 3c/4 21', 'W 40/4 fee00000', 'W 44/4 0', 'W 38/4 0', 'R 38/4']
const ROOT = ['W 20/8 page', 'W 18/4 44000000', 'R 1c/4', 'W 88/4 20', 'W 88/4 40']

describe('IntelIommuUnit', () => {
  it('is switched on in the order of Linux 6.12', () => {
    const { unit, trace } = attached('6.12')
    expect(trace).toEqual([
      ...['R 8/8', 'R 10/8', 'R 0/4', 'R 1c/4', 'R 34/4'],
      ...['W 88/4 0', 'W 90/8 page', 'W 18/4 4000000', 'R 1c/4'],
      ...ROOT,
      ...FAULT_MESSAGE,
      ...['W 18/4 84000000', 'R 1c/4'],
    ])
    unit.detach(0x18, 1, false)
  })

  it('is switched on in the order of Linux 6.1, which arms the fault message before SRTP', () => {
    const { unit, trace } = attached('6.1')
    const status = ['R 34/4', 'W 34/4 0']
    expect(trace).toEqual([
      ...['R 8/8', 'R 10/8', 'R 0/4', 'R 1c/4', ...status, ...status, ...status],
      ...['W 88/4 0', 'W 90/8 page', 'W 18/4 4000000', 'R 1c/4'],
      ...FAULT_MESSAGE,
      ...ROOT,
      ...['W 18/4 84000000', 'R 1c/4'],
    ])
    unit.detach(0x18, 1, false)
  })

  it('is switched off after the last device, and gives its pages back', () => {
    const { unit, trace, pages } = attached('6.12')
    unit.attach(0x20, { ...ENTRY, domain: 2 })
    unit.attach(0x0120, { ...ENTRY, domain: 3 })
    trace.length = 0
    unit.detach(0x18, 1, true)
    unit.detach(0x20, 2, true)
    expect(trace.every((line) => line.startsWith('W 88/4'))).toBe(true)
    unit.detach(0x0120, 3, true)
    expect(trace.slice(-4)).toEqual(['W 18/4 4000000', 'R 1c/4', 'W 18/4 0', 'R 1c/4'])
    expect(pages.freePages).toBe((4 * MiB) / PAGE_SIZE - 1)
  })

  it('can be switched on again', () => {
    const iommu = new IntelIommu(memory)
    for (let time = 0; time < 3; time++) {
      const { unit } = attached('6.12', iommu)
      expect(iommu.addressSpace(0x18).state).toBe('translating')
      unit.detach(0x18, 1, false)
      expect(iommu.addressSpace(0x18).state).toBe('off')
    }
  })

  it('writes root and context entries as VT-d 4.1, 9.1 and 9.3 lay them out', () => {
    const iommu = new IntelIommu(memory)
    const { unit } = attached('6.12', iommu)
    unit.attach(0xff42, { type: 'deviceTlb', domain: 0x1234, levels: 4, tablePage: 0x80000 })
    const root = Number(iommu.read(0x20, 8))
    const entry = memory.u64(root + 16 * 0xff)
    expect(entry & 0xfffn).toBe(1n)
    const context = Number(entry - 1n) + 16 * 0x42
    expect(memory.u64(context)).toBe(0x80000005n)
    expect(memory.u64(context + 8)).toBe(0x123402n)
    unit.attach(0xff43, { type: 'passThrough', domain: 2, levels: 3, tablePage: 0 })
    expect(memory.u64(context + 16)).toBe(0x9n)
    expect(memory.u64(context + 24)).toBe(0x201n)
    for (const [source, domain] of [
      [0x18, 1],
      [0xff42, 0x1234],
      [0xff43, 2],
    ]) {
      unit.detach(source, domain, false)
    }
  })

  it('gives each device one driver, and each domain one id', () => {
    const { unit } = attached('6.12')
    expect(() => {
      unit.attach(0x18, ENTRY)
    }).toThrow(expect.objectContaining({ code: 'ERR_IN_USE' }))
    const first = unit.takeDomain()
    const second = unit.takeDomain()
    expect(first).not.toBe(second)
    expect(Math.min(first, second)).toBeGreaterThan(0)
    unit.giveDomain(first)
    expect(unit.takeDomain()).toBe(first)
    unit.detach(0x18, 1, false)
  })

  it('reads the faults that the unit recorded, and clears them', () => {
    const iommu = new IntelIommu(memory, { faultRecords: 2 })
    const { unit } = attached('6.12', iommu)
    iommu.addressSpace(0x20).translate(0x5678n as never, 'write')
    expect(unit.takeFaults()).toEqual([{ source: 0x20, page: 5, reason: 2, access: 'write' }])
    expect(unit.takeFaults()).toEqual([])
    expect(iommu.read(0x34, 4)).toBe(0n)
    unit.detach(0x18, 1, false)
  })

  it('refuses a unit that it can not drive', () => {
    const unit = (cap: bigint, ecap: bigint): MmioDevice => ({
      read: (offset) => (offset === 8 ? cap : offset === 16 ? ecap : 0n),
      write: () => undefined,
    })
    const unsupported = expect.objectContaining({ code: 'ERR_UNSUPPORTED' }) as Error
    const pages = new PageAllocator(memory)
    for (const [cap, ecap] of [
      [0x00d2008c22260206n, 0xf00f4cn],
      [0x00d2008c22260006n, 0xf00f4en],
    ]) {
      expect(() => IntelIommuUnit.of(unit(cap, ecap), memory, pages, '6.12')).toThrow(unsupported)
    }
    const deaf = IntelIommuUnit.of(unit(0x00d2008c22260206n, 0xf00f4en), memory, pages, '6.12')
    expect(() => {
      deaf.attach(0x18, ENTRY)
    }).toThrow(unsupported)
  })

  it('reads what the unit can do', () => {
    const of = (options: ConstructorParameters<typeof IntelIommu>[1]): unknown =>
      IntelIommuUnit.of(new IntelIommu(memory, options), memory, new PageAllocator(memory), '6.12')
        .capabilities
    expect(of({ addressWidth: 39, superpages: '2M', deviceTlb: false })).toMatchObject({
      levels: 3,
      lastPage: 2 ** 27 - 1,
      largestLeaf: 2,
      deviceTlb: false,
    })
    expect(of({ addressWidth: 57, passThrough: false, cachingMode: true })).toMatchObject({
      levels: 5,
      lastPage: 2 ** 45 - 1,
      largestLeaf: 3,
      maxOrder: 18,
      deviceTlb: true,
      passThrough: false,
      cachingMode: true,
    })
    expect(of({ superpages: 'none' })).toMatchObject({ levels: 4, largestLeaf: 1 })
  })
})

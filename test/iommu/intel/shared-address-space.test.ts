/** An address space and its twin for another thread: what one translates, the other does. */
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import type { AccessBits, Gpa } from '../../../lib/address'
import { MiB } from '../../../lib/address'
import { IntelIommuDriver } from '../../../lib/guest/intel-iommu-driver'
import { IntelIommu } from '../../../lib/iommu/intel/intel-iommu'
import { openShared } from '../../../lib/iommu/intel/shared-address-space'
import { PageTranslation } from '../../../lib/memory/address-space'
import { GuestMemory } from '../../../lib/memory/guest-memory'

const REQUESTER = '00:03.0'

function made(options: ConstructorParameters<typeof IntelIommu>[1] = {}) {
  const memory = GuestMemory.allocate(16 * MiB)
  const iommu = new IntelIommu(memory, options)
  const space = iommu.addressSpace(REQUESTER)
  const share = space.share?.bind(space)
  if (share === undefined) throw new Error('it has no share()')
  const shared = share()
  shared.publish()
  const refused: unknown[] = []
  const twin = openShared(structuredClone(shared.data), memory, (one) => refused.push(one))
  space.notify({
    invalidate: () => {
      shared.publish()
    },
  })
  return { memory, iommu, space, shared, twin, refused }
}

describe('the twin', () => {
  test('translates what the unit does, before, while and after it translates', () => {
    const { memory, iommu, space, twin } = made()
    const driver = new IntelIommuDriver(iommu, memory, { requester: REQUESTER, mode: 'strict' })
    const compare = (): void => {
      expect(twin.state).toBe(space.state)
      expect(twin.generation).toBe(space.generation)
      const page = fc.oneof(
        fc.integer({ min: 0, max: 0xfffff }),
        fc.integer({ min: 0, max: 2 ** 40 }),
      )
      fc.assert(
        fc.property(page, fc.constantFrom<AccessBits>(0, 1, 2, 3), (page, wanted) => {
          const [own, other] = [new PageTranslation(), new PageTranslation()]
          expect(twin.translatePage(page, wanted, other)).toBe(
            space.translatePage(page, wanted, own),
          )
          expect(other).toEqual(own)
        }),
        { numRuns: 50 },
      )
    }
    compare()
    driver.enable()
    compare()
    const mapped = driver.map(0x40_0000n as Gpa, 0x3000, 'read')
    expect(twin.translate(mapped, 'read')).toEqual(space.translate(mapped, 'read'))
    expect(twin.translate(mapped, 'read').ok).toBe(true)
    compare()
    driver.unmap(mapped)
    expect(twin.translate(mapped, 'read')).toMatchObject({ ok: false })
    driver.disable()
    compare()
    memory.close()
  })

  test('records nothing itself, and what it was refused is recorded by the unit', () => {
    const { memory, iommu, shared, twin, refused } = made()
    const driver = new IntelIommuDriver(iommu, memory, { requester: REQUESTER, mode: 'strict' })
    driver.enable()
    const faults: unknown[] = []
    iommu.on('fault', (fault) => faults.push(fault))
    const iova = driver.map(0x40_0000n as Gpa, 0x1000, 'read')
    driver.unmap(iova)
    expect(twin.translate(iova, 'none').ok).toBe(false)
    expect(refused).toEqual([])
    expect(twin.translate(iova, 'write').ok).toBe(false)
    expect(faults).toEqual([])
    expect(refused).toHaveLength(1)
    shared.record(structuredClone(refused[0]))
    expect(faults).toEqual([
      expect.objectContaining({ requester: REQUESTER, iova, wanted: 'write' }),
    ])
    memory.close()
  })
})

test('an address space with a twin hears of every domain: what the twin handed out is not known', () => {
  const { memory, iommu, space, shared } = made()
  const heard: string[] = []
  space.notify({ invalidate: (_, source) => heard.push(source) })
  // IOTLB, domain-selective, domain 77 (VT-d 5.10 11.4.8): IVT, IIRG 2.
  const invalidate = (): void => {
    iommu.write(0xf8, (1n << 63n) | (2n << 60n) | (77n << 32n), 8)
  }
  invalidate()
  expect(heard).toEqual(['iotlb'])
  shared[Symbol.dispose]()
  shared[Symbol.dispose]()
  invalidate()
  expect(heard).toEqual(['iotlb'])
  memory.close()
})

test('an IOMMU that does as QEMU does cannot be shared', () => {
  expect(() => made({ compat: 'qemu' })).toThrow(
    expect.objectContaining({ code: 'ERR_UNSUPPORTED' }),
  )
})

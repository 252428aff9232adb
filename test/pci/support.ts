/** What the tests of PCI share: how software walks capabilities, and arbitrary accesses. */
import fc from 'fast-check'
import type { MmioDevice } from '../../lib/iommu/iommu'

/** The standard list as software follows it; at most 48 entries, so that a loop ends. */
export function capabilityList(config: MmioDevice): { id: number; offset: number }[] {
  const list: { id: number; offset: number }[] = []
  let offset = Number(config.read(0x34, 1)) & ~3
  while (offset !== 0 && list.length < 48) {
    list.push({ id: Number(config.read(offset, 1)), offset })
    offset = Number(config.read(offset + 1, 1)) & ~3
  }
  return list
}

export function extendedList(
  config: MmioDevice,
): { id: number; version: number; offset: number }[] {
  const list: { id: number; version: number; offset: number }[] = []
  let offset = 0x100
  while (offset !== 0 && list.length < 480) {
    const head = Number(config.read(offset, 4))
    if (head === 0) break
    list.push({ id: head & 0xffff, version: (head >> 16) & 0xf, offset })
    offset = head >>> 20
  }
  return list
}

/** Where software finds a capability. @throws Error where it does not */
export function find(config: MmioDevice, id: number): number {
  const found = [...capabilityList(config), ...extendedList(config)].find((c) => c.id === id)
  if (found === undefined) throw new Error(`no capability ${id}`)
  return found.offset
}

export interface Access {
  readonly offset: number
  readonly size: number
  readonly value: bigint
  readonly write: boolean
}

/** Accesses of every width, aligned or not, with values that often are small or all ones. */
export function accesses(bytes: number, maxLength: number): fc.Arbitrary<Access[]> {
  const offsets = fc.oneof(
    fc.nat({ max: bytes - 1 }),
    fc.nat({ max: Math.floor((bytes - 1) / 4) }).map((word) => 4 * word),
  )
  const value = fc.oneof(
    fc.bigInt({ min: 0n, max: 16n }),
    fc.constant((1n << 64n) - 1n),
    fc.bigInt({ min: 0n, max: (1n << 64n) - 1n }),
  )
  return fc.array(
    fc
      .record({ offset: offsets, size: fc.constantFrom(1, 2, 4, 8), value, write: fc.boolean() })
      .map((access) => ({ ...access, value: BigInt.asUintN(8 * access.size, access.value) })),
    { maxLength },
  )
}

/** What every IOMMU model offers, whatever its tables look like. */
import type { Iova } from '../address'
import type { AddressSpace } from '../memory/address-space'

/** `'00:03.0'`, `'0000:00:03.0'` or a 16-bit source id (bus << 8 | device << 3 | function). */
export type Requester = string | number

/** One step of a walk, from the root to the leaf or to the entry that refuses. */
export interface WalkStep {
  /** `'root entry'`, `'context entry'`, `'second-stage level 3'` … */
  readonly what: string
  /** Guest-physical address of the entry; undefined for a step without one. */
  readonly at?: bigint
  /** The raw entry; undefined where it could not be read. */
  readonly value?: bigint
  /** In words: what the step decided, and why. */
  readonly means: string
}

export interface Iommu {
  addressSpace(requester: Requester): AddressSpace
  /** Root entry to leaf, or to the refusal. Changes nothing and records nothing. */
  explain(requester: Requester, at: Iova): readonly WalkStep[]
  reset(): void
}

/** A device with registers, as a bus sees it. `size` is 1, 2, 4 or 8 bytes. */
export interface MmioDevice {
  read(offset: number, size: number): bigint
  write(offset: number, value: bigint, size: number): void
  /** As `write` of 4 bytes, without a BigInt; `offset` is a multiple of 4. */
  writeWord?(offset: number, value: number): void
}

/** 4 bytes, without a BigInt where the device and the offset have it so. */
export function writeWord(device: MmioDevice, offset: number, value: number): void {
  if (device.writeWord === undefined || offset % 4 !== 0) device.write(offset, BigInt(value), 4)
  else device.writeWord(offset, value)
}

const ADDRESS = /^(?:([0-9a-f]{4}):)?([0-9a-f]{2}):([01][0-9a-f])\.([0-7])$/i

/**
 * The 16-bit source id of a requester (VT-d 5.10 3.4.1).
 * @throws TypeError for a malformed address, RangeError for a segment other than 0
 */
export function sourceId(requester: Requester): number {
  if (typeof requester === 'number') {
    if (Number.isInteger(requester) && requester >= 0 && requester <= 0xffff) return requester
    throw new RangeError(`a source id is an integer from 0 to 0xffff: ${requester}`)
  }
  const match = ADDRESS.exec(requester)
  if (match === null) throw new TypeError(`not a PCI address (such as 00:03.0): ${requester}`)
  const [, segment = '0', bus, device, fn] = match
  if (Number.parseInt(segment, 16) !== 0) {
    throw new RangeError(`only segment 0 is behind this IOMMU: ${requester}`)
  }
  return (Number.parseInt(bus, 16) << 8) | (Number.parseInt(device, 16) << 3) | Number(fn)
}

/** `'00:03.0'` for 0x0018. */
export function requesterName(source: number): string {
  const hex = (value: number): string => value.toString(16).padStart(2, '0')
  return `${hex(source >> 8)}:${hex((source >> 3) & 31)}.${source & 7}`
}

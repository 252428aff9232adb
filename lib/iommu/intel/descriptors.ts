/**
 * The descriptors of the invalidation queue (VT-d 4.1, 6.5.2): their fields, and with that their
 * reserved bits. What they do is in `invalidation-queue.ts`.
 */
import { layout } from '../../bits'
import type { Layout } from '../../bits'

/** Bits 3:0 and, as bits 6:4, bits 11:9 of every descriptor. */
const TYPE = [
  { name: 'TYPE', from: 0, to: 3 },
  { name: 'TYPE_HIGH', from: 9, to: 11 },
] as const

export const ANY_DESCRIPTOR = layout(256, TYPE)

export const CONTEXT_DESCRIPTOR = layout(256, [
  ...TYPE,
  { name: 'G', from: 4, to: 5 },
  { name: 'DID', from: 16, to: 31 },
  { name: 'SID', from: 32, to: 47 },
  { name: 'FM', from: 48, to: 49 },
])

export const IOTLB_DESCRIPTOR = layout(256, [
  ...TYPE,
  { name: 'G', from: 4, to: 5 },
  { name: 'DW', from: 6, to: 6 },
  { name: 'DR', from: 7, to: 7 },
  { name: 'DID', from: 16, to: 31 },
  { name: 'AM', from: 64, to: 69 },
  { name: 'IH', from: 70, to: 70 },
  { name: 'ADDR', from: 76, to: 127 },
])

/** PFSID is reserved: ECAP.DIT is 0. */
export const DEVICE_TLB_DESCRIPTOR = layout(256, [
  ...TYPE,
  { name: 'MIP', from: 16, to: 20 },
  { name: 'SID', from: 32, to: 47 },
  { name: 'S', from: 64, to: 64 },
  { name: 'ADDR', from: 76, to: 127 },
])

export const INTERRUPT_ENTRY_DESCRIPTOR = layout(256, [
  ...TYPE,
  { name: 'G', from: 4, to: 4 },
  { name: 'IM', from: 27, to: 31 },
  { name: 'IIDX', from: 32, to: 47 },
])

/** PD is reserved: ECAP.PDS is 0. */
export const WAIT_DESCRIPTOR = layout(256, [
  ...TYPE,
  { name: 'IF', from: 4, to: 4 },
  { name: 'SW', from: 5, to: 5 },
  { name: 'FN', from: 6, to: 6 },
  { name: 'DATA', from: 32, to: 63 },
  { name: 'ADDR', from: 66, to: 127 },
])

export const PASID_IOTLB_DESCRIPTOR = layout(256, [
  ...TYPE,
  { name: 'G', from: 4, to: 5 },
  { name: 'DID', from: 16, to: 31 },
  { name: 'PASID', from: 32, to: 51 },
  { name: 'AM', from: 64, to: 69 },
  { name: 'IH', from: 70, to: 70 },
  { name: 'ADDR', from: 76, to: 127 },
])

export const PASID_CACHE_DESCRIPTOR = layout(256, [
  ...TYPE,
  { name: 'G', from: 4, to: 5 },
  { name: 'DID', from: 16, to: 31 },
  { name: 'PASID', from: 32, to: 51 },
])

export const PASID_DEVICE_TLB_DESCRIPTOR = layout(256, [
  ...TYPE,
  { name: 'MIP', from: 4, to: 8 },
  { name: 'SID', from: 16, to: 31 },
  { name: 'PASID', from: 32, to: 51 },
  { name: 'G', from: 64, to: 64 },
  { name: 'S', from: 75, to: 75 },
  { name: 'ADDR', from: 76, to: 127 },
])

/** G of the context and IOTLB descriptors; 0 is reserved. */
export const GRANULARITY = { global: 1, domain: 2, selective: 3 } as const

/** The low address bits of a function that FM ignores (6.5.2.1). */
export const FUNCTION_MASK: readonly number[] = [0, 0b100, 0b110, 0b111]

export function hasReservedBits(descriptor: Uint32Array, structure: Layout<string>): boolean {
  return descriptor.some((word, i) => (word & structure.reserved[i]) !== 0)
}

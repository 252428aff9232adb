/**
 * The descriptors of the invalidation queue (VT-d 5.10, 6.5.2): their fields, and with that their
 * reserved bits. What they do is in `invalidation-queue.ts`.
 */
import { layout } from '../../bits'
import type { Layout } from '../../bits'

/** Types (6.5.2). */
export const TYPE = {
  context: 1,
  iotlb: 2,
  deviceTlb: 3,
  interruptEntry: 4,
  wait: 5,
  pasidIotlb: 6,
  pasidCache: 7,
  pasidDeviceTlb: 8,
} as const

/** Bits 3:0 of the type, and 6:4, of every descriptor. */
const TYPE_FIELDS = [
  { name: 'TYPE', from: 0, to: 3 },
  { name: 'TYPE_HIGH', from: 9, to: 11 },
] as const

export const ANY_DESCRIPTOR = layout(256, TYPE_FIELDS)

export const CONTEXT_DESCRIPTOR = layout(256, [
  ...TYPE_FIELDS,
  { name: 'G', from: 4, to: 5 },
  { name: 'DID', from: 16, to: 31 },
  { name: 'SID', from: 32, to: 47 },
  { name: 'FM', from: 48, to: 49 },
])

export const IOTLB_DESCRIPTOR = layout(256, [
  ...TYPE_FIELDS,
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
  ...TYPE_FIELDS,
  { name: 'MIP', from: 16, to: 20 },
  { name: 'SID', from: 32, to: 47 },
  { name: 'S', from: 64, to: 64 },
  { name: 'ADDR', from: 76, to: 127 },
])

export const INTERRUPT_ENTRY_DESCRIPTOR = layout(256, [
  ...TYPE_FIELDS,
  { name: 'G', from: 4, to: 4 },
  { name: 'IM', from: 27, to: 31 },
  { name: 'IIDX', from: 32, to: 47 },
])

/** PD is reserved: ECAP.PDS is 0. */
export const WAIT_DESCRIPTOR = layout(256, [
  ...TYPE_FIELDS,
  { name: 'IF', from: 4, to: 4 },
  { name: 'SW', from: 5, to: 5 },
  { name: 'FN', from: 6, to: 6 },
  { name: 'DATA', from: 32, to: 63 },
  { name: 'ADDR', from: 66, to: 127 },
])

export const PASID_IOTLB_DESCRIPTOR = layout(256, [
  ...TYPE_FIELDS,
  { name: 'G', from: 4, to: 5 },
  { name: 'DID', from: 16, to: 31 },
  { name: 'PASID', from: 32, to: 51 },
  { name: 'AM', from: 64, to: 69 },
  { name: 'IH', from: 70, to: 70 },
  { name: 'ADDR', from: 76, to: 127 },
])

export const PASID_CACHE_DESCRIPTOR = layout(256, [
  ...TYPE_FIELDS,
  { name: 'G', from: 4, to: 5 },
  { name: 'DID', from: 16, to: 31 },
  { name: 'PASID', from: 32, to: 51 },
])

export const PASID_DEVICE_TLB_DESCRIPTOR = layout(256, [
  ...TYPE_FIELDS,
  { name: 'MIP', from: 4, to: 8 },
  { name: 'SID', from: 16, to: 31 },
  { name: 'PASID', from: 32, to: 51 },
  { name: 'G', from: 64, to: 64 },
  { name: 'S', from: 75, to: 75 },
  { name: 'ADDR', from: 76, to: 127 },
])

/** All bits have a name: nothing is reserved. */
export const UNCHECKED_DESCRIPTOR = layout(256, [{ name: 'IGN', from: 0, to: 255 }])

/** G of the context and IOTLB descriptors; 0 is reserved. */
export const GRANULARITY = { global: 1, domain: 2, selective: 3 } as const

/** G of the PASID descriptors (6.5.2.4, 6.5.2.2); others are reserved. */
export const PASID_IOTLB_GRANULARITY = { pasid: 2, pages: 3 } as const
export const PASID_CACHE_GRANULARITY = { domain: 0, pasid: 1, global: 3 } as const

/** The low address bits of a function that FM ignores (6.5.2.1, table 21). */
export const FUNCTION_MASK: readonly number[] = [0, 0b100, 0b110, 0b111]

export function hasReservedBits(descriptor: Uint32Array, structure: Layout<string>): boolean {
  for (let i = 0; i < descriptor.length; i++) {
    if ((descriptor[i] & structure.reserved[i]) !== 0) return true
  }
  return false
}

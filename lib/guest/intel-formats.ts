/**
 * What a driver of VT-d writes into memory and registers, as tables (VT-d 4.1, chapters 6, 9, 11).
 *
 * The device's side has tables of its own: the two are the ends of one wire, and a mistake in one
 * must not hide in the other.
 */
import { layout } from '../bits'

/** 9.1: root entry, 128 bits, one for each bus. */
export const ROOT_ENTRY = layout(128, [
  { name: 'P', from: 0, to: 0 },
  { name: 'CTP', from: 12, to: 63 },
])

/** 9.3: context entry, 128 bits, one for each device and function. */
export const CONTEXT_ENTRY = layout(128, [
  { name: 'P', from: 0, to: 0 },
  { name: 'FPD', from: 1, to: 1 },
  { name: 'TT', from: 2, to: 3 },
  { name: 'SSPTPTR', from: 12, to: 63 },
  { name: 'AW', from: 64, to: 66 },
  { name: 'DID', from: 72, to: 87 },
])

/** 9.3, TT. */
export const TRANSLATION_TYPE = { untranslated: 0, deviceTlb: 1, passThrough: 2 } as const

/** 9.8: second-stage paging entry, 64 bits. */
export const SECOND_STAGE_ENTRY = layout(64, [
  { name: 'R', from: 0, to: 0 },
  { name: 'W', from: 1, to: 1 },
  { name: 'PS', from: 7, to: 7 },
  { name: 'ADDR', from: 12, to: 51 },
])

/** 11.4.2 and 11.4.3: what the driver reads of CAP and ECAP. */
export const CAP = layout(64, [
  { name: 'ND', from: 0, to: 2 },
  { name: 'CM', from: 7, to: 7 },
  { name: 'SAGAW', from: 8, to: 12 },
  { name: 'MGAW', from: 16, to: 21 },
  { name: 'FRO', from: 24, to: 33 },
  { name: 'SSLPS', from: 34, to: 37 },
  { name: 'PSI', from: 39, to: 39 },
  { name: 'NFR', from: 40, to: 47 },
  { name: 'MAMV', from: 48, to: 53 },
  { name: 'DWD', from: 54, to: 54 },
  { name: 'DRD', from: 55, to: 55 },
  { name: 'ESRTPS', from: 63, to: 63 },
]).field

export const ECAP = layout(64, [
  { name: 'QI', from: 1, to: 1 },
  { name: 'DT', from: 2, to: 2 },
  { name: 'PT', from: 6, to: 6 },
]).field

/** 11.4.4: bits of GCMD, at the same place in GSTS. */
export const COMMAND = layout(32, [
  { name: 'QIE', from: 26, to: 26 },
  { name: 'SRTP', from: 30, to: 30 },
  { name: 'TE', from: 31, to: 31 },
]).field

/** Byte offsets of the registers that the driver uses (11.4). */
export const REGISTER = {
  VER: 0x00,
  CAP: 0x08,
  ECAP: 0x10,
  GCMD: 0x18,
  GSTS: 0x1c,
  RTADDR: 0x20,
  FSTS: 0x34,
  FECTL: 0x38,
  FEDATA: 0x3c,
  FEADDR: 0x40,
  FEUADDR: 0x44,
  IQH: 0x80,
  IQT: 0x88,
  IQA: 0x90,
} as const

/** 11.4.9: faults of the queue in FSTS. */
export const FSTS = layout(32, [
  { name: 'PFO', from: 0, to: 0 },
  { name: 'PPF', from: 1, to: 1 },
  { name: 'IQE', from: 4, to: 4 },
  { name: 'ICE', from: 5, to: 5 },
  { name: 'ITE', from: 6, to: 6 },
  { name: 'FRI', from: 8, to: 15 },
]).field

/** 11.4.14: a fault recording register, 128 bits. */
export const FAULT_RECORD = layout(128, [
  { name: 'FI', from: 12, to: 63 },
  { name: 'SID', from: 64, to: 79 },
  { name: 'FR', from: 96, to: 103 },
  { name: 'T', from: 126, to: 126 },
  { name: 'F', from: 127, to: 127 },
])

/** 6.5.2: invalidation descriptors, 128 bits. */
export const DESCRIPTOR_TYPE = { context: 1, iotlb: 2, deviceTlb: 3, wait: 5 } as const
/** 6.5.2.1 and 6.5.2.3, G. */
export const GRANULARITY = { global: 1, domain: 2, device: 3, page: 3 } as const

export const CONTEXT_INVALIDATE = layout(128, [
  { name: 'type', from: 0, to: 3 },
  { name: 'G', from: 4, to: 5 },
  { name: 'DID', from: 16, to: 31 },
  { name: 'SID', from: 32, to: 47 },
  { name: 'FM', from: 48, to: 49 },
])

export const IOTLB_INVALIDATE = layout(128, [
  { name: 'type', from: 0, to: 3 },
  { name: 'G', from: 4, to: 5 },
  { name: 'DW', from: 6, to: 6 },
  { name: 'DR', from: 7, to: 7 },
  { name: 'DID', from: 16, to: 31 },
  { name: 'AM', from: 64, to: 69 },
  { name: 'IH', from: 70, to: 70 },
  { name: 'ADDR', from: 76, to: 127 },
])

export const DEVICE_TLB_INVALIDATE = layout(128, [
  { name: 'type', from: 0, to: 3 },
  { name: 'SID', from: 32, to: 47 },
  { name: 'S', from: 64, to: 64 },
  { name: 'ADDR', from: 76, to: 127 },
])

export const WAIT = layout(128, [
  { name: 'type', from: 0, to: 3 },
  { name: 'SW', from: 5, to: 5 },
  { name: 'data', from: 32, to: 63 },
  { name: 'address', from: 66, to: 127 },
])

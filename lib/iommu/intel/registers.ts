/**
 * The registers of the unit and the fields inside them (VT-d 5.10, 11.4): tables only.
 *
 * What a write to one of them sets off is in `intel-iommu.ts`, by register name.
 */
import { layout } from '../../bits'
import type { Register } from '../../bits'
import { FAULT_RECORDS_AT, IOTLB_REGISTERS_AT } from './capabilities'
import type { Capabilities } from './capabilities'

/** The window that a bus should give the unit: one page (DMAR says where). */
export const REGISTER_WINDOW_BYTES = 4096

/** Byte offsets of the registers that are touched with each invalidation, and of the command. */
export const REGISTER_AT = { GCMD: 0x18, IQH: 0x80, IQT: 0x88 } as const

export type RegisterName =
  | ('VER' | 'CAP' | 'ECAP' | 'GCMD' | 'GSTS' | 'RTADDR' | 'CCMD')
  | ('FSTS' | 'FECTL' | 'FEDATA' | 'FEADDR' | 'FEUADDR' | 'AFLOG')
  | ('PMEN' | 'PLMBASE' | 'PLMLIMIT' | 'PHMBASE' | 'PHMLIMIT')
  | ('IQH' | 'IQT' | 'IQA' | 'ICS' | 'IECTL' | 'IEDATA' | 'IEADDR' | 'IEUADDR' | 'IQERCD' | 'IRTA')
  | ('PQH' | 'PQT' | 'PQA' | 'PRS' | 'PECTL' | 'PEDATA' | 'PEADDR' | 'PEUADDR')
  | ('IVA' | 'IOTLB')
  | FaultRecordName

/** A fault recording register is 128 bits: two of 64 here. */
export type FaultRecordName = `FRCD${number}_LOW` | `FRCD${number}_HIGH`

/** All registers at their values after a reset. */
export function registerTable(has: Capabilities): readonly Register<RegisterName>[] {
  const upperAddress = has.qemu ? 0n : 0xffffffffn
  return [
    { name: 'VER', offset: 0x00, size: 4, reset: 0x10n },
    { name: 'CAP', offset: 0x08, size: 8, reset: has.cap },
    { name: 'ECAP', offset: 0x10, size: 8, reset: has.ecap },
    {
      name: 'GCMD',
      offset: REGISTER_AT.GCMD,
      size: 4,
      writable: 0xff800000n,
      writeOnly: 0xff800000n,
    },
    { name: 'GSTS', offset: 0x1c, size: 4 },
    { name: 'RTADDR', offset: 0x20, size: 8, writable: 0xfffffffffffffc00n },
    {
      name: 'CCMD',
      offset: 0x28,
      size: 8,
      writable: 0xe0000003ffffffffn,
      writeOnly: 0x00000003ffff0000n,
    },
    { name: 'FSTS', offset: 0x34, size: 4, write1clear: 0x11n },
    { name: 'FECTL', offset: 0x38, size: 4, reset: 0x80000000n, writable: 0x80000000n },
    { name: 'FEDATA', offset: 0x3c, size: 4, writable: 0xffffn },
    { name: 'FEADDR', offset: 0x40, size: 4, writable: 0xfffffffcn },
    { name: 'FEUADDR', offset: 0x44, size: 4, writable: upperAddress },
    { name: 'AFLOG', offset: 0x58, size: 8 },
    { name: 'PMEN', offset: 0x64, size: 4 },
    { name: 'PLMBASE', offset: 0x68, size: 4 },
    { name: 'PLMLIMIT', offset: 0x6c, size: 4 },
    { name: 'PHMBASE', offset: 0x70, size: 8 },
    { name: 'PHMLIMIT', offset: 0x78, size: 8 },
    { name: 'IQH', offset: REGISTER_AT.IQH, size: 8 },
    { name: 'IQT', offset: REGISTER_AT.IQT, size: 8, writable: 0x7fff0n },
    { name: 'IQA', offset: 0x90, size: 8, writable: 0xfffffffffffff807n },
    { name: 'ICS', offset: 0x9c, size: 4, write1clear: 0x1n },
    { name: 'IECTL', offset: 0xa0, size: 4, reset: 0x80000000n, writable: 0x80000000n },
    { name: 'IEDATA', offset: 0xa4, size: 4, writable: has.qemu ? 0xffffffffn : 0xffffn },
    { name: 'IEADDR', offset: 0xa8, size: 4, writable: 0xfffffffcn },
    { name: 'IEUADDR', offset: 0xac, size: 4, writable: upperAddress },
    { name: 'IQERCD', offset: 0xb0, size: 8 },
    // Reserved without interrupt remapping (11.4.10); QEMU keeps it.
    { name: 'IRTA', offset: 0xb8, size: 8, writable: has.qemu ? 0xfffffffffffff80fn : 0n },
    { name: 'PQH', offset: 0xc0, size: 8 },
    { name: 'PQT', offset: 0xc8, size: 8 },
    { name: 'PQA', offset: 0xd0, size: 8 },
    { name: 'PRS', offset: 0xdc, size: 4 },
    { name: 'PECTL', offset: 0xe0, size: 4 },
    { name: 'PEDATA', offset: 0xe4, size: 4 },
    { name: 'PEADDR', offset: 0xe8, size: 4 },
    { name: 'PEUADDR', offset: 0xec, size: 4 },
    {
      name: 'IVA',
      offset: IOTLB_REGISTERS_AT,
      size: 8,
      writable: 0xfffffffffffff07fn,
      writeOnly: 0xfffffffffffff07fn,
    },
    { name: 'IOTLB', offset: IOTLB_REGISTERS_AT + 8, size: 8, writable: 0xb003ffff00000000n },
    ...faultRecords(has.faultRecords),
  ]
}

function faultRecords(count: number): readonly Register<RegisterName>[] {
  return Array.from({ length: count }, (_, i): Register<RegisterName>[] => [
    { name: `FRCD${i}_LOW`, offset: FAULT_RECORDS_AT + 16 * i, size: 8 },
    {
      name: `FRCD${i}_HIGH`,
      offset: FAULT_RECORDS_AT + 16 * i + 8,
      size: 8,
      write1clear: 1n << 63n,
    },
  ]).flat()
}

/** Commands and their status have the same places (11.4.4.1, 11.4.4.2). */
export const GCMD = layout(32, [
  { name: 'CFI', from: 23, to: 23 },
  { name: 'SIRTP', from: 24, to: 24 },
  { name: 'IRE', from: 25, to: 25 },
  { name: 'QIE', from: 26, to: 26 },
  { name: 'WBF', from: 27, to: 27 },
  { name: 'EAFL', from: 28, to: 28 },
  { name: 'SFL', from: 29, to: 29 },
  { name: 'SRTP', from: 30, to: 30 },
  { name: 'TE', from: 31, to: 31 },
])

export const RTADDR = layout(64, [
  { name: 'TTM', from: 10, to: 11 },
  { name: 'RTA', from: 12, to: 63 },
])

export const CCMD = layout(64, [
  { name: 'DID', from: 0, to: 15 },
  { name: 'SID', from: 16, to: 31 },
  { name: 'FM', from: 32, to: 33 },
  { name: 'CAIG', from: 59, to: 60 },
  { name: 'CIRG', from: 61, to: 62 },
  { name: 'ICC', from: 63, to: 63 },
])

export const IVA = layout(64, [
  { name: 'AM', from: 0, to: 5 },
  { name: 'IH', from: 6, to: 6 },
  { name: 'ADDR', from: 12, to: 63 },
])

export const IOTLB = layout(64, [
  { name: 'DID', from: 32, to: 47 },
  { name: 'DW', from: 48, to: 48 },
  { name: 'DR', from: 49, to: 49 },
  { name: 'IAIG', from: 57, to: 58 },
  { name: 'IIRG', from: 60, to: 61 },
  { name: 'IVT', from: 63, to: 63 },
])

export const FSTS = layout(32, [
  { name: 'PFO', from: 0, to: 0 },
  { name: 'PPF', from: 1, to: 1 },
  { name: 'IQE', from: 4, to: 4 },
  { name: 'ICE', from: 5, to: 5 },
  { name: 'ITE', from: 6, to: 6 },
  { name: 'FRI', from: 8, to: 15 },
])

/** FECTL, IECTL and PECTL alike. */
export const EVENT_CONTROL = layout(32, [
  { name: 'IP', from: 30, to: 30 },
  { name: 'IM', from: 31, to: 31 },
])

export const ICS = layout(32, [{ name: 'IWC', from: 0, to: 0 }])

export const IQA = layout(64, [
  { name: 'QS', from: 0, to: 2 },
  { name: 'DW', from: 11, to: 11 },
  { name: 'ADDR', from: 12, to: 63 },
])

/** Head and tail count units of 16 bytes. */
export const IQT = layout(64, [{ name: 'QT', from: 4, to: 18 }])

export const IQERCD = layout(64, [
  { name: 'IQEI', from: 0, to: 3 },
  { name: 'ITESID', from: 32, to: 47 },
  { name: 'ICESID', from: 48, to: 63 },
])

export const FRCD = layout(128, [
  { name: 'FI', from: 12, to: 63 },
  { name: 'SID', from: 64, to: 79 },
  { name: 'PRIV', from: 93, to: 93 },
  { name: 'EXE', from: 94, to: 94 },
  { name: 'PP', from: 95, to: 95 },
  { name: 'FR', from: 96, to: 103 },
  { name: 'PV', from: 104, to: 123 },
  { name: 'AT', from: 124, to: 125 },
  { name: 'T', from: 126, to: 126 },
  { name: 'F', from: 127, to: 127 },
])

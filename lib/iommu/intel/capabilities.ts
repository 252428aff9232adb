/**
 * What the unit can do: the options of its maker, and the CAP and ECAP registers that say so to
 * the guest. Nothing else in this folder decides on an option that the guest could not read here.
 */
import { layout } from '../../bits'
import type { BitField, Layout } from '../../bits'

export interface IntelIommuOptions {
  /** Width of iovas: 39 (3 levels), 48 (also 4, the default) or 57 (also 5). */
  readonly addressWidth?: 39 | 48 | 57
  /**
   * Width of guest-physical addresses: bits above it are reserved in table entries. At most 52 and
   * at most `addressWidth`, which is also the default. The ACPI table DMAR tells it to the guest.
   */
  readonly hostAddressWidth?: number
  /** CAP.CM: the guest must also invalidate when it maps. Default off: misses find new mappings. */
  readonly cachingMode?: boolean
  /** ECAP.DT: device-TLB descriptors and translation type 1. Default on. */
  readonly deviceTlb?: boolean
  /** The largest leaf. Default 1G. */
  readonly superpages?: 'none' | '2M' | '1G'
  /** ECAP.PT. Default on. */
  readonly passThrough?: boolean
  /** CAP.DWD and CAP.DRD. Default on; every invalidation drains here. */
  readonly drain?: boolean
  /** ECAP.SC: bit 11 of leaves is allowed. Default off; it has no effect on what is translated. */
  readonly snoopControl?: boolean
  /** ECAP.SMTS: scalable-mode tables and 256-bit descriptors. Default off. */
  readonly scalableMode?: boolean
  /** ECAP.SSTS, in scalable mode. Default on. With `firstStage`, nested translation too. */
  readonly secondStage?: boolean
  /** ECAP.FSTS, in scalable mode. Default off. */
  readonly firstStage?: boolean
  /** ECAP.PASID, in scalable mode. Requests here carry no PASID; descriptors may. Default off. */
  readonly pasid?: boolean
  /** CAP.NFR: fault recording registers, 1 (default) to 128. */
  readonly faultRecords?: number
  /** Behave as QEMU 7.2 does where it departs from the specification: for comparison only. */
  readonly compat?: 'qemu'
}

/** The options with their defaults, and what follows from them. */
export interface Capabilities {
  readonly addressWidth: 39 | 48 | 57
  readonly hostAddressWidth: number
  /** Levels of the widest supported second-stage table: 3, 4 or 5. */
  readonly levels: number
  readonly cachingMode: boolean
  readonly deviceTlb: boolean
  /** The highest level at which a second-stage entry may be a leaf: 1, 2 or 3. */
  readonly leafLevel: number
  readonly passThrough: boolean
  readonly drain: boolean
  readonly snoopControl: boolean
  readonly scalable: boolean
  readonly secondStage: boolean
  readonly firstStage: boolean
  readonly pasid: boolean
  readonly faultRecords: number
  readonly qemu: boolean
  readonly cap: bigint
  readonly ecap: bigint
}

/** VT-d 5.10 11.4.2. */
export const CAP = layout(64, [
  { name: 'ND', from: 0, to: 2 },
  { name: 'AFL', from: 3, to: 3 },
  { name: 'RWBF', from: 4, to: 4 },
  { name: 'PLMR', from: 5, to: 5 },
  { name: 'PHMR', from: 6, to: 6 },
  { name: 'CM', from: 7, to: 7 },
  { name: 'SAGAW', from: 8, to: 12 },
  { name: 'MGAW', from: 16, to: 21 },
  { name: 'ZLR', from: 22, to: 22 },
  { name: 'FRO', from: 24, to: 33 },
  { name: 'SSLPS', from: 34, to: 37 },
  { name: 'PSI', from: 39, to: 39 },
  { name: 'NFR', from: 40, to: 47 },
  { name: 'MAMV', from: 48, to: 53 },
  { name: 'DWD', from: 54, to: 54 },
  { name: 'DRD', from: 55, to: 55 },
  { name: 'FS1GP', from: 56, to: 56 },
  { name: 'PI', from: 59, to: 59 },
  { name: 'FS5LP', from: 60, to: 60 },
  { name: 'ESIRTPS', from: 62, to: 62 },
  { name: 'ESRTPS', from: 63, to: 63 },
])

/** VT-d 5.10 11.4.3. */
export const ECAP = layout(64, [
  { name: 'C', from: 0, to: 0 },
  { name: 'QI', from: 1, to: 1 },
  { name: 'DT', from: 2, to: 2 },
  { name: 'IR', from: 3, to: 3 },
  { name: 'EIM', from: 4, to: 4 },
  { name: 'PT', from: 6, to: 6 },
  { name: 'SC', from: 7, to: 7 },
  { name: 'IRO', from: 8, to: 17 },
  { name: 'MHMV', from: 20, to: 23 },
  { name: 'NEST', from: 26, to: 26 },
  { name: 'PRS', from: 29, to: 29 },
  { name: 'ERS', from: 30, to: 30 },
  { name: 'SRS', from: 31, to: 31 },
  { name: 'PSS', from: 35, to: 39 },
  { name: 'PASID', from: 40, to: 40 },
  { name: 'SMTS', from: 43, to: 43 },
  { name: 'SSADS', from: 45, to: 45 },
  { name: 'SSTS', from: 46, to: 46 },
  { name: 'FSTS', from: 47, to: 47 },
  { name: 'SMPWCS', from: 48, to: 48 },
  { name: 'RPS', from: 49, to: 49 },
])

/** Byte offsets of the registers that CAP and ECAP locate. */
export const FAULT_RECORDS_AT = 0x220
export const IOTLB_REGISTERS_AT = 0xf0
/** The most low address bits that a page-selective invalidation may ignore (CAP.MAMV). */
export const MAX_ADDRESS_MASK = 18
/** 16-bit domain ids: the code is (bits - 4) / 2. */
const DOMAIN_ID_CODE = 6
/** ECAP.PSS: 20-bit PASIDs, less 1. */
const PASID_BITS_CODE = 19

/** @throws RangeError for an option out of range, or options that exclude each other */
export function capabilities(options: IntelIommuOptions = {}): Capabilities {
  const addressWidth = options.addressWidth ?? 48
  if (![39, 48, 57].includes(addressWidth)) {
    throw new RangeError(`addressWidth must be 39, 48 or 57: ${addressWidth}`)
  }
  const hostAddressWidth = options.hostAddressWidth ?? Math.min(addressWidth, 52)
  inRange('hostAddressWidth', hostAddressWidth, 32, Math.min(addressWidth, 52))
  const faultRecords = options.faultRecords ?? 1
  inRange('faultRecords', faultRecords, 1, 128)
  const scalable = options.scalableMode ?? false
  const firstStage = options.firstStage ?? false
  const secondStage = options.secondStage ?? true
  const pasid = options.pasid ?? false
  if (!scalable && (firstStage || pasid)) {
    throw new RangeError('firstStage and pasid need scalableMode')
  }
  if (!secondStage && !firstStage) throw new RangeError('secondStage or firstStage must be on')
  const made = {
    addressWidth,
    hostAddressWidth,
    levels: levelsOfWidth(addressWidth),
    cachingMode: options.cachingMode ?? false,
    deviceTlb: options.deviceTlb ?? true,
    leafLevel: { none: 1, '2M': 2, '1G': 3 }[options.superpages ?? '1G'],
    passThrough: options.passThrough ?? true,
    drain: options.drain ?? true,
    snoopControl: options.snoopControl ?? false,
    scalable,
    secondStage,
    firstStage,
    pasid,
    faultRecords,
    qemu: options.compat === 'qemu',
  }
  return { ...made, cap: composeCap(made), ecap: composeEcap(made) }
}

/** Levels of a table for addresses of 30, 39, 48 or 57 bits. */
export function levelsOfWidth(width: number): number {
  return (width - 12) / 9
}

type Composed = Omit<Capabilities, 'cap' | 'ecap'>

function composeCap(has: Composed): bigint {
  const { field } = CAP
  const widths = { 39: 0b0010, 48: 0b0110, 57: 0b1110 }[has.addressWidth]
  const leaves = [0b00, 0b01, 0b11][has.leafLevel - 1]
  return (
    field.ND.of(DOMAIN_ID_CODE) |
    field.CM.of(has.cachingMode) |
    field.SAGAW.of(has.secondStage ? widths : 0) |
    field.MGAW.of(has.addressWidth - 1) |
    field.ZLR.of(!has.qemu) |
    field.FRO.of(FAULT_RECORDS_AT / 16) |
    field.SSLPS.of(leaves) |
    field.PSI.of(true) |
    field.NFR.of(has.faultRecords - 1) |
    field.MAMV.of(MAX_ADDRESS_MASK) |
    field.DWD.of(has.drain) |
    field.DRD.of(has.drain) |
    field.FS1GP.of(has.firstStage && has.leafLevel === 3) |
    field.FS5LP.of(has.firstStage && has.addressWidth === 57)
  )
}

function composeEcap(has: Composed): bigint {
  const { field } = ECAP
  return (
    field.C.of(!has.qemu) |
    field.QI.of(true) |
    field.DT.of(has.deviceTlb) |
    field.PT.of(has.passThrough) |
    field.SC.of(has.snoopControl) |
    field.IRO.of(IOTLB_REGISTERS_AT / 16) |
    field.NEST.of(has.scalable && has.firstStage && has.secondStage) |
    field.SRS.of(has.scalable) |
    field.PSS.of(has.pasid && !has.qemu ? PASID_BITS_CODE : 0) |
    field.PASID.of(has.pasid) |
    field.SMTS.of(has.scalable) |
    field.SSTS.of(has.scalable && has.secondStage) |
    field.FSTS.of(has.firstStage) |
    field.SMPWCS.of(has.scalable && !has.qemu) |
    field.RPS.of(has.scalable && !has.qemu)
  )
}

function inRange(name: string, value: number, least: number, most: number): void {
  if (!Number.isInteger(value) || value < least || value > most) {
    throw new RangeError(`${name} must be an integer from ${least} to ${most}: ${value}`)
  }
}

/** What must be 0 in a structure: bits without a name, and address bits beyond the host's width. */
export function reservedBits(
  has: Capabilities,
  structure: Layout<string>,
  address: BitField,
): Int32Array {
  const beyondHost =
    address.bits & ~((1n << BigInt(has.hostAddressWidth + (address.from & ~63))) - 1n)
  return Int32Array.from(structure.reserved, (unnamed, word) =>
    Number(BigInt.asIntN(32, BigInt(unnamed) | (beyondHost >> BigInt(32 * word)))),
  )
}

/** Whether a structure in words sets any bit of a mask from `reservedBits`. */
export function setsAny(words: Uint32Array, mask: Int32Array): boolean {
  let bad = 0
  for (let i = 0; i < mask.length; i++) bad |= words[i] & mask[i]
  return bad !== 0
}

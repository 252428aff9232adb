/**
 * The DMAR table: tells an operating system which DMA remapping units there are, which devices each
 * of them is in front of, and from which ports and devices it may allow ATS.
 *
 * An operating system believes this table before it looks at a register, and firmware mistakes are
 * its daily bread; so what the specification forbids is refused here, at build time.
 *
 * VT-d 4.1 chapter 8, BIOS Considerations.
 */
import { gpa } from '../address'

import { decodeScopes, encodeScope } from './device-scope'
import type { DeviceScope } from './device-scope'
import { checkDmar } from './dmar-rules'
import type {
  Andd,
  Atsr,
  Decoded,
  DecodedDmar,
  Dmar,
  Drhd,
  Rhsa,
  Rmrr,
  Satc,
  Sidp,
} from './dmar-structures'
import {
  asciiBytes,
  buildTable,
  parseTable,
  readFlags,
  readSlots,
  writeFlags,
  writeSlots,
} from './table'
import type { Flag, Slot, TableIdentity } from './table'

const SIGNATURE = 'DMAR'
const REVISION = 1
const BODY_BYTES = 12
const PAGE = 4096

const BODY = [
  { name: 'width', offset: 0, size: 1 },
  { name: 'flags', offset: 1, size: 1 },
] as const satisfies readonly Slot[]

const BODY_FLAGS = [
  { name: 'interruptRemapping', bit: 0 },
  { name: 'x2apicOptOut', bit: 1 },
  { name: 'dmaControlOptIn', bit: 2 },
] as const satisfies readonly Flag[]

const HEAD = [
  { name: 'type', offset: 0, size: 2 },
  { name: 'length', offset: 2, size: 2 },
] as const satisfies readonly Slot[]

/** In the order of their types, in which a table has to have them (VT-d 4.1 8.2). */
const TYPES = ['drhd', 'rmrr', 'atsr', 'rhsa', 'andd', 'satc', 'sidp'] as const

const DRHD = [
  { name: 'flags', offset: 4, size: 1 },
  { name: 'size', offset: 5, size: 1 },
  { name: 'segment', offset: 6, size: 2 },
  { name: 'base', offset: 8, size: 8 },
] as const satisfies readonly Slot[]
const DRHD_BYTES = 16
const DRHD_FLAGS = [{ name: 'includePciAll', bit: 0 }] as const satisfies readonly Flag[]

const RMRR = [
  { name: 'segment', offset: 6, size: 2 },
  { name: 'first', offset: 8, size: 8 },
  { name: 'last', offset: 16, size: 8 },
] as const satisfies readonly Slot[]
const RMRR_BYTES = 24

/** ATSR and SATC have their flags at 4, SIDP keeps that byte reserved. */
const SEGMENT = [
  { name: 'flags', offset: 4, size: 1 },
  { name: 'segment', offset: 6, size: 2 },
] as const satisfies readonly Slot[]
const SEGMENT_BYTES = 8
const ATSR_FLAGS = [{ name: 'allPorts', bit: 0 }] as const satisfies readonly Flag[]
const SATC_FLAGS = [{ name: 'atcRequired', bit: 0 }] as const satisfies readonly Flag[]

const RHSA = [
  { name: 'base', offset: 8, size: 8 },
  { name: 'proximityDomain', offset: 16, size: 4 },
] as const satisfies readonly Slot[]
const RHSA_BYTES = 20

const ANDD = [{ name: 'deviceNumber', offset: 7, size: 1 }] as const satisfies readonly Slot[]
const ANDD_BYTES = 8

/**
 * The bytes of a DMAR table, checksum included. Remapping structures come in the order of their
 * types; a unit with INCLUDE_PCI_ALL comes after the other units, as VT-d 4.1 8.3 wants it.
 * @throws RangeError, TypeError for what VT-d 4.1 chapter 8 does not allow
 */
export function buildDmar(dmar: Dmar, identity?: TableIdentity): Uint8Array {
  checkDmar(dmar)
  const head = new Uint8Array(BODY_BYTES)
  writeSlots(head, BODY, {
    width: dmar.hostAddressWidth - 1,
    flags: writeFlags(BODY_FLAGS, dmar),
  })
  const last = (unit: Drhd): number => (unit.includePciAll === true ? 1 : 0)
  const structures = [
    ...dmar.drhd.toSorted((a, b) => last(a) - last(b)).map(encodeDrhd),
    ...(dmar.rmrr ?? []).map(encodeRmrr),
    ...(dmar.atsr ?? []).map(encodeAtsr),
    ...(dmar.rhsa ?? []).map(encodeRhsa),
    ...(dmar.andd ?? []).map(encodeAndd),
    ...(dmar.satc ?? []).map(encodeSatc),
    ...(dmar.sidp ?? []).map(encodeSidp),
  ]
  return buildTable(SIGNATURE, REVISION, Buffer.concat([head, ...structures]), identity)
}

/**
 * What a DMAR table says; `buildDmar` of the answer gives an equal table.
 * @throws RangeError for bytes that are no DMAR table
 */
export function parseDmar(bytes: Uint8Array): DecodedDmar {
  const { signature, body, identity } = parseTable(bytes)
  if (signature !== SIGNATURE) throw new RangeError(`not a DMAR table: ${signature}`)
  if (body.length < BODY_BYTES) throw new RangeError('the DMAR table ends in its header')
  const { width, flags } = readSlots(body, BODY)
  const lists = {
    drhd: [] as Decoded<Drhd>[],
    rmrr: [] as Decoded<Rmrr>[],
    atsr: [] as Decoded<Atsr>[],
    rhsa: [] as Decoded<Rhsa>[],
    andd: [] as Decoded<Andd>[],
    satc: [] as Decoded<Satc>[],
    sidp: [] as Decoded<Sidp>[],
    unknown: [] as { type: number; bytes: Uint8Array }[],
  }
  for (const [type, structure] of structuresOf(body.subarray(BODY_BYTES))) {
    if (type === 0) lists.drhd.push(decodeDrhd(structure))
    else if (type === 1) lists.rmrr.push(decodeRmrr(structure))
    else if (type === 2) lists.atsr.push(decodeAtsr(structure))
    else if (type === 3) lists.rhsa.push(decodeRhsa(structure))
    else if (type === 4) lists.andd.push(decodeAndd(structure))
    else if (type === 5) lists.satc.push(decodeSatc(structure))
    else if (type === 6) lists.sidp.push(decodeSidp(structure))
    else lists.unknown.push({ type, bytes: structure })
  }
  return { hostAddressWidth: width + 1, ...readFlags(BODY_FLAGS, flags), ...lists, identity }
}

function* structuresOf(bytes: Uint8Array): Generator<readonly [number, Uint8Array]> {
  for (let at = 0; at < bytes.length;) {
    const rest = bytes.subarray(at)
    if (rest.length < 4) throw new RangeError(`${rest.length} stray bytes end the DMAR table`)
    const { type, length } = readSlots(rest, HEAD)
    if (length < 4 || length > rest.length) {
      throw new RangeError(`a structure says ${length} bytes, ${rest.length} are left`)
    }
    yield [type, rest.subarray(0, length)]
    at += length
  }
}

function encodeDrhd(unit: Drhd): Uint8Array {
  const bytes = structure('drhd', DRHD_BYTES, unit.scopes)
  writeSlots(bytes, DRHD, {
    flags: writeFlags(DRHD_FLAGS, unit),
    size: Math.log2((unit.registerBytes ?? PAGE) / PAGE),
    segment: unit.segment ?? 0,
    base: BigInt(unit.base),
  })
  return bytes
}

function decodeDrhd(bytes: Uint8Array): Decoded<Drhd> {
  const { flags, size, segment, base } = readSlots(fixed(bytes, DRHD_BYTES), DRHD)
  const scopes = decodeScopes(bytes.subarray(DRHD_BYTES))
  const registerBytes = PAGE * 2 ** (size & 0xf)
  return { segment, base: gpa(base), registerBytes, ...readFlags(DRHD_FLAGS, flags), scopes }
}

function encodeRmrr({ segment = 0, range, scopes }: Rmrr): Uint8Array {
  const bytes = structure('rmrr', RMRR_BYTES, scopes)
  writeSlots(bytes, RMRR, { segment, first: range.first, last: range.last })
  return bytes
}

function decodeRmrr(bytes: Uint8Array): Decoded<Rmrr> {
  const { segment, first, last } = readSlots(fixed(bytes, RMRR_BYTES), RMRR)
  const range = { first: gpa(first), last: gpa(last) }
  return { segment, range, scopes: decodeScopes(bytes.subarray(RMRR_BYTES)) }
}

function encodeAtsr(atsr: Atsr): Uint8Array {
  const bytes = structure('atsr', SEGMENT_BYTES, atsr.scopes)
  writeSlots(bytes, SEGMENT, { flags: writeFlags(ATSR_FLAGS, atsr), segment: atsr.segment ?? 0 })
  return bytes
}

function decodeAtsr(bytes: Uint8Array): Decoded<Atsr> {
  const { flags, segment } = readSlots(fixed(bytes, SEGMENT_BYTES), SEGMENT)
  const scopes = decodeScopes(bytes.subarray(SEGMENT_BYTES))
  return { segment, ...readFlags(ATSR_FLAGS, flags), scopes }
}

function encodeRhsa({ base, proximityDomain }: Rhsa): Uint8Array {
  const bytes = structure('rhsa', RHSA_BYTES)
  writeSlots(bytes, RHSA, { base: BigInt(base), proximityDomain })
  return bytes
}

function decodeRhsa(bytes: Uint8Array): Decoded<Rhsa> {
  const { base, proximityDomain } = readSlots(fixed(bytes, RHSA_BYTES), RHSA)
  return { base: gpa(base), proximityDomain }
}

function encodeAndd({ deviceNumber, objectName }: Andd): Uint8Array {
  const name = asciiBytes(objectName, 'objectName')
  const bytes = structure('andd', ANDD_BYTES + name.length + 1)
  writeSlots(bytes, ANDD, { deviceNumber })
  bytes.set(name, ANDD_BYTES)
  return bytes
}

function decodeAndd(bytes: Uint8Array): Decoded<Andd> {
  const { deviceNumber } = readSlots(fixed(bytes, ANDD_BYTES), ANDD)
  const end = bytes.indexOf(0, ANDD_BYTES)
  if (end < 0) throw new RangeError('an ANDD structure has an object name without an end')
  const objectName = Buffer.from(bytes.subarray(ANDD_BYTES, end)).toString('latin1')
  return { deviceNumber, objectName }
}

function encodeSatc(satc: Satc): Uint8Array {
  const bytes = structure('satc', SEGMENT_BYTES, satc.scopes)
  writeSlots(bytes, SEGMENT, { flags: writeFlags(SATC_FLAGS, satc), segment: satc.segment ?? 0 })
  return bytes
}

function decodeSatc(bytes: Uint8Array): Decoded<Satc> {
  const { flags, segment } = readSlots(fixed(bytes, SEGMENT_BYTES), SEGMENT)
  const scopes = decodeScopes(bytes.subarray(SEGMENT_BYTES))
  return { segment, ...readFlags(SATC_FLAGS, flags), scopes }
}

function encodeSidp({ segment = 0, scopes }: Sidp): Uint8Array {
  const bytes = structure('sidp', SEGMENT_BYTES, scopes)
  writeSlots(bytes, SEGMENT, { flags: 0, segment })
  return bytes
}

function decodeSidp(bytes: Uint8Array): Decoded<Sidp> {
  const { segment } = readSlots(fixed(bytes, SEGMENT_BYTES), SEGMENT)
  return { segment, scopes: decodeScopes(bytes.subarray(SEGMENT_BYTES)) }
}

/** A structure with its head and its scopes; the part between is the caller's to fill. */
function structure(
  kind: (typeof TYPES)[number],
  fixedBytes: number,
  scopes: readonly DeviceScope[] = [],
): Uint8Array {
  const head = new Uint8Array(fixedBytes)
  const bytes = Buffer.concat([head, ...scopes.map(encodeScope)])
  writeSlots(bytes, HEAD, { type: TYPES.indexOf(kind), length: bytes.length })
  return bytes
}

function fixed(bytes: Uint8Array, length: number): Uint8Array {
  if (bytes.length >= length) return bytes
  throw new RangeError(`a structure has ${bytes.length} bytes, its type has at least ${length}`)
}

/**
 * What VT-d 4.1 chapter 8 asks of the content of a DMAR table, beyond numbers that fit their slots.
 *
 * Apart from `dmar.ts`, which knows bytes: these rules know none.
 */
import { gpa } from '../address'
import type { DeviceScope, DeviceScopeType } from './device-scope'
import type { Atsr, Dmar, Drhd, Rmrr } from './dmar-structures'

const PAGE = 4096
const LARGEST_REGISTERS = PAGE * 2 ** 15
const OBJECT_NAME = /^\\?\^*[A-Z_][A-Z0-9_]{0,3}(\.[A-Z_][A-Z0-9_]{0,3})*$/

/**
 * @throws RangeError for what chapter 8 does not allow
 * @throws TypeError for an object name that is none
 */
export function checkDmar(dmar: Dmar): void {
  const { hostAddressWidth, drhd, rmrr = [], atsr = [], satc = [], sidp = [] } = dmar
  if (!Number.isInteger(hostAddressWidth) || hostAddressWidth < 12 || hostAddressWidth > 64) {
    throw new RangeError(`hostAddressWidth must be from 12 to 64: ${hostAddressWidth}`)
  }
  drhd.forEach(checkUnit)
  checkIncludeAll(drhd)
  rmrr.forEach(checkReservedMemory)
  atsr.forEach(checkPorts)
  for (const { scopes } of [...satc, ...sidp]) {
    requireScopes(scopes, ['endpoint'], 'a SATC or SIDP structure')
  }
  checkReferences(dmar)
}

function checkUnit({ base, registerBytes = PAGE, includePciAll, scopes = [] }: Drhd): void {
  const pages = registerBytes / PAGE
  if (!(pages >= 1 && registerBytes <= LARGEST_REGISTERS && Number.isInteger(Math.log2(pages)))) {
    throw new RangeError(`registerBytes must be a power of two from 4096 to 2^27: ${registerBytes}`)
  }
  if (gpa(base) === 0n || gpa(base) % BigInt(PAGE) !== 0n) {
    throw new RangeError(`a unit's base must be 4 KiB aligned and not 0: 0x${base.toString(16)}`)
  }
  if (includePciAll !== true && scopes.length === 0) {
    throw new RangeError('a unit without includePciAll needs at least one device scope')
  }
}

/** 8.3: a unit with INCLUDE_PCI_ALL takes what is left of a segment, so there can be only one. */
function checkIncludeAll(units: readonly Drhd[]): void {
  const segments = new Set<number>()
  for (const { segment = 0, includePciAll } of units) {
    if (includePciAll !== true) continue
    if (segments.has(segment)) {
      throw new RangeError(`two units with includePciAll in segment ${segment}`)
    }
    segments.add(segment)
  }
}

function checkReservedMemory({ range, scopes }: Rmrr): void {
  const first = gpa(range.first)
  const last = gpa(range.last)
  if (first > last || first % BigInt(PAGE) !== 0n || (last + 1n) % BigInt(PAGE) !== 0n) {
    const text = `0x${first.toString(16)} to 0x${last.toString(16)}`
    throw new RangeError(`reserved memory is whole 4 KiB pages: ${text}`)
  }
  requireScopes(scopes, ['endpoint', 'bridge', 'namespace'], 'an RMRR structure')
}

function checkPorts({ allPorts, scopes = [] }: Atsr): void {
  if (allPorts !== true) requireScopes(scopes, ['bridge'], 'an ATSR structure without allPorts')
  else if (scopes.length > 0) throw new RangeError('allPorts leaves no meaning to scopes')
}

function checkReferences({ drhd, rmrr = [], rhsa = [], andd = [] }: Dmar): void {
  const bases = new Set(drhd.map(({ base }) => gpa(base)))
  for (const { base } of rhsa) {
    if (bases.has(gpa(base))) continue
    throw new RangeError(`no unit has the base that an RHSA names: 0x${base.toString(16)}`)
  }
  const numbers = new Set<number>()
  for (const { deviceNumber, objectName } of andd) {
    if (!Number.isInteger(deviceNumber) || deviceNumber < 1 || deviceNumber > 0xff) {
      throw new RangeError(`deviceNumber must be from 1 to 255: ${deviceNumber}`)
    }
    if (numbers.has(deviceNumber)) throw new RangeError(`two ANDD for device ${deviceNumber}`)
    if (!OBJECT_NAME.test(objectName)) throw new TypeError(`not an ACPI name: ${objectName}`)
    numbers.add(deviceNumber)
  }
  for (const { scopes = [] } of [...drhd, ...rmrr]) {
    for (const { type, enumerationId = 0 } of scopes) {
      if (type !== 'namespace' || numbers.has(enumerationId)) continue
      throw new RangeError(`no ANDD structure has the device number ${enumerationId}`)
    }
  }
}

function requireScopes(
  scopes: readonly DeviceScope[],
  types: readonly DeviceScopeType[],
  where: string,
): void {
  if (scopes.length === 0) throw new RangeError(`${where} needs at least one device scope`)
  for (const { type } of scopes) {
    if (!types.includes(type)) throw new RangeError(`${where} takes ${types.join(', ')}: ${type}`)
  }
}

/**
 * Device scopes: how remapping structures name the devices that they are about.
 *
 * A scope starts at a bus and follows a path of device and function numbers, one hop for each
 * bridge, because bus numbers behind bridges are the guest's to assign.
 *
 * VT-d 4.1 8.3.1, Device Scope Structure.
 */
import { readFlags, readSlots, writeFlags, writeSlots } from './table'
import type { Flag, Slot } from './table'

/**
 * endpoint: a PCI device. bridge: everything behind a PCI bridge or root port. ioapic and hpet: who
 * writes their interrupts. namespace: a device that ACPI alone knows.
 */
export type DeviceScopeType = 'endpoint' | 'bridge' | 'ioapic' | 'hpet' | 'namespace'

/** Properties of devices integrated in the SoC; they mean something in a SIDP structure alone. */
export interface ScopeProperties {
  /** REQ_WO_PASID_NESTED_NOTALLOWED: no nested translation for requests without PASID. */
  readonly nestedNotAllowed?: boolean
  /** REQ_WO_PASID_PWSNP_NOTALLOWED: page-walk snoop must be 0 for requests without PASID. */
  readonly pageWalkSnoopNotAllowed?: boolean
  /** REQ_WO_PASID_PGSNP_NOTALLOWED: page snoop must be 0 for requests without PASID. */
  readonly pageSnoopNotAllowed?: boolean
  /** ATC_HARDENED: the device's translation cache does not trust the driver. */
  readonly atcHardened?: boolean
  /** ATC_REQUIRED: the device needs its translation cache to work. */
  readonly atcRequired?: boolean
}

export interface DeviceScope extends ScopeProperties {
  readonly type: DeviceScopeType
  /** `'00:03.0'`, or with a hop for each bridge on the way `'00:1c.0/00.0'`. Hexadecimal. */
  readonly path: string
  /**
   * ioapic: its APIC id. hpet: its HPET number. namespace: the ACPI device number of its ANDD
   * structure. 0 to 255, 0 where it is left out.
   */
  readonly enumerationId?: number
}

/** As decoded: nothing left out. */
export type DecodedScope = Required<DeviceScope>

const TYPES: Readonly<Record<DeviceScopeType, number>> = {
  endpoint: 1,
  bridge: 2,
  ioapic: 3,
  hpet: 4,
  namespace: 5,
}

const SCOPE = [
  { name: 'type', offset: 0, size: 1 },
  { name: 'length', offset: 1, size: 1 },
  { name: 'flags', offset: 2, size: 1 },
  { name: 'enumerationId', offset: 4, size: 1 },
  { name: 'startBus', offset: 5, size: 1 },
] as const satisfies readonly Slot[]

const PROPERTIES = [
  { name: 'nestedNotAllowed', bit: 0 },
  { name: 'pageWalkSnoopNotAllowed', bit: 1 },
  { name: 'pageSnoopNotAllowed', bit: 2 },
  { name: 'atcHardened', bit: 3 },
  { name: 'atcRequired', bit: 4 },
] as const satisfies readonly Flag[]

const HEAD_BYTES = 6
const PATH = /^([0-9a-f]{2}):([01][0-9a-f]\.[0-7](?:\/[01][0-9a-f]\.[0-7])*)$/i

/**
 * @throws TypeError for a malformed path or an unknown type
 * @throws RangeError for a path of more than 124 hops, or an enumeration id over 255
 */
export function encodeScope(scope: DeviceScope): Uint8Array {
  const match = PATH.exec(scope.path)
  if (match === null) {
    throw new TypeError(`not a device scope path (such as 00:1c.0/00.0): ${scope.path}`)
  }
  if (!Object.hasOwn(TYPES, scope.type)) {
    throw new TypeError(`type must be one of ${Object.keys(TYPES).join(', ')}: ${scope.type}`)
  }
  const hops = match[2].split('/')
  const length = HEAD_BYTES + 2 * hops.length
  if (length > 0xff) throw new RangeError(`a path has at most 124 hops: ${hops.length}`)
  const bytes = new Uint8Array(length)
  writeSlots(bytes, SCOPE, {
    type: TYPES[scope.type],
    length,
    flags: writeFlags(PROPERTIES, scope),
    enumerationId: scope.enumerationId ?? 0,
    startBus: Number.parseInt(match[1], 16),
  })
  hops.forEach((hop, i) => {
    const [device, fn] = hop.split('.')
    bytes[HEAD_BYTES + 2 * i] = Number.parseInt(device, 16)
    bytes[HEAD_BYTES + 2 * i + 1] = Number.parseInt(fn, 16)
  })
  return bytes
}

/** All scopes to the end of `bytes`. @throws RangeError for what is not a list of scopes */
export function decodeScopes(bytes: Uint8Array): DecodedScope[] {
  const scopes: DecodedScope[] = []
  for (let at = 0; at < bytes.length;) {
    const rest = bytes.subarray(at)
    if (rest.length < HEAD_BYTES) {
      throw new RangeError(`${rest.length} stray bytes after the device scopes`)
    }
    const { type, length, flags, enumerationId, startBus } = readSlots(rest, SCOPE)
    if (length < HEAD_BYTES + 2 || length % 2 !== 0 || length > rest.length) {
      throw new RangeError(`a device scope says ${length} bytes, ${rest.length} are left`)
    }
    scopes.push({
      type: scopeType(type),
      path: `${hex(startBus)}:${hopsOf(rest.subarray(HEAD_BYTES, length)).join('/')}`,
      enumerationId,
      ...readFlags(PROPERTIES, flags),
    })
    at += length
  }
  return scopes
}

function scopeType(number: number): DeviceScopeType {
  for (const name of Object.keys(TYPES) as DeviceScopeType[]) {
    if (TYPES[name] === number) return name
  }
  throw new RangeError(`no device scope has the type ${number}`)
}

function hopsOf(bytes: Uint8Array): string[] {
  const hops: string[] = []
  for (let i = 0; i < bytes.length; i += 2) {
    if (bytes[i] > 31 || bytes[i + 1] > 7) {
      throw new RangeError(`no device and function: ${bytes[i]}, ${bytes[i + 1]}`)
    }
    hops.push(`${hex(bytes[i])}.${bytes[i + 1]}`)
  }
  return hops
}

function hex(value: number): string {
  return value.toString(16).padStart(2, '0')
}

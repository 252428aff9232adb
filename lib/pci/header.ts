/**
 * The headers that configuration space starts with: type 0 of an endpoint, type 1 of a bridge.
 *
 * PCIe 5.0 7.5.1. Without I/O space, expansion ROM, BIST and what PCI Express has hardwired to 0.
 */
import { layout } from '../bits'
import { register } from './config-register'
import type { ConfigField, ConfigRegister } from './config-register'

export const CONFIG_SPACE_BYTES = 4096
/** Where the first capability of the standard list can be. */
export const FIRST_CAPABILITY = 0x40
/** Where the standard capabilities end and the extended ones start. */
export const FIRST_EXTENDED_CAPABILITY = 0x100

const ID = [
  { name: 'vendor', from: 0, to: 15 },
  { name: 'device', from: 16, to: 31 },
] as const satisfies readonly ConfigField[]

/** Command (PCIe 5.0 7.5.1.1.3) and, in the upper half, Status (7.5.1.1.4). */
const COMMAND_FIELDS = [
  { name: 'memorySpace', from: 1, to: 1, access: 'writable' },
  { name: 'busMaster', from: 2, to: 2, access: 'writable' },
  { name: 'parityErrorResponse', from: 6, to: 6, access: 'writable' },
  { name: 'systemErrorEnable', from: 8, to: 8, access: 'writable' },
  { name: 'interruptDisable', from: 10, to: 10, access: 'writable' },
  { name: 'interruptStatus', from: 19, to: 19 },
  { name: 'capabilitiesList', from: 20, to: 20, reset: 1 },
  { name: 'masterDataParityError', from: 24, to: 24, access: 'write1clear' },
  { name: 'signaledTargetAbort', from: 27, to: 27, access: 'write1clear' },
  { name: 'receivedTargetAbort', from: 28, to: 28, access: 'write1clear' },
  { name: 'receivedMasterAbort', from: 29, to: 29, access: 'write1clear' },
  { name: 'signaledSystemError', from: 30, to: 30, access: 'write1clear' },
  { name: 'detectedParityError', from: 31, to: 31, access: 'write1clear' },
] as const satisfies readonly ConfigField[]
export const COMMAND = layout(32, COMMAND_FIELDS).field

const CLASS = [
  { name: 'revision', from: 0, to: 7 },
  { name: 'classCode', from: 8, to: 31 },
] as const satisfies readonly ConfigField[]

const MISC = [
  { name: 'cacheLineSize', from: 0, to: 7, access: 'writable' },
  { name: 'latencyTimer', from: 8, to: 15 },
  { name: 'headerType', from: 16, to: 22 },
  { name: 'multiFunction', from: 23, to: 23 },
] as const satisfies readonly ConfigField[]

const CAPABILITIES = [{ name: 'pointer', from: 0, to: 7 }] as const satisfies readonly ConfigField[]

const INTERRUPT = [
  { name: 'line', from: 0, to: 7, access: 'writable' },
  { name: 'pin', from: 8, to: 15 },
] as const satisfies readonly ConfigField[]

/** Base Address Registers (PCIe 5.0 7.5.1.2.1). */
const BAR_FIELDS = [
  { name: 'ioSpace', from: 0, to: 0 },
  { name: 'type', from: 1, to: 2 },
  { name: 'prefetchable', from: 3, to: 3 },
] as const satisfies readonly ConfigField[]
const BAR = layout(32, BAR_FIELDS).field
const BAR_TYPE = { memory32: 0, memory64: 2 } as const
const BAR_FLAGS = 0xfn
const FIRST_BAR = 0x10

const BUS_NUMBERS_FIELDS = [
  { name: 'primary', from: 0, to: 7, access: 'writable' },
  { name: 'secondary', from: 8, to: 15, access: 'writable' },
  { name: 'subordinate', from: 16, to: 23, access: 'writable' },
] as const satisfies readonly ConfigField[]
export const BUS_NUMBERS = layout(32, BUS_NUMBERS_FIELDS).field

/** I/O base and limit (0: no I/O window) and Secondary Status (PCIe 5.0 7.5.1.3.7). */
const SECONDARY_STATUS = [
  { name: 'masterDataParityError', from: 24, to: 24, access: 'write1clear' },
  { name: 'signaledTargetAbort', from: 27, to: 27, access: 'write1clear' },
  { name: 'receivedTargetAbort', from: 28, to: 28, access: 'write1clear' },
  { name: 'receivedMasterAbort', from: 29, to: 29, access: 'write1clear' },
  { name: 'receivedSystemError', from: 30, to: 30, access: 'write1clear' },
  { name: 'detectedParityError', from: 31, to: 31, access: 'write1clear' },
] as const satisfies readonly ConfigField[]

const MEMORY_WINDOW = [
  { name: 'base', from: 4, to: 15, access: 'writable' },
  { name: 'limit', from: 20, to: 31, access: 'writable' },
] as const satisfies readonly ConfigField[]

/** The type fields say 64-bit: the upper halves are registers of their own. */
const PREFETCHABLE_WINDOW = [
  { name: 'baseType', from: 0, to: 3, reset: 1 },
  { name: 'base', from: 4, to: 15, access: 'writable' },
  { name: 'limitType', from: 16, to: 19, reset: 1 },
  { name: 'limit', from: 20, to: 31, access: 'writable' },
] as const satisfies readonly ConfigField[]

const UPPER = [
  { name: 'bits', from: 0, to: 31, access: 'writable' },
] as const satisfies readonly ConfigField[]

/** Interrupt line and pin, Bridge Control (PCIe 5.0 7.5.1.3.13). */
const BRIDGE_CONTROL_FIELDS = [
  ...INTERRUPT,
  { name: 'parityErrorResponse', from: 16, to: 16, access: 'writable' },
  { name: 'systemErrorEnable', from: 17, to: 17, access: 'writable' },
  { name: 'secondaryBusReset', from: 22, to: 22, access: 'writable' },
] as const satisfies readonly ConfigField[]
export const BRIDGE_CONTROL = layout(32, BRIDGE_CONTROL_FIELDS).field

export interface Identity {
  readonly vendor: number
  readonly device: number
  readonly revision?: number
  /** Base class, subclass, programming interface: 24 bits, such as 0x020000 for Ethernet. */
  readonly classCode: number
}

/** A window of memory that a function asks for. */
export interface Bar {
  /** 0 to 5; a 64-bit one also takes the next. */
  readonly index: number
  /** A power of two: 16 to 2^31, up to 2^63 with 64 bits. */
  readonly bytes: number
  readonly kind: 'memory32' | 'memory64'
  readonly prefetchable?: boolean
}

export interface EndpointHeader extends Identity {
  readonly subsystemVendor: number
  readonly subsystem: number
  readonly bars?: readonly Bar[]
  /** INTA to INTD as 1 to 4; 0, no interrupt pin, where it is left out. */
  readonly interruptPin?: 0 | 1 | 2 | 3 | 4
}

/** @throws RangeError for a number that does not fit its field, or a bar that can't be */
export function endpointHeader(header: EndpointHeader): readonly ConfigRegister[] {
  const { subsystemVendor: vendor, subsystem: device, bars = [], interruptPin = 0 } = header
  return [
    ...commonRegisters(header, 0),
    ...bars.map(barRegister),
    register('subsystem', 0x2c, ID, checked({ vendor, device }, 0xffff)),
    register('interrupt', 0x3c, INTERRUPT, checked({ pin: interruptPin }, 4)),
  ]
}

/** A PCI-to-PCI bridge without BARs. @throws RangeError for a number that does not fit its field */
export function bridgeHeader(identity: Identity): readonly ConfigRegister[] {
  return [
    ...commonRegisters(identity, 1),
    register('busNumbers', 0x18, BUS_NUMBERS_FIELDS),
    register('secondaryStatus', 0x1c, SECONDARY_STATUS),
    register('memoryWindow', 0x20, MEMORY_WINDOW),
    register('prefetchableWindow', 0x24, PREFETCHABLE_WINDOW),
    register('prefetchableBaseUpper', 0x28, UPPER),
    register('prefetchableLimitUpper', 0x2c, UPPER),
    register('bridgeControl', 0x3c, BRIDGE_CONTROL_FIELDS),
  ]
}

/** The register that points at the first capability; its place is the same in both headers. */
export function capabilitiesPointer(pointer: number): ConfigRegister {
  return register('capabilities', 0x34, CAPABILITIES, { pointer })
}

/** The name that the register of a BAR has. */
export function barName(index: number): string {
  return `bar${index}`
}

/** The address in the value of a BAR. */
export function barAddress(value: bigint): bigint {
  return value & ~BAR_FLAGS
}

function commonRegisters(identity: Identity, headerType: number): readonly ConfigRegister[] {
  const { vendor, device, revision = 0, classCode } = identity
  checked({ revision }, 0xff)
  checked({ classCode }, 0xffffff)
  return [
    register('id', 0x00, ID, checked({ vendor, device }, 0xffff)),
    register('command', 0x04, COMMAND_FIELDS),
    register('class', 0x08, CLASS, { revision, classCode }),
    register('misc', 0x0c, MISC, { headerType }),
  ]
}

/** Address bits below the size are hardwired to 0: so software finds the size by writing ones. */
function barRegister({ index, bytes, kind, prefetchable = false }: Bar): ConfigRegister {
  const wide = kind === 'memory64'
  if (!Number.isInteger(index) || index < 0 || index > (wide ? 4 : 5)) {
    throw new RangeError(`a ${kind} BAR has an index from 0 to ${wide ? 4 : 5}: ${index}`)
  }
  const bits = Math.log2(bytes)
  if (!Number.isInteger(bits) || bits < 4 || bits > (wide ? 63 : 31)) {
    throw new RangeError(`the size of a ${kind} BAR must be a power of two from 16: ${bytes}`)
  }
  const ones = wide ? 0xffffffffffffffffn : 0xffffffffn
  return {
    name: barName(index),
    offset: FIRST_BAR + 4 * index,
    size: wide ? 8 : 4,
    reset: BAR.type.of(BAR_TYPE[kind]) | BAR.prefetchable.of(prefetchable),
    writable: ones & ~(BigInt(bytes) - 1n),
  }
}

function checked<T extends Readonly<Record<string, number>>>(values: T, last: number): T {
  for (const [name, value] of Object.entries(values)) {
    if (Number.isInteger(value) && value >= 0 && value <= last) continue
    throw new RangeError(`${name} must be from 0 to 0x${last.toString(16)}: ${value}`)
  }
  return values
}

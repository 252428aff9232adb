/**
 * What a function can do, as two linked lists in its configuration space: capabilities from 0x40
 * on, extended capabilities from 0x100 on.
 *
 * A capability brings its registers and hears of accesses to them. It does not know its place:
 * this file lays the lists out and links them. PCIe 5.0 7.5.1.1.11 and 7.6.
 */
import { register } from './config-register'
import type { ConfigField, ConfigRegister } from './config-register'
import {
  CONFIG_SPACE_BYTES,
  FIRST_CAPABILITY,
  FIRST_EXTENDED_CAPABILITY,
  capabilitiesPointer,
} from './header'

/** A capability's own registers, by the names that it gave them. */
export interface CapabilityRegisters {
  /** Of the capability in configuration space, in bytes. */
  readonly offset: number
  get(name: string): bigint
  /** As the device itself sets them: every bit, whatever the guest may write. */
  set(name: string, value: bigint): void
}

export interface Capability {
  /** Unique in its function. */
  readonly name: string
  /** Capability ID or Extended Capability ID. */
  readonly id: number
  /** Of an extended capability; one of the standard list has none. */
  readonly version?: number
  /** Length with the list's own bytes; registers beyond those listed read as 0. */
  readonly bytes: number
  /**
   * Offsets count from the start of the capability. A register at 0 shares its place with the
   * list: with the 16 bits of id and next pointer, or, in an extended capability, all of its bits.
   */
  readonly registers: readonly ConfigRegister[]
  /** Called once, when the capability has got its place. */
  attach?(registers: CapabilityRegisters): void
  /** The guest is about to read a register: the last moment to give it its value. */
  reading?(name: string): void
  /** The guest has written to a register, a part of it or the same value again. */
  written?(name: string): void
  /** The registers have been reset. */
  reset?(): void
}

export interface PlacedRegister extends ConfigRegister {
  readonly capability?: Capability
  /** The name that the capability itself gave it. */
  readonly ownName?: string
}

const STANDARD_HEAD = [
  { name: 'id', from: 0, to: 7 },
  { name: 'next', from: 8, to: 15 },
] as const satisfies readonly ConfigField[]

const EXTENDED_HEAD = [
  { name: 'id', from: 0, to: 15 },
  { name: 'version', from: 16, to: 19 },
  { name: 'next', from: 20, to: 31 },
] as const satisfies readonly ConfigField[]

/** The name of register 0 of a capability that does not bring its own. */
const HEAD = 'head'

/**
 * Places capabilities one after the other in the order given, linked in that order.
 * @returns their registers and the one that points at the first of them
 * @throws RangeError where they do not fit, or two have the same name
 */
export function placeCapabilities(capabilities: readonly Capability[]): readonly PlacedRegister[] {
  const names = new Set(capabilities.map(({ name }) => name))
  if (names.size !== capabilities.length) throw new RangeError('two capabilities have one name')
  const standard = capabilities.filter(({ version }) => version === undefined)
  const extended = capabilities.filter(({ version }) => version !== undefined)
  return [
    capabilitiesPointer(standard.length > 0 ? FIRST_CAPABILITY : 0),
    ...placeList(standard, FIRST_CAPABILITY, FIRST_EXTENDED_CAPABILITY),
    ...placeList(extended, FIRST_EXTENDED_CAPABILITY, CONFIG_SPACE_BYTES),
  ]
}

/** The full name of a capability's register in its configuration space. */
export function registerName(capability: Capability, ownName: string): string {
  return `${capability.name}.${ownName}`
}

/** Where a placed capability starts. */
export function offsetOf(placed: readonly PlacedRegister[], capability: Capability): number {
  const of = placed.filter((register) => register.capability === capability)
  return Math.min(...of.map(({ offset }) => offset))
}

function placeList(list: readonly Capability[], first: number, end: number): PlacedRegister[] {
  let offset = first
  return list.flatMap((capability, i) => {
    const at = offset
    offset += (capability.bytes + 3) & ~3
    if (offset > end) throw new RangeError(`no room for the capability ${capability.name}`)
    return placeRegisters(capability, at, i + 1 < list.length ? offset : 0)
  })
}

function placeRegisters(capability: Capability, at: number, next: number): PlacedRegister[] {
  const { id, version } = capability
  const head =
    version === undefined
      ? register(HEAD, 0, STANDARD_HEAD, { id, next })
      : register(HEAD, 0, EXTENDED_HEAD, { id, version, next })
  const own = capability.registers.find(({ offset }) => offset === 0)
  const first = own === undefined ? head : { ...own, reset: (own.reset ?? 0n) | head.reset! }
  const rest = capability.registers.filter(({ offset }) => offset !== 0)
  return [first, ...rest].map((spec) => {
    if (spec.offset + spec.size > capability.bytes) {
      throw new RangeError(`register ${spec.name} is outside the capability ${capability.name}`)
    }
    const name = registerName(capability, spec.name)
    return { ...spec, name, offset: at + spec.offset, capability, ownName: spec.name }
  })
}

/**
 * The PCI Express capability: what kind of port a function is, its link, and the function level
 * reset. Without it an operating system does not look at extended configuration space.
 *
 * The link is never trained and never fails; its numbers are there because software reads them.
 * PCIe 5.0 7.5.3.
 */
import { layout } from '../bits'
import type { Capability, CapabilityRegisters } from './capabilities'
import { register } from './config-register'
import type { ConfigField, ConfigRegister } from './config-register'

/** integrated: an endpoint on the root bus, without a link (Root Complex Integrated Endpoint). */
export type PortType = 'endpoint' | 'root-port' | 'integrated'

const CAPABILITY_ID = 0x10
const BYTES = 0x3c
const TYPES: Readonly<Record<PortType, number>> = { endpoint: 0, 'root-port': 4, integrated: 9 }
/** 8 GT/s and four lanes (7.5.3.6, Max Link Speed and Maximum Link Width). */
const SPEED = 3
const WIDTH = 4

const HEAD = [
  { name: 'version', from: 16, to: 19, reset: 2 },
  { name: 'type', from: 20, to: 23 },
  { name: 'slot', from: 24, to: 24 },
  { name: 'message', from: 25, to: 29 },
] as const satisfies readonly ConfigField[]

const DEVICE_CAPABILITIES = [
  { name: 'maxPayloadSize', from: 0, to: 2, reset: 1 },
  { name: 'extendedTag', from: 5, to: 5, reset: 1 },
  { name: 'roleBasedErrors', from: 15, to: 15, reset: 1 },
  { name: 'functionLevelReset', from: 28, to: 28 },
] as const satisfies readonly ConfigField[]

/** Device Control (7.5.3.4) and, in the upper half, Device Status (7.5.3.5). */
const DEVICE_CONTROL_FIELDS = [
  { name: 'correctableErrors', from: 0, to: 0, access: 'writable' },
  { name: 'nonFatalErrors', from: 1, to: 1, access: 'writable' },
  { name: 'fatalErrors', from: 2, to: 2, access: 'writable' },
  { name: 'unsupportedRequests', from: 3, to: 3, access: 'writable' },
  { name: 'relaxedOrdering', from: 4, to: 4, access: 'writable', reset: 1 },
  { name: 'maxPayloadSize', from: 5, to: 7, access: 'writable', sticky: true },
  { name: 'extendedTag', from: 8, to: 8, access: 'writable', reset: 1 },
  { name: 'noSnoop', from: 11, to: 11, access: 'writable', reset: 1 },
  { name: 'maxReadRequest', from: 12, to: 14, access: 'writable', reset: 2 },
  { name: 'initiateReset', from: 15, to: 15, access: 'writeOnly' },
  { name: 'correctableDetected', from: 16, to: 16, access: 'write1clear' },
  { name: 'nonFatalDetected', from: 17, to: 17, access: 'write1clear' },
  { name: 'fatalDetected', from: 18, to: 18, access: 'write1clear' },
  { name: 'unsupportedDetected', from: 19, to: 19, access: 'write1clear' },
] as const satisfies readonly ConfigField[]
const DEVICE_CONTROL = layout(32, DEVICE_CONTROL_FIELDS).field

const LINK_CAPABILITIES = [
  { name: 'speed', from: 0, to: 3, reset: SPEED },
  { name: 'width', from: 4, to: 9, reset: WIDTH },
  { name: 'aspmOptional', from: 22, to: 22, reset: 1 },
  { name: 'port', from: 24, to: 31 },
] as const satisfies readonly ConfigField[]

/** Link Control (7.5.3.7) and, in the upper half, Link Status (7.5.3.8). */
const LINK_CONTROL = [
  { name: 'readCompletionBoundary', from: 3, to: 3, access: 'writable', sticky: true },
  { name: 'commonClock', from: 6, to: 6, access: 'writable', sticky: true },
  { name: 'extendedSynch', from: 7, to: 7, access: 'writable', sticky: true },
  { name: 'speed', from: 16, to: 19, reset: SPEED },
  { name: 'width', from: 20, to: 25, reset: WIDTH },
  { name: 'slotClock', from: 28, to: 28, reset: 1 },
] as const satisfies readonly ConfigField[]

const ROOT_CONTROL = [
  { name: 'correctable', from: 0, to: 0, access: 'writable' },
  { name: 'nonFatal', from: 1, to: 1, access: 'writable' },
  { name: 'fatal', from: 2, to: 2, access: 'writable' },
  { name: 'pmeInterrupt', from: 3, to: 3, access: 'writable' },
] as const satisfies readonly ConfigField[]

const ROOT_STATUS = [
  { name: 'pmeRequester', from: 0, to: 15 },
  { name: 'pmeStatus', from: 16, to: 16, access: 'write1clear' },
] as const satisfies readonly ConfigField[]

const DEVICE_CAPABILITIES_2 = [
  { name: 'completionTimeoutDisable', from: 4, to: 4, reset: 1 },
] as const satisfies readonly ConfigField[]

const DEVICE_CONTROL_2 = [
  { name: 'completionTimeoutDisable', from: 4, to: 4, access: 'writable' },
] as const satisfies readonly ConfigField[]

/** Supported Link Speeds Vector (7.5.3.18): bit 0 of it is 2.5 GT/s. */
const LINK_CAPABILITIES_2 = [
  { name: 'speeds', from: 1, to: 7, reset: 2 ** SPEED - 1 },
] as const satisfies readonly ConfigField[]

const LINK_CONTROL_2 = [
  { name: 'targetSpeed', from: 0, to: 3, access: 'writable', reset: SPEED, sticky: true },
] as const satisfies readonly ConfigField[]

export interface ExpressOptions {
  readonly type: PortType
  /** Port Number of a link's upper end, 0 to 255; a root port's. */
  readonly port?: number
  /** Called inside the write that asks for a function level reset. Not for a root port. */
  readonly onFunctionReset?: () => void
}

export class Express implements Capability {
  readonly name = 'express'
  readonly id = CAPABILITY_ID
  readonly bytes = BYTES
  readonly registers: readonly ConfigRegister[]
  readonly #functionReset: (() => void) | undefined
  #own: CapabilityRegisters | undefined

  /** @throws RangeError for a port number over 255 */
  constructor(options: ExpressOptions) {
    const { type, port = 0, onFunctionReset } = options
    if (!Number.isInteger(port) || port < 0 || port > 0xff) {
      throw new RangeError(`a port number is from 0 to 255: ${port}`)
    }
    this.#functionReset = onFunctionReset
    const functionLevelReset = onFunctionReset === undefined ? 0 : 1
    this.registers = [
      register('head', 0x00, HEAD, { type: TYPES[type] }),
      register('deviceCapabilities', 0x04, DEVICE_CAPABILITIES, { functionLevelReset }),
      register('deviceControl', 0x08, DEVICE_CONTROL_FIELDS),
      ...(type === 'integrated' ? [] : linkRegisters(port)),
      ...(type === 'root-port' ? ROOT_REGISTERS : []),
      register('deviceCapabilities2', 0x24, DEVICE_CAPABILITIES_2),
      register('deviceControl2', 0x28, DEVICE_CONTROL_2),
    ]
  }

  attach(registers: CapabilityRegisters): void {
    this.#own = registers
  }

  /**
   * 7.5.3.4: Initiate Function Level Reset always reads 0, and does nothing where there is none.
   */
  written(name: string): void {
    if (this.#own === undefined || name !== 'deviceControl') return
    const value = this.#own.get(name)
    if (DEVICE_CONTROL.initiateReset.in(value) === 0) return
    this.#own.set(name, value & ~DEVICE_CONTROL.initiateReset.bits)
    this.#functionReset?.()
  }
}

const ROOT_REGISTERS: readonly ConfigRegister[] = [
  register('rootControl', 0x1c, ROOT_CONTROL),
  register('rootStatus', 0x20, ROOT_STATUS),
]

function linkRegisters(port: number): readonly ConfigRegister[] {
  return [
    register('linkCapabilities', 0x0c, LINK_CAPABILITIES, { port }),
    register('linkControl', 0x10, LINK_CONTROL),
    register('linkCapabilities2', 0x2c, LINK_CAPABILITIES_2),
    register('linkControl2', 0x30, LINK_CONTROL_2),
  ]
}

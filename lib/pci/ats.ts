/**
 * The ATS extended capability: how an operating system turns a device's translation cache on.
 *
 * vhost's IOTLB is that cache. Enable decides which of the guest's invalidations reach it: those
 * for the device's TLB where it is set, those for the IOTLB where it is clear.
 *
 * PCIe 5.0 10.5.1. Enable and STU are compared after each access to the register, so that it makes
 * no difference whether a guest writes one byte of it or all four.
 */
import { layout } from '../bits'
import type { Capability, CapabilityRegisters } from './capabilities'
import { register } from './config-register'
import type { ConfigField, ConfigRegister } from './config-register'
import { Listeners } from './listeners'

const EXTENDED_CAPABILITY_ID = 0x000f
const VERSION = 1
const BYTES = 8
const LARGEST_QUEUE_DEPTH = 32

/** ATS Capability (10.5.1.2) and, in the upper half, ATS Control (10.5.1.3). */
const CONTROL_FIELDS = [
  { name: 'invalidateQueueDepth', from: 0, to: 4 },
  { name: 'pageAlignedRequest', from: 5, to: 5 },
  { name: 'globalInvalidate', from: 6, to: 6 },
  { name: 'smallestTranslationUnit', from: 16, to: 20, access: 'writable' },
  { name: 'enable', from: 31, to: 31, access: 'writable' },
] as const satisfies readonly ConfigField[]
const CONTROL = layout(32, CONTROL_FIELDS).field

export interface AtsOptions {
  /**
   * Invalidate requests that the device takes before it stalls its link: 1 to 32. 32 by default.
   */
  readonly invalidateQueueDepth?: number
  /** All requests are 4096-byte aligned. True by default: Linux enables ATS on no other device. */
  readonly pageAlignedRequest?: boolean
  /** The device takes Invalidate Requests for all PASIDs at once. False by default. */
  readonly globalInvalidate?: boolean
}

export class Ats implements Capability {
  readonly name = 'ats'
  readonly id = EXTENDED_CAPABILITY_ID
  readonly version = VERSION
  readonly bytes = BYTES
  readonly registers: readonly ConfigRegister[]
  readonly #listeners = new Listeners<[enabled: boolean, stu: number]>()
  #own: CapabilityRegisters | undefined
  #enabled = false
  #stu = 0

  /** @throws RangeError for a queue depth that is not from 1 to 32 */
  constructor(options: AtsOptions = {}) {
    const { invalidateQueueDepth = LARGEST_QUEUE_DEPTH } = options
    const { pageAlignedRequest = true, globalInvalidate = false } = options
    if (
      !Number.isInteger(invalidateQueueDepth) ||
      invalidateQueueDepth < 1 ||
      invalidateQueueDepth > LARGEST_QUEUE_DEPTH
    ) {
      throw new RangeError(`invalidateQueueDepth must be from 1 to 32: ${invalidateQueueDepth}`)
    }
    this.registers = [
      register('control', 4, CONTROL_FIELDS, {
        // 10.5.1.2: 0 in the field says 32.
        invalidateQueueDepth: invalidateQueueDepth % LARGEST_QUEUE_DEPTH,
        pageAlignedRequest: Number(pageAlignedRequest),
        globalInvalidate: Number(globalInvalidate),
      }),
    ]
  }

  /** The device may send translation requests, and caches what they answer. */
  get enabled(): boolean {
    return this.#enabled
  }

  /** Smallest Translation Unit: 0 to 31, for units of 2^(12 + stu) bytes. */
  get stu(): number {
    return this.#stu
  }

  /** Called when Enable or STU has changed: by the guest, or by a reset, which clears both. */
  onAts(listener: (enabled: boolean, stu: number) => void): Disposable {
    return this.#listeners.add(listener)
  }

  attach(registers: CapabilityRegisters): void {
    this.#own = registers
  }

  written(): void {
    this.#compare()
  }

  reset(): void {
    this.#compare()
  }

  #compare(): void {
    if (this.#own === undefined) return
    const control = this.#own.get('control')
    const enabled = CONTROL.enable.in(control) === 1
    const stu = CONTROL.smallestTranslationUnit.in(control)
    if (enabled === this.#enabled && stu === this.#stu) return
    this.#enabled = enabled
    this.#stu = stu
    this.#listeners.call(enabled, stu)
  }
}

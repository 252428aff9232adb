/**
 * Invalidation by register, the older way: CCMD for context entries, IOTLB with IVA for pages
 * (VT-d 5.10, 6.5.1). Done when the write that sets ICC or IVT returns.
 *
 * While the queue is on these commands are not taken, and the bit that starts them stays set.
 */
import type { RegisterFile } from '../../bits'
import type { AddressSpaces } from './address-spaces'
import { MAX_ADDRESS_MASK } from './capabilities'
import type { Capabilities } from './capabilities'
import { FUNCTION_MASK, GRANULARITY } from './descriptors'
import { CCMD, IOTLB, IVA } from './registers'
import type { RegisterName } from './registers'
import { TABLE_MODE } from './translator'

export class RegisterInvalidation {
  readonly #registers: RegisterFile<RegisterName>
  readonly #spaces: AddressSpaces
  readonly #qemu: boolean
  readonly #queueEnabled: () => boolean
  readonly #tableMode: () => number

  constructor(
    registers: RegisterFile<RegisterName>,
    has: Capabilities,
    spaces: AddressSpaces,
    queueEnabled: () => boolean,
    tableMode: () => number,
  ) {
    this.#registers = registers
    this.#spaces = spaces
    this.#qemu = has.qemu
    this.#queueEnabled = queueEnabled
    this.#tableMode = tableMode
  }

  /** After software wrote the byte of CCMD that holds ICC. */
  contextCommand(): void {
    const { ICC, CIRG, CAIG } = CCMD.field
    const command = this.#registers.get('CCMD')
    if (ICC.in(command) === 0 || this.#queueEnabled()) return
    const done = this.#isLegacy() ? this.#context(command, CIRG.in(command)) : 0
    this.#registers.set('CCMD', (command & ~(ICC.bits | CAIG.bits)) | CAIG.of(done))
  }

  /** After software wrote the byte of IOTLB that holds IVT. */
  iotlbCommand(): void {
    const { IVT, IIRG, IAIG } = IOTLB.field
    const command = this.#registers.get('IOTLB')
    if (IVT.in(command) === 0 || this.#queueEnabled()) return
    const done = this.#isLegacy() ? this.#iotlb(command, IIRG.in(command)) : 0
    this.#registers.set('IOTLB', (command & ~(IVT.bits | IAIG.bits)) | IAIG.of(done))
  }

  /** In other table modes these registers do nothing, and say so (11.4.6.1, 11.4.6.3). */
  #isLegacy(): boolean {
    return this.#qemu || this.#tableMode() === TABLE_MODE.legacy
  }

  /** @returns the granularity that was done, or 0 for a reserved one (11.4.6.1) */
  #context(command: bigint, granularity: number): number {
    const { DID, SID, FM } = CCMD.field
    switch (granularity) {
      case GRANULARITY.global:
        this.#spaces.everything('context')
        return granularity
      case GRANULARITY.domain:
        this.#spaces.contextDomain(DID.in(command))
        return this.#qemu ? GRANULARITY.global : granularity
      case GRANULARITY.selective:
        this.#spaces.contextDevice(SID.in(command), FUNCTION_MASK[FM.in(command)])
        return granularity
      default:
        return 0
    }
  }

  /**
   * @returns the granularity that was done, or 0 for a reserved one or too wide a mask (11.4.6.3)
   */
  #iotlb(command: bigint, granularity: number): number {
    const domain = IOTLB.field.DID.in(command)
    switch (granularity) {
      case GRANULARITY.global:
        this.#spaces.iotlbEverything()
        return granularity
      case GRANULARITY.domain:
        this.#spaces.iotlbDomain(domain)
        return granularity
      case GRANULARITY.selective: {
        const address = this.#registers.get('IVA')
        const mask = IVA.field.AM.in(address)
        if (mask > MAX_ADDRESS_MASK) return 0
        this.#spaces.iotlbPages(domain, IVA.field.ADDR.in(address), mask)
        return granularity
      }
      default:
        return 0
    }
  }
}

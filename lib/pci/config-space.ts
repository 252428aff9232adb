/**
 * The configuration space of one PCI Express function, 4096 bytes, as a guest reads and writes it.
 *
 * Registers come from tables. Any access is harmless: a guest can write only bits that a table
 * lets it write, and nothing here throws at a guest. Which bus address a function has, and how its
 * memory is decoded, is for the machine around it: that one listens.
 *
 * PCIe 5.0 7.5 (registers), 6.6 (resets).
 */
import type { InspectOptions } from 'node:util'
import { RegisterFile } from '../bits'
import { hex, shown, summary } from '../inspect'
import type { MmioDevice } from '../iommu/iommu'
import { offsetOf, placeCapabilities, registerName } from './capabilities'
import type { Capability, PlacedRegister } from './capabilities'
import type { ConfigRegister } from './config-register'
import { COMMAND, CONFIG_SPACE_BYTES, barAddress, barName } from './header'
import { Listeners } from './listeners'

/** function: Initiate Function Level Reset. conventional: the bus's, or power. */
export type ResetKind = 'function' | 'conventional'

export class ConfigSpace implements MmioDevice {
  readonly #registers: readonly PlacedRegister[]
  readonly #file: RegisterFile<string>
  readonly #at: (PlacedRegister | undefined)[]
  readonly #capabilities: readonly Capability[]
  readonly #changes = new Listeners<[name: string]>()
  readonly #resets = new Listeners<[kind: ResetKind]>()

  /**
   * @param header `endpointHeader(…)` or `bridgeHeader(…)`
   * @param capabilities in the order in which the guest will find them
   * @throws RangeError for capabilities that do not fit or registers that overlap
   */
  constructor(header: readonly ConfigRegister[], capabilities: readonly Capability[] = []) {
    this.#capabilities = capabilities
    const placed = placeCapabilities(capabilities)
    this.#registers = [...header, ...placed]
    this.#file = new RegisterFile(this.#registers, CONFIG_SPACE_BYTES)
    this.#at = new Array<PlacedRegister | undefined>(CONFIG_SPACE_BYTES / 4)
    for (const register of this.#registers) {
      for (let i = 0; i < register.size; i += 4) this.#at[(register.offset + i) / 4] = register
    }
    for (const capability of capabilities) {
      capability.attach?.({
        offset: offsetOf(placed, capability),
        get: (name) => this.get(registerName(capability, name)),
        set: (name, value) => {
          this.set(registerName(capability, name), value)
        },
      })
    }
  }

  /** All ones for an access that is not 1, 2, 4 or 8 bytes inside the space. */
  read(offset: number, size: number): bigint {
    if (!inside(offset, size)) return ALL_ONES[size] ?? 0n
    if (size === 8) return this.read(offset, 4) | (this.read(offset + 4, 4) << 32n)
    for (const { capability, ownName } of this.#touched(offset, size)) {
      if (ownName !== undefined) capability?.reading?.(ownName)
    }
    return this.#file.read(offset, size)
  }

  /** Ignored for an access that is not 1, 2, 4 or 8 bytes inside the space. */
  write(offset: number, value: bigint, size: number): void {
    if (!inside(offset, size)) return
    if (size === 8) {
      this.write(offset, value & 0xffffffffn, 4)
      this.write(offset + 4, (value >> 32n) & 0xffffffffn, 4)
      return
    }
    const touched = this.#touched(offset, size)
    const before = touched.map(({ name }) => this.#file.get(name))
    this.#file.write(offset, value, size)
    touched.forEach(({ name, capability, ownName }, i) => {
      if (this.#file.get(name) !== before[i]) this.#changes.call(name)
      if (ownName !== undefined) capability?.written?.(ownName)
    })
  }

  /** The device's own view of a register. @throws RangeError for a name that is not there */
  get(name: string): bigint {
    return this.#file.get(name)
  }

  /** As the device sets it: every bit, no listener. @throws RangeError for an unknown name */
  set(name: string, value: bigint): void {
    this.#file.set(name, value)
  }

  reset(kind: ResetKind): void {
    const kept = kind === 'function' ? this.#registers.filter(({ sticky = 0n }) => sticky) : []
    const values = kept.map(({ name }) => this.#file.get(name))
    const before = this.#registers.map(({ name }) => this.#file.get(name))
    this.#file.reset()
    kept.forEach(({ name, sticky = 0n }, i) => {
      this.#file.set(name, (this.#file.get(name) & ~sticky) | (values[i] & sticky))
    })
    for (const capability of this.#capabilities) capability.reset?.()
    this.#resets.call(kind)
    this.#registers.forEach(({ name }, i) => {
      if (this.#file.get(name) !== before[i]) this.#changes.call(name)
    })
  }

  [shown](depth: number, options: InspectOptions): string {
    const values = this.#registers.map(({ name }) => [name, hex(this.get(name))] as const)
    return summary('ConfigSpace', Object.fromEntries(values), depth, options)
  }

  /** Memory Space Enable: the function answers at its BARs. */
  get memorySpace(): boolean {
    return COMMAND.memorySpace.in(this.get('command')) === 1
  }

  /** Bus Master Enable: the function may read and write memory, and send messages. */
  get busMaster(): boolean {
    return COMMAND.busMaster.in(this.get('command')) === 1
  }

  /** Interrupt Disable: the function may not assert INTx. */
  get interruptDisable(): boolean {
    return COMMAND.interruptDisable.in(this.get('command')) === 1
  }

  /** Where the guest has put a BAR, whether or not it is decoded. @throws RangeError without one */
  barAddress(index: number): bigint {
    return barAddress(this.get(barName(index)))
  }

  /** Called with the register's name after a write of the guest, or a reset, has changed it. */
  onChange(listener: (name: string) => void): Disposable {
    return this.#changes.add(listener)
  }

  /** Called when registers and capabilities have been reset, before the calls of `onChange`. */
  onReset(listener: (kind: ResetKind) => void): Disposable {
    return this.#resets.add(listener)
  }

  /** At most two: an access of four bytes can straddle two registers, aligned or not. */
  #touched(offset: number, size: number): readonly PlacedRegister[] {
    const first = this.#at[offset >> 2]
    const last = this.#at[(offset + size - 1) >> 2]
    if (first === undefined) return last === undefined ? [] : [last]
    return last === undefined || last === first ? [first] : [first, last]
  }
}

const ALL_ONES: Readonly<Record<number, bigint | undefined>> = {
  1: 0xffn,
  2: 0xffffn,
  4: 0xffffffffn,
  8: 0xffffffffffffffffn,
}

function inside(offset: number, size: number): boolean {
  return ALL_ONES[size] !== undefined && offset >= 0 && offset + size <= CONFIG_SPACE_BYTES
}

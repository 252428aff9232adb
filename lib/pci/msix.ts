/**
 * MSI-X: interrupts as memory writes, each vector with an address and data of the guest's choice.
 *
 * The capability is in configuration space; the table of vectors and the pending bits are in the
 * function's memory. What a message does is for the interrupt controller that listens.
 *
 * PCIe 5.0 7.7.2 (capability, table, pending bits) and 6.1.4 (when a message is sent).
 */
import { RegisterFile, layout } from '../bits'
import type { Register } from '../bits'
import type { MmioDevice } from '../iommu/iommu'
import type { Capability, CapabilityRegisters } from './capabilities'
import { register } from './config-register'
import type { ConfigField, ConfigRegister } from './config-register'
import { Listeners } from './listeners'

/** A memory write of four bytes. */
export interface Message {
  readonly address: bigint
  readonly data: number
}

const CAPABILITY_ID = 0x11
const BYTES = 12
const LARGEST_TABLE = 2048
export const MSIX_ENTRY_BYTES = 16

/** Id and next pointer, then Message Control (7.7.2.2). */
const CONTROL_FIELDS = [
  { name: 'tableSize', from: 16, to: 26 },
  { name: 'functionMask', from: 30, to: 30, access: 'writable' },
  { name: 'enable', from: 31, to: 31, access: 'writable' },
] as const satisfies readonly ConfigField[]
const CONTROL = layout(32, CONTROL_FIELDS).field

/** Table Offset/Table BIR and PBA Offset/PBA BIR (7.7.2.3, 7.7.2.4). */
const PLACE = [
  { name: 'bar', from: 0, to: 2 },
  { name: 'offset', from: 3, to: 31 },
] as const satisfies readonly ConfigField[]

/** An entry of the table (7.7.2.5 to 7.7.2.8). */
const ENTRY = [
  { name: 'address', offset: 0, size: 8, writable: 0xfffffffffffffffcn },
  { name: 'data', offset: 8, size: 4, writable: 0xffffffffn },
  { name: 'control', offset: 12, size: 4, writable: 1n, reset: 1n },
] as const satisfies readonly Register[]
const VECTOR_CONTROL = layout(32, [{ name: 'mask', from: 0, to: 0 }]).field

export interface MsixOptions {
  /** Number of vectors, 1 to 2048. */
  readonly vectors: number
  /** Where the guest finds them: a BAR, and offsets in it that are multiples of 8. */
  readonly bar: number
  readonly tableOffset: number
  readonly pendingOffset: number
}

class Vector {
  readonly file = new RegisterFile(ENTRY, MSIX_ENTRY_BYTES)
  /** Built when the guest writes the entry: an interrupt allocates nothing. */
  message: Message = { address: 0n, data: 0 }
  masked = true
  pending = false

  update(): void {
    this.message = { address: this.file.get('address'), data: Number(this.file.get('data')) }
    this.masked = VECTOR_CONTROL.mask.in(this.file.get('control')) === 1
  }

  reset(): void {
    this.file.reset()
    this.pending = false
    this.update()
  }
}

export class Msix implements Capability {
  readonly name = 'msix'
  readonly id = CAPABILITY_ID
  readonly bytes = BYTES
  readonly registers: readonly ConfigRegister[]
  /** The table as the guest sees it, from its own offset 0. Aligned accesses of 4 and 8 bytes. */
  readonly table: MmioDevice
  /** The pending bits, likewise. Read-only. */
  readonly pendingBits: MmioDevice
  readonly #vectors: readonly Vector[]
  readonly #messages = new Listeners<[message: Message, vector: number]>()
  readonly #enables = new Listeners<[enabled: boolean]>()
  #own: CapabilityRegisters | undefined
  #enabled = false
  #functionMask = false
  #held = false

  /** @throws RangeError for vectors, a BAR or offsets that can't be */
  constructor({ vectors, bar, tableOffset, pendingOffset }: MsixOptions) {
    if (!Number.isInteger(vectors) || vectors < 1 || vectors > LARGEST_TABLE) {
      throw new RangeError(`vectors must be from 1 to ${LARGEST_TABLE}: ${vectors}`)
    }
    if (!Number.isInteger(bar) || bar < 0 || bar > 5) {
      throw new RangeError(`bar must be from 0 to 5: ${bar}`)
    }
    this.registers = [
      register('control', 0, CONTROL_FIELDS, { tableSize: vectors - 1 }),
      register('table', 4, PLACE, { bar, offset: eighth(tableOffset) }),
      register('pending', 8, PLACE, { bar, offset: eighth(pendingOffset) }),
    ]
    this.#vectors = Array.from({ length: vectors }, () => new Vector())
    this.table = {
      read: (offset, size) => this.#readTable(offset, size),
      write: (offset, value, size) => {
        this.#writeTable(offset, value, size)
      },
    }
    this.pendingBits = { read: (offset, size) => this.#readPending(offset, size), write: ignore }
  }

  get vectors(): number {
    return this.#vectors.length
  }

  /** MSI-X Enable: interrupts are messages, and INTx is silent. */
  get enabled(): boolean {
    return this.#enabled
  }

  /**
   * An interrupt for a vector: sent, or pending while something masks it.
   * @returns false where MSI-X is off or has no such vector: nothing has been done
   */
  raise(vector: number): boolean {
    if (!this.#enabled) return false
    const entry = this.#vectors.at(vector)
    if (entry === undefined || vector < 0) return false
    entry.pending = true
    this.#deliver(vector)
    return true
  }

  /** Keeps messages pending while the function may not write memory (Bus Master Enable is 0). */
  hold(held: boolean): void {
    this.#held = held
    this.#deliverAll()
  }

  /**
   * The message that an interrupt for a vector is now; undefined where it would be kept pending or
   * lost. For a machine that lets the kernel send it: to be asked again after each access.
   */
  route(vector: number): Message | undefined {
    const entry = vector < this.#vectors.length ? this.#vectors.at(vector) : undefined
    if (entry === undefined || !this.#enabled || this.#functionMask || this.#held) return undefined
    return entry.masked || entry.pending ? undefined : entry.message
  }

  onMessage(listener: (message: Message, vector: number) => void): Disposable {
    return this.#messages.add(listener)
  }

  /** Called when MSI-X Enable has changed. */
  onEnable(listener: (enabled: boolean) => void): Disposable {
    return this.#enables.add(listener)
  }

  attach(registers: CapabilityRegisters): void {
    this.#own = registers
  }

  written(): void {
    this.#compare()
    this.#deliverAll()
  }

  reset(): void {
    for (const vector of this.#vectors) vector.reset()
    this.#compare()
  }

  #compare(): void {
    if (this.#own === undefined) return
    const control = this.#own.get('control')
    const was = this.#enabled
    this.#enabled = CONTROL.enable.in(control) === 1
    this.#functionMask = CONTROL.functionMask.in(control) === 1
    if (this.#enabled !== was) this.#enables.call(this.#enabled)
  }

  #deliverAll(): void {
    for (let i = 0; i < this.#vectors.length; i++) this.#deliver(i)
  }

  /** 6.1.4.5: an interrupt that is pending goes out as one message when nothing masks it. */
  #deliver(vector: number): void {
    const entry = this.#vectors[vector]
    if (!entry.pending || !this.#enabled) return
    if (this.#functionMask || this.#held || entry.masked) return
    entry.pending = false
    this.#messages.call(entry.message, vector)
  }

  #readTable(offset: number, size: number): bigint {
    const entry = this.#vectors.at(offset >> 4)
    if (entry === undefined || !allowed(offset, size)) return 0n
    return entry.file.read(offset & 15, size)
  }

  #writeTable(offset: number, value: bigint, size: number): void {
    const entry = this.#vectors.at(offset >> 4)
    if (entry === undefined || !allowed(offset, size)) return
    entry.file.write(offset & 15, value, size)
    entry.update()
    this.#deliver(offset >> 4)
  }

  #readPending(offset: number, size: number): bigint {
    if (!allowed(offset, size)) return 0n
    const end = Math.min((offset + size) * 8, this.#vectors.length)
    let bits = 0n
    for (let i = offset * 8; i < end; i++) {
      if (this.#vectors[i].pending) bits |= 1n << BigInt(i - offset * 8)
    }
    return bits
  }
}

/**
 * 7.7.2: software accesses the structures in aligned words of 4 or 8 bytes, nothing else counts.
 */
function allowed(offset: number, size: number): boolean {
  return (size === 4 || size === 8) && offset >= 0 && offset % size === 0
}

function eighth(offset: number): number {
  if (Number.isInteger(offset) && offset >= 0 && offset % 8 === 0 && offset < 2 ** 32) {
    return offset / 8
  }
  throw new RangeError(`an offset of MSI-X structures is a multiple of 8: ${offset}`)
}

function ignore(): void {
  // Software never writes the pending bits.
}

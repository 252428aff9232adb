/**
 * An event of the unit that reaches the guest as a message: the fault event and the invalidation
 * completion event have the same four registers (VT-d 5.10, 7.3 and 6.5.2.10).
 */
import type { RegisterFile } from '../../bits'
import { EVENT_CONTROL } from './registers'
import type { RegisterName } from './registers'

/** A message-signalled interrupt: a 32-bit store to an address. */
export interface Interrupt {
  readonly address: bigint
  readonly data: number
}

export interface EventRegisters {
  readonly control: RegisterName
  readonly data: RegisterName
  readonly address: RegisterName
  readonly upperAddress: RegisterName
}

export const FAULT_EVENT: EventRegisters = {
  control: 'FECTL',
  data: 'FEDATA',
  address: 'FEADDR',
  upperAddress: 'FEUADDR',
}

export const INVALIDATION_EVENT: EventRegisters = {
  control: 'IECTL',
  data: 'IEDATA',
  address: 'IEADDR',
  upperAddress: 'IEUADDR',
}

const PENDING = EVENT_CONTROL.field.IP.mask()
const MASKED = EVENT_CONTROL.field.IM.mask()

export class EventMessage {
  readonly #registers: RegisterFile<RegisterName>
  readonly #names: EventRegisters
  readonly #send: (interrupt: Interrupt) => void

  constructor(
    registers: RegisterFile<RegisterName>,
    names: EventRegisters,
    send: (interrupt: Interrupt) => void,
  ) {
    this.#registers = registers
    this.#names = names
    this.#send = send
  }

  /** The event happened: a message, or IP alone while IM masks it. */
  raise(): void {
    this.#control |= PENDING
    this.deliver()
  }

  /** To be called after software wrote the control register: sends what was held back. */
  deliver(): void {
    const control = this.#control
    if ((control & PENDING) === 0 || (control & MASKED) !== 0) return
    this.clear()
    const { data, address, upperAddress } = this.#names
    this.#send({
      address: (this.#registers.get(upperAddress) << 32n) | this.#registers.get(address),
      data: this.#registers.word(data),
    })
  }

  /** Software serviced the cause: nothing is pending any more. */
  clear(): void {
    this.#control &= ~PENDING
  }

  get #control(): number {
    return this.#registers.word(this.#names.control)
  }

  set #control(value: number) {
    this.#registers.setWord(this.#names.control, value)
  }
}

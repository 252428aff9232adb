/**
 * Where refused requests are recorded for the guest: the fault recording registers, FSTS and the
 * fault event (VT-d 5.10, 7.2 and 7.3).
 *
 * A guest that never reads its records costs nothing: what is not recorded is dropped here.
 */
import type { RegisterFile } from '../../bits'
import type { Capabilities } from './capabilities'
import { EventMessage, FAULT_EVENT } from './event-message'
import type { Interrupt } from './event-message'
import { FRCD, FSTS } from './registers'
import type { FaultRecordName, RegisterName } from './registers'

const { PFO, PPF, IQE, ICE, ITE, FRI } = FSTS.field
const IQE_BIT = IQE.mask()
const CAUSES = [PFO, PPF, IQE, ICE, ITE].reduce((mask, field) => mask | field.mask(), 0)
/** The F bit and the source id, as words of the upper register. */
const FAULT_BIT = FRCD.field.F.mask(3)
const SOURCE = FRCD.field.SID.mask(2)
/** AT of a request by a device TLB (11.4.7.6): 0 untranslated, 1 a translation request. */
const TRANSLATION_REQUEST = 1
/** QEMU's "no PASID", cut to 16 bits; PV means nothing while PP is clear. */
const QEMU_NO_PASID = 0xffff

export interface FaultedRequest {
  readonly source: number
  readonly page: number
  /** A code of `faults.ts` below 0x100. */
  readonly code: number
  readonly write: boolean
  readonly ats: boolean
  /** Whether the request came as far as the paging tables. */
  readonly reachedTables: boolean
}

export class FaultLog {
  readonly #registers: RegisterFile<RegisterName>
  readonly #words: Uint32Array
  readonly #fsts: number
  readonly #event: EventMessage
  /** The names of the recording registers, lower and upper halves. */
  readonly #low: readonly FaultRecordName[]
  readonly #high: readonly FaultRecordName[]
  readonly #qemu: boolean
  /** AT is there only with device TLBs (11.4.7.6), and not in QEMU. */
  readonly #deviceTlb: boolean
  #next = 0

  constructor(
    registers: RegisterFile<RegisterName>,
    has: Capabilities,
    send: (interrupt: Interrupt) => void,
  ) {
    this.#registers = registers
    this.#words = registers.words
    this.#fsts = registers.index('FSTS')
    this.#event = new EventMessage(registers, FAULT_EVENT, send)
    const indices = Array.from({ length: has.faultRecords }, (_, i) => i)
    this.#low = indices.map((i) => `FRCD${i}_LOW` as const)
    this.#high = indices.map((i) => `FRCD${i}_HIGH` as const)
    this.#qemu = has.qemu
    this.#deviceTlb = has.deviceTlb && !has.qemu
  }

  /** @returns whether it was recorded: not while overflowing, and once per source (7.2.1) */
  record(fault: FaultedRequest): boolean {
    if ((this.#status & PFO.mask()) !== 0 || this.#holds(fault.source)) return false
    const at = this.#next
    const before = this.#status
    if (this.#pending(this.#high[at])) {
      this.#status = before | PFO.mask()
      this.#raise(before)
      return false
    }
    const record = new Uint32Array(FRCD.words)
    FRCD.field.FI.write(record, fault.page)
    FRCD.field.SID.write(record, fault.source)
    FRCD.field.FR.write(record, fault.code)
    FRCD.field.T.write(record, fault.write ? 0 : 1)
    if (fault.ats && this.#deviceTlb) FRCD.field.AT.write(record, TRANSLATION_REQUEST)
    if (fault.reachedTables && this.#qemu) FRCD.field.PV.write(record, QEMU_NO_PASID)
    FRCD.field.F.write(record, 1)
    this.#store(at, record)
    this.#next = (at + 1) % this.#high.length
    if ((before & PPF.mask()) === 0) {
      this.#status = (before & ~FRI.mask()) | PPF.mask() | (at << FRI.from)
      this.#raise(before)
    }
    return true
  }

  /** An error of the invalidation queue has the same status register and event (7.3). */
  queueError(): void {
    const before = this.#status
    this.#status = before | IQE_BIT
    this.#raise(before)
  }

  get queueErrorPending(): boolean {
    return (this.#words[this.#fsts] & IQE_BIT) !== 0
  }

  /** After software wrote FSTS: the event is serviced when no cause is left (11.4.7.2). */
  statusWritten(): void {
    if ((this.#status & CAUSES) === 0) this.#event.clear()
  }

  /** After software wrote FECTL. */
  controlWritten(): void {
    this.#event.deliver()
  }

  /** After software wrote a fault recording register: PPF is the or of all F bits. */
  recordWritten(): void {
    if (!this.#high.some((name) => this.#pending(name))) this.#status &= ~PPF.mask()
    if (!this.#qemu && (this.#status & CAUSES) === 0) this.#event.clear()
  }

  /** The next record goes to the first register again. */
  restart(): void {
    this.#next = 0
  }

  /** An event is raised by the first cause only: later ones find it pending (7.3). */
  #raise(before: number): void {
    if ((before & CAUSES) === 0) this.#event.raise()
  }

  /** Whether a fault of the source is recorded that software has not cleared. */
  #holds(source: number): boolean {
    for (const name of this.#high) {
      if (this.#pending(name) && (this.#registers.word(name) & SOURCE) === source) return true
    }
    return false
  }

  #pending(name: FaultRecordName): boolean {
    return (this.#registers.word(name, 1) & FAULT_BIT) !== 0
  }

  #store(index: number, record: Uint32Array): void {
    this.#registers.setWord(this.#low[index], record[0])
    this.#registers.setWord(this.#low[index], record[1], 1)
    this.#registers.setWord(this.#high[index], record[2])
    this.#registers.setWord(this.#high[index], record[3], 1)
  }

  get #status(): number {
    return this.#words[this.#fsts]
  }

  set #status(value: number) {
    this.#words[this.#fsts] = value
  }
}

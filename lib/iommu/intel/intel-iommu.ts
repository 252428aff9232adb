/**
 * An Intel VT-d remapping unit: its registers on one side, address spaces on the other.
 *
 * This file is the wiring: which register write sets off what, in which order. Everything a guest
 * writes is done when `write()` returns, so that its polling loops end at the first look.
 */
import { EventEmitter } from 'node:events'
import type { InspectOptions } from 'node:util'
import { accessOf, iovaOfPage } from '../../address'
import type { AccessBits, Iova } from '../../address'
import { RegisterFile } from '../../bits'
import type { Register } from '../../bits'
import { hex, shown, summary } from '../../inspect'
import type { AddressSpace, FaultReason } from '../../memory/address-space'
import { requesterName, sourceId } from '../iommu'
import type { Iommu, MmioDevice, Requester, WalkStep } from '../iommu'
import type { TableMemory } from '../table-memory'
import type { IntelAddressSpace } from './address-space'
import { AddressSpaces } from './address-spaces'
import { capabilities } from './capabilities'
import type { Capabilities, IntelIommuOptions } from './capabilities'
import type { Interrupt } from './event-message'
import { FaultLog } from './fault-log'
import { explainRequest } from './explain'
import { CODE, faultReason, isQualified, isRecorded } from './faults'
import { InvalidationQueue } from './invalidation-queue'
import { GCMD, IQA, REGISTER_WINDOW_BYTES, RTADDR, registerTable } from './registers'
import type { RegisterName } from './registers'
import { RegisterInvalidation } from './register-invalidation'
import { TABLE_MODE, Translator, UNSUPPORTED_MODE } from './translator'

/** A fault as it went into a recording register. */
export interface RecordedFault {
  readonly requester: string
  readonly iova: Iova
  readonly reason: FaultReason
  readonly wanted: 'read' | 'write'
}

export interface IntelIommuEvents {
  interrupt: [Interrupt]
  fault: [RecordedFault]
}

/** `byte` of the register holds the bit that starts the command: a write without it only stores. */
interface Effect {
  readonly byte?: number
  readonly run: () => void
}

const { TE, SRTP, QIE, SIRTP } = GCMD.field
const IQA_AT = 0x90
const QEMU_LEAST_SIZE = 4

export class IntelIommu extends EventEmitter<IntelIommuEvents> implements Iommu, MmioDevice {
  /** Bytes of the register window. */
  readonly registerBytes = REGISTER_WINDOW_BYTES
  /** What the unit can do, with the CAP and ECAP that say so. */
  readonly capabilities: Capabilities

  readonly #registers: RegisterFile<RegisterName>
  readonly #translator: Translator
  readonly #spaces: AddressSpaces
  readonly #faults: FaultLog
  readonly #queue: InvalidationQueue
  readonly #registerInvalidation: RegisterInvalidation
  readonly #memory: TableMemory
  readonly #effects: ReadonlyMap<RegisterName, Effect>

  /** @throws RangeError for options out of range, or that exclude each other */
  constructor(memory: TableMemory, options: IntelIommuOptions = {}) {
    super()
    const has = capabilities(options)
    const send = (interrupt: Interrupt): void => void this.emit('interrupt', interrupt)
    this.capabilities = has
    this.#registers = new RegisterFile(registerTable(has), REGISTER_WINDOW_BYTES)
    this.#translator = new Translator(memory, has)
    this.#spaces = new AddressSpaces(this.#translator, has, (space, page, code, wanted) => {
      this.#report(space, page, code, wanted)
    })
    this.#faults = new FaultLog(this.#registers, has, send)
    this.#queue = new InvalidationQueue(
      memory,
      has,
      this.#registers,
      this.#faults,
      this.#spaces,
      () => this.#translator.mode,
      send,
    )
    this.#registerInvalidation = new RegisterInvalidation(
      this.#registers,
      has,
      this.#spaces,
      () => this.#queue.enabled,
      () => this.#translator.mode,
    )
    this.#memory = memory
    this.#effects = this.#wire()
  }

  addressSpace(requester: Requester): AddressSpace {
    return this.#spaces.of(sourceId(requester))
  }

  /**
   * The guest switched ATS in the device's configuration space (PCIe 10.5.1.3, Enable). Off at
   * first. A change takes back everything that the device was given.
   */
  setAts(requester: Requester, enabled: boolean): void {
    const space = this.#spaces.of(sourceId(requester))
    if (space.ats === enabled) return
    space.ats = enabled
    if (!this.capabilities.qemu) space.invalidateAll('disabled')
  }

  explain(requester: Requester, at: Iova): readonly WalkStep[] {
    const source = sourceId(requester)
    const { enabled, rootPage, mode } = this.#translator
    const ats = this.#spaces.hasAts(source)
    return explainRequest(
      this.#memory,
      this.capabilities,
      { enabled, rootPage, mode },
      source,
      ats,
      at,
    )
  }

  /** Registers at their reset values, queue and translation off, every notifier told. */
  reset(): void {
    this.#registers.reset()
    this.#queue.reset()
    this.#faults.restart()
    this.#translator.enabled = false
    this.#translator.rootPage = 0
    this.#translator.mode = TABLE_MODE.legacy
    this.#spaces.everything('disabled')
  }

  /** @param size 1, 2, 4 or 8 bytes, at any offset; what is not a register reads as 0 */
  read(offset: number, size: number): bigint {
    if (this.capabilities.qemu) return this.#readAsQemu(offset, size)
    return this.#registers.read(offset, size)
  }

  /**
   * @param size 1, 2, 4 or 8 bytes, at any offset
   * @throws only what a notifier or listener throws: nothing that a guest writes is an error
   */
  write(offset: number, value: bigint, size: number): void {
    if (this.capabilities.qemu && size < QEMU_LEAST_SIZE) return
    this.#written(offset, size, this.#registers.write(offset, value, size))
  }

  /** As `read` of 4 bytes at a multiple of 4, in numbers. */
  readWord(offset: number): number {
    return this.capabilities.qemu ? Number(this.read(offset, 4)) : this.#registers.readWord(offset)
  }

  /**
   * Whether the registers are such that memory could stand for them, as long as software does no more
   * than to submit invalidations: translation and queue are on, and there is no bit that writing a one
   * would clear. Never so for the quirks of QEMU.
   */
  get steady(): boolean {
    const on = TE.mask() | QIE.mask()
    return (this.#status & on) === on && !this.#registers.pending && !this.capabilities.qemu
  }

  /** Offsets of the 32-bit words in which software can change something. */
  get writableWords(): readonly number[] {
    return this.#registers.writableWords()
  }

  writeWord(offset: number, value: number): void {
    this.#written(offset, 4, this.#registers.writeWord(offset, value))
  }

  #written(offset: number, size: number, registers: readonly Register<RegisterName>[]): void {
    for (const register of registers) {
      const effect = this.#effects.get(register.name)
      if (effect === undefined) continue
      const at = register.offset + (effect.byte ?? 0)
      if (effect.byte === undefined || (offset <= at && at < offset + size)) effect.run()
    }
  }

  /** QEMU 7.2: no small accesses, and IQA reads as the queue that runs, not as it was written. */
  #readAsQemu(offset: number, size: number): bigint {
    if (size < QEMU_LEAST_SIZE) return 0n
    if (offset < IQA_AT || offset >= IQA_AT + 8) return this.#registers.read(offset, size)
    const written = this.#registers.get('IQA')
    const value = BigInt(this.#queue.base) | (written & IQA.field.QS.bits)
    return BigInt.asUintN(8 * size, value >> BigInt(8 * (offset - IQA_AT)))
  }

  /** What a write to a register sets off. */
  #wire(): ReadonlyMap<RegisterName, Effect> {
    const faults = this.#faults
    const queue = this.#queue
    const byRegister = this.#registerInvalidation
    const command = (): void => {
      this.#command(this.#registers.word('GCMD'))
    }
    // A queue that stopped goes on once its error is cleared (6.5.2); in QEMU, with the next tail.
    const faultStatus = (): void => {
      faults.statusWritten()
      if (!this.capabilities.qemu) queue.tailWritten()
    }
    const effects = new Map<RegisterName, Effect>([
      ['GCMD', { byte: 3, run: command }],
      ['FSTS', { run: faultStatus }],
      ['FECTL', { run: faults.controlWritten.bind(faults) }],
      ['CCMD', { byte: 7, run: byRegister.contextCommand.bind(byRegister) }],
      ['IOTLB', { byte: 7, run: byRegister.iotlbCommand.bind(byRegister) }],
      ['IQT', { run: queue.tailWritten.bind(queue) }],
      ['ICS', { run: queue.statusWritten.bind(queue) }],
      ['IECTL', { run: queue.controlWritten.bind(queue) }],
    ])
    for (let i = 0; i < this.capabilities.faultRecords; i++) {
      effects.set(`FRCD${i}_HIGH`, { run: faults.recordWritten.bind(faults) })
    }
    return effects
  }

  /** One write may carry several commands. ECAP.IR is 0: only QEMU answers SIRTP all the same. */
  #command(command: number): void {
    const changed = (command ^ this.#status) >>> 0
    if ((changed & TE.mask()) !== 0) this.#switchTranslation((command & TE.mask()) !== 0)
    if ((command & SRTP.mask()) !== 0) this.#setRootTable()
    if ((changed & QIE.mask()) !== 0) this.#switchQueue((command & QIE.mask()) !== 0)
    const { qemu } = this.capabilities
    if (qemu && (command & SIRTP.mask()) !== 0) this.#setStatus(SIRTP.mask(), true)
  }

  #switchTranslation(on: boolean): void {
    this.#translator.enabled = on
    if (!on) this.#faults.restart()
    this.#setStatus(TE.mask(), on)
    this.#spaces.everything('disabled')
  }

  #setRootTable(): void {
    const { qemu, addressWidth } = this.capabilities
    const rtaddr = this.#registers.get('RTADDR')
    const page = RTADDR.field.RTA.in(rtaddr)
    this.#translator.rootPage = qemu ? page % 2 ** (addressWidth - 12) : page
    this.#translator.mode = this.#tableMode(RTADDR.field.TTM.in(rtaddr))
    this.#setStatus(SRTP.mask(), true)
    this.#spaces.everything('context')
  }

  [shown](depth: number, options: InspectOptions): string {
    const fields = {
      translation: (this.#status & TE.mask()) !== 0 ? 'on' : 'off',
      queue: (this.#status & QIE.mask()) !== 0 ? 'on' : 'off',
      rootTable: hex(this.#registers.get('RTADDR')),
    }
    return summary('IntelIommu', fields, depth, options)
  }

  /** QEMU looks at one bit, and only where scalable mode is on. */
  #tableMode(mode: number): number {
    if (this.capabilities.qemu) return this.capabilities.scalable ? mode & 1 : TABLE_MODE.legacy
    return mode === TABLE_MODE.scalable && !this.capabilities.scalable ? UNSUPPORTED_MODE : mode
  }

  #switchQueue(on: boolean): void {
    if (on) {
      this.#setStatus(QIE.mask(), true)
      this.#queue.enable()
    } else if (this.#queue.disable()) {
      this.#setStatus(QIE.mask(), false)
    }
  }

  get #status(): number {
    return this.#registers.word('GSTS')
  }

  #setStatus(bits: number, on: boolean): void {
    const status = this.#status
    this.#registers.setWord('GSTS', on ? status | bits : status & ~bits)
  }

  #report(space: IntelAddressSpace, page: number, code: number, wanted: AccessBits): void {
    if (wanted === 0 || !isRecorded(code)) return
    const { faultDisabled, reachedTables } = this.#translator
    if (faultDisabled && isQualified(code, this.capabilities.qemu)) return
    const write = isWrite(code, wanted)
    const { source, ats } = space
    if (!this.#faults.record({ source, page, code, write, ats, reachedTables })) return
    if (this.listenerCount('fault') === 0) return
    this.emit('fault', {
      requester: requesterName(source),
      iova: iovaOfPage(page),
      reason: faultReason(code),
      wanted: write ? 'write' : 'read',
    })
  }
}

/** A request for both is recorded as what was refused; a write where that does not say. */
function isWrite(code: number, wanted: AccessBits): boolean {
  if (code === CODE['read-denied'] || code === CODE['sm-read-denied']) return false
  return accessOf(wanted).endsWith('write')
}

/**
 * The invalidation queue (VT-d 5.10, 6.5.2): runs inside the write of IQT that moves its tail.
 *
 * Every effect is synchronous, so that a wait descriptor completes, and IQH moves past it, only
 * after every notifier has returned. One write runs at most one queue full of descriptors (32768).
 */
import type { Layout, RegisterFile } from '../../bits'
import { readWords, storeWord } from '../table-memory'
import type { TableMemory } from '../table-memory'
import type { AddressSpaces } from './address-spaces'
import { MAX_ADDRESS_MASK } from './capabilities'
import type { Capabilities } from './capabilities'
import * as D from './descriptors'
import { deviceTlbRange } from './device-tlb'
import { EventMessage, INVALIDATION_EVENT } from './event-message'
import type { Interrupt } from './event-message'
import type { FaultLog } from './fault-log'
import { ICS, IQA, IQERCD, IQT } from './registers'
import type { RegisterName } from './registers'
import { TABLE_MODE } from './translator'

/** IQERCD.IQEI (11.4.9.9): why the queue stopped. 0 is success here. */
const ERROR = {
  none: 0,
  tail: 1,
  fetch: 2,
  type: 3,
  reserved: 4,
  width: 5,
  alignment: 6,
  tableMode: 7,
} as const
type QueueError = (typeof ERROR)[keyof typeof ERROR]

interface Kind {
  readonly structure: Layout<string>
  /** In scalable mode only, with 256-bit descriptors. */
  readonly scalable?: boolean
  /** With ECAP.DT only. */
  readonly deviceTlb?: boolean
  readonly run: () => QueueError
}

export class InvalidationQueue {
  readonly #memory: TableMemory
  readonly #has: Capabilities
  readonly #registers: RegisterFile<RegisterName>
  /** The registers that each descriptor needs: their words, and where these are. */
  readonly #words: Uint32Array
  readonly #iqt: number
  readonly #iqh: number
  readonly #faults: FaultLog
  readonly #spaces: AddressSpaces
  readonly #tableMode: () => number
  readonly #event: EventMessage
  readonly #kinds: ReadonlyMap<number, Kind>
  readonly #range = { firstPage: 0, lastPage: 0 }

  #enabled = false
  #running = false
  /** IQA.DW when the queue was switched on, also where there are no such descriptors. */
  #wideAsked = false
  #base = 0
  #entries = 0
  #wide = false
  #head = 0
  #descriptor = new Uint32Array(4)
  #lastType = 0
  /** Rises when the queue is switched or reset, which a notifier may do in the middle of a run. */
  #epoch = 0

  constructor(
    memory: TableMemory,
    has: Capabilities,
    registers: RegisterFile<RegisterName>,
    faults: FaultLog,
    spaces: AddressSpaces,
    tableMode: () => number,
    send: (interrupt: Interrupt) => void,
  ) {
    this.#memory = memory
    this.#has = has
    this.#registers = registers
    this.#words = registers.words
    this.#iqt = registers.index('IQT')
    this.#iqh = registers.index('IQH')
    this.#faults = faults
    this.#spaces = spaces
    this.#tableMode = tableMode
    this.#event = new EventMessage(registers, INVALIDATION_EVENT, send)
    this.#kinds = new Map(has.qemu ? this.#qemuKinds() : this.#allKinds())
  }

  #allKinds(): readonly (readonly [number, Kind])[] {
    return [
      [D.TYPE.context, { structure: D.CONTEXT_DESCRIPTOR, run: () => this.#context() }],
      [D.TYPE.iotlb, { structure: D.IOTLB_DESCRIPTOR, run: () => this.#iotlb() }],
      [
        D.TYPE.deviceTlb,
        { structure: D.DEVICE_TLB_DESCRIPTOR, deviceTlb: true, run: () => this.#deviceTlb() },
      ],
      [D.TYPE.interruptEntry, { structure: D.INTERRUPT_ENTRY_DESCRIPTOR, run: nothing }],
      [D.TYPE.wait, { structure: D.WAIT_DESCRIPTOR, run: () => this.#wait() }],
      ...(this.#has.scalable ? this.#scalableKinds() : []),
    ]
  }

  #scalableKinds(): readonly (readonly [number, Kind])[] {
    return [
      [
        D.TYPE.pasidIotlb,
        { structure: D.PASID_IOTLB_DESCRIPTOR, scalable: true, run: () => this.#pasidIotlb() },
      ],
      [
        D.TYPE.pasidCache,
        { structure: D.PASID_CACHE_DESCRIPTOR, scalable: true, run: () => this.#pasidCache() },
      ],
      [
        D.TYPE.pasidDeviceTlb,
        {
          structure: D.PASID_DEVICE_TLB_DESCRIPTOR,
          scalable: true,
          deviceTlb: true,
          run: () => this.#pasidDeviceTlb(),
        },
      ],
    ]
  }

  /** QEMU 7.2 takes three types without looking at them, and does not know the last one. */
  #qemuKinds(): readonly (readonly [number, Kind])[] {
    const unchecked: Kind = { structure: D.UNCHECKED_DESCRIPTOR, run: nothing }
    return [
      ...this.#allKinds().filter(([type]) => type <= D.TYPE.wait),
      [D.TYPE.interruptEntry, unchecked],
      [D.TYPE.pasidIotlb, unchecked],
      [D.TYPE.pasidCache, unchecked],
    ]
  }

  get enabled(): boolean {
    return this.#enabled
  }

  /** Guest-physical address of the queue that was last switched on. */
  get base(): number {
    return this.#base
  }

  /** GCMD.QIE from 0 to 1: a tail that is already set is run at once. */
  enable(): void {
    const { qemu, addressWidth } = this.#has
    const iqa = this.#registers.get('IQA')
    this.#wideAsked = IQA.field.DW.in(iqa) === 1
    this.#wide = this.#has.scalable && this.#wideAsked
    const page = IQA.field.ADDR.in(iqa)
    this.#base = (qemu ? page % 2 ** (addressWidth - 12) : page) * 4096
    this.#entries = 2 ** (IQA.field.QS.in(iqa) + (this.#wide ? 7 : 8))
    this.#descriptor = new Uint32Array(this.#wide ? 8 : 4)
    this.#moveHead(0)
    this.#epoch++
    this.#enabled = true
    this.tailWritten()
  }

  /** GCMD.QIE from 1 to 0. @returns false, and stays on, while there is work that was not done */
  disable(): boolean {
    if (this.#head !== this.#tail) return false
    if (this.#has.qemu && this.#lastType !== D.TYPE.wait) return false
    this.#enabled = false
    this.#epoch++
    this.#moveHead(0)
    return true
  }

  reset(): void {
    this.#enabled = false
    this.#epoch++
    this.#base = 0
    this.#head = 0
    this.#lastType = 0
  }

  /** After software wrote IQT. A write from inside a notifier is picked up by the run around it. */
  tailWritten(): void {
    if (!this.#enabled || this.#running) return
    this.#running = true
    try {
      this.#run()
    } finally {
      this.#running = false
    }
  }

  /** After software wrote ICS: clearing IWC takes back what is pending (11.4.9.4). */
  statusWritten(): void {
    if ((this.#registers.word('ICS') & ICS.field.IWC.mask()) === 0) this.#event.clear()
  }

  /** After software wrote IECTL. */
  controlWritten(): void {
    this.#event.deliver()
  }

  #run(): void {
    while (this.#enabled && !this.#faults.queueErrorPending) {
      const tail = this.#tail
      const error = this.#checkTail(tail) || this.#checkMode(tail)
      if (error !== ERROR.none) {
        this.#stop(error)
        return
      }
      if (this.#head === tail) return
      const epoch = this.#epoch
      const failed = this.#execute()
      if (epoch !== this.#epoch) continue
      if (failed !== ERROR.none) {
        this.#stop(failed)
        return
      }
      this.#moveHead((this.#head + 1) % this.#entries)
    }
  }

  get #tail(): number {
    const units = IQT.field.QT.read(this.#words, this.#iqt)
    return this.#wide ? Math.floor(units / 2) : units
  }

  #checkTail(tail: number): QueueError {
    const odd = this.#wide && IQT.field.QT.read(this.#words, this.#iqt) % 2 === 1
    if (odd) return ERROR.alignment
    return tail < this.#entries ? ERROR.none : ERROR.tail
  }

  /** Which widths of descriptors go with which tables (11.4.9.9, IQEI); QEMU takes all. */
  #checkMode(tail: number): QueueError {
    if (this.#has.qemu || this.#head === tail) return ERROR.none
    const wanted = this.#wideAsked
    switch (this.#tableMode()) {
      case TABLE_MODE.legacy:
        return wanted && !this.#has.scalable ? ERROR.width : ERROR.none
      case TABLE_MODE.scalable:
        return wanted ? ERROR.none : ERROR.width
      default:
        return ERROR.tableMode
    }
  }

  /** IQH stays at the descriptor that failed, until software corrects it and clears IQE. */
  #stop(error: QueueError): void {
    if (!this.#has.qemu) this.#registers.set('IQERCD', IQERCD.field.IQEI.of(error))
    this.#faults.queueError()
  }

  #moveHead(head: number): void {
    this.#head = head
    IQT.field.QT.write(this.#words, this.#wide ? head * 2 : head, this.#iqh)
  }

  /** The descriptor at the head: copied, checked, then done. */
  #execute(): QueueError {
    const descriptor = this.#descriptor
    const at = this.#base + this.#head * descriptor.length * 4
    this.#lastType = 0
    if (!readWords(this.#memory, at, descriptor)) return ERROR.fetch
    const { TYPE, TYPE_HIGH } = D.ANY_DESCRIPTOR.field
    const extension = TYPE_HIGH.read(descriptor) * 16
    const type = TYPE.read(descriptor) + (this.#has.qemu ? 0 : extension)
    this.#lastType = type
    const kind = this.#kinds.get(type)
    if (kind === undefined || !this.#isValid(kind)) return ERROR.type
    if (D.hasReservedBits(descriptor, kind.structure)) return ERROR.reserved
    if (this.#has.qemu && extension !== 0 && kind.run !== nothing) return ERROR.reserved
    return kind.run()
  }

  /** Types by table mode (6.5.2.11, table 26) and by ECAP.DT (6.5.2.5); QEMU takes all. */
  #isValid(kind: Kind): boolean {
    if (this.#has.qemu) return true
    if (kind.deviceTlb === true && !this.#has.deviceTlb) return false
    return kind.scalable !== true || this.#tableMode() === TABLE_MODE.scalable
  }

  #context(): QueueError {
    const { G, DID, SID, FM } = D.CONTEXT_DESCRIPTOR.field
    const d = this.#descriptor
    switch (G.read(d)) {
      case D.GRANULARITY.global:
        this.#spaces.everything('context')
        return ERROR.none
      case D.GRANULARITY.domain:
        this.#spaces.contextDomain(DID.read(d))
        return ERROR.none
      case D.GRANULARITY.selective:
        this.#spaces.contextDevice(SID.read(d), D.FUNCTION_MASK[FM.read(d)])
        return ERROR.none
      default:
        return ERROR.reserved
    }
  }

  #iotlb(): QueueError {
    const { G, DID, AM, ADDR } = D.IOTLB_DESCRIPTOR.field
    const d = this.#descriptor
    switch (G.read(d)) {
      case D.GRANULARITY.global:
        this.#spaces.iotlbEverything()
        return ERROR.none
      case D.GRANULARITY.domain:
        this.#spaces.iotlbDomain(DID.read(d))
        return ERROR.none
      case D.GRANULARITY.selective: {
        if (AM.read(d) > MAX_ADDRESS_MASK) return ERROR.reserved
        this.#spaces.iotlbPages(DID.read(d), ADDR.read(d), AM.read(d))
        return ERROR.none
      }
      default:
        return ERROR.reserved
    }
  }

  #deviceTlb(): QueueError {
    const { SID, S, ADDR } = D.DEVICE_TLB_DESCRIPTOR.field
    const d = this.#descriptor
    const range = this.#range
    deviceTlbRange(ADDR.read(d), S.read(d) === 1, range)
    this.#spaces.deviceTlb(SID.read(d), range.firstPage, range.lastPage)
    return ERROR.none
  }

  #pasidIotlb(): QueueError {
    const { G, DID, PASID, AM, ADDR } = D.PASID_IOTLB_DESCRIPTOR.field
    const d = this.#descriptor
    switch (G.read(d)) {
      case D.PASID_IOTLB_GRANULARITY.pasid:
        this.#spaces.pasidIotlb(DID.read(d), PASID.read(d))
        return ERROR.none
      case D.PASID_IOTLB_GRANULARITY.pages:
        this.#spaces.pasidIotlbPages(DID.read(d), PASID.read(d), ADDR.read(d), AM.read(d))
        return ERROR.none
      default:
        return ERROR.reserved
    }
  }

  #pasidCache(): QueueError {
    const { G, DID, PASID } = D.PASID_CACHE_DESCRIPTOR.field
    const d = this.#descriptor
    switch (G.read(d)) {
      case D.PASID_CACHE_GRANULARITY.domain:
        this.#spaces.pasidCache(DID.read(d), undefined)
        return ERROR.none
      case D.PASID_CACHE_GRANULARITY.pasid:
        this.#spaces.pasidCache(DID.read(d), PASID.read(d))
        return ERROR.none
      case D.PASID_CACHE_GRANULARITY.global:
        this.#spaces.everything('context')
        return ERROR.none
      default:
        return ERROR.reserved
    }
  }

  #pasidDeviceTlb(): QueueError {
    const { SID, PASID, G, S, ADDR } = D.PASID_DEVICE_TLB_DESCRIPTOR.field
    const d = this.#descriptor
    const range = this.#range
    deviceTlbRange(ADDR.read(d), S.read(d) === 1, range)
    const pasid = G.read(d) === 1 ? undefined : PASID.read(d)
    this.#spaces.deviceTlb(SID.read(d), range.firstPage, range.lastPage, pasid)
    return ERROR.none
  }

  /** The status is written, and the interrupt sent, after everything before it (6.5.2.9). */
  #wait(): QueueError {
    const { IF, SW, DATA, ADDR } = D.WAIT_DESCRIPTOR.field
    const d = this.#descriptor
    if (this.#has.qemu && IF.read(d) + SW.read(d) === 0) return ERROR.reserved
    if (SW.read(d) === 1 && !storeWord(this.#memory, ADDR.read(d) * 4, DATA.read(d))) {
      return ERROR.fetch
    }
    if (IF.read(d) === 1) this.#complete()
    return ERROR.none
  }

  #complete(): void {
    if ((this.#registers.word('ICS') & ICS.field.IWC.mask()) !== 0) return
    this.#registers.setWord('ICS', ICS.field.IWC.mask())
    this.#event.raise()
  }
}

/** For descriptors about what is not here: interrupt entries are not cached. */
function nothing(): QueueError {
  return ERROR.none
}

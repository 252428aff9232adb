/**
 * One VT-d unit as its driver holds it: switched on in the order of Linux, root and context
 * tables of legacy mode, domain ids, the invalidation queue, the fault records.
 *
 * All devices of a guest behind one unit share one of these (`IntelIommuUnit.of`). What is mapped
 * for a device is in `intel-iommu-driver.ts`.
 */
import { PAGE_SIZE } from '../address'
import type { GuestMemory } from '../memory/guest-memory'
import { InvalidState } from '../errors'
import type { MmioDevice } from '../iommu/iommu'
import {
  CAP,
  COMMAND,
  CONTEXT_ENTRY,
  ECAP,
  FAULT_RECORD,
  FSTS,
  REGISTER,
  ROOT_ENTRY,
  TRANSLATION_TYPE,
} from './intel-formats'
import type { PageAllocator } from './page-allocator'
import { QueueSubmitter, fill } from './queue-submitter'
import type { LeafLevel, Levels } from './table-builder'

/** Whose order of register writes and submissions is followed. */
export type DriverOrder = '6.12' | '6.1'

/** What the unit can do, as the driver uses it. */
export interface UnitCapabilities {
  readonly levels: Levels
  /** Last page of the guest address width (CAP.MGAW). */
  readonly lastPage: number
  readonly largestLeaf: LeafLevel
  /** CAP.MAMV, or -1 without page-selective invalidation. */
  readonly maxOrder: number
  readonly deviceTlb: boolean
  readonly passThrough: boolean
  /** CAP.CM: what becomes present is invalidated too. */
  readonly cachingMode: boolean
}

export interface ContextEntry {
  readonly type: keyof typeof TRANSLATION_TYPE
  readonly domain: number
  readonly levels: Levels
  /** gpa page of the top table; 0 for pass-through. */
  readonly tablePage: number
}

/** A fault that the unit recorded (VT-d 4.1, 7.2.1). */
export interface UnitFault {
  readonly source: number
  readonly page: number
  /** Reason code of table 22. */
  readonly reason: number
  readonly access: 'read' | 'write'
}

/**
 * An MSI to the first processor; whoever listens to the unit's interrupts decides what it means.
 */
const FAULT_MESSAGE = { data: 0x21n, address: 0xfee00000n } as const
const CONTEXTS_PER_BUS = 256
const WORDS_PER_ENTRY = 4
/** Units with caching mode keep domain 0 for what is not present: Linux never uses it. */
const FIRST_DOMAIN = 1

export class IntelIommuUnit {
  static readonly #units = new WeakMap<MmioDevice, IntelIommuUnit>()
  readonly #iommu: MmioDevice
  readonly #memory: GuestMemory
  readonly #pages: PageAllocator
  readonly #order: DriverOrder
  readonly #cap: bigint
  readonly #contexts = new Map<number, number>()
  readonly #domains = new Set<number>()
  readonly capabilities: UnitCapabilities
  #tables: { readonly queue: number; readonly status: number; readonly root: number } | undefined
  #submitter: QueueSubmitter | undefined
  #command = 0n
  #devices = 0

  private constructor(
    iommu: MmioDevice,
    memory: GuestMemory,
    pages: PageAllocator,
    order: DriverOrder,
  ) {
    this.#iommu = iommu
    this.#memory = memory
    this.#pages = pages
    this.#order = order
    this.#cap = iommu.read(REGISTER.CAP, 8)
    this.capabilities = capabilities(this.#cap, iommu.read(REGISTER.ECAP, 8))
  }

  /** The unit of a guest; made at the first call. The first caller's pages and order count. */
  static of(
    iommu: MmioDevice,
    memory: GuestMemory,
    pages: PageAllocator,
    order: DriverOrder,
  ): IntelIommuUnit {
    let unit = IntelIommuUnit.#units.get(iommu)
    if (unit === undefined || unit.#memory !== memory) {
      unit = new IntelIommuUnit(iommu, memory, pages, order)
      IntelIommuUnit.#units.set(iommu, unit)
    }
    return unit
  }

  /** @throws InvalidState ERR_NOT_STARTED while no device is attached */
  get queue(): QueueSubmitter {
    if (this.#submitter === undefined) {
      throw new InvalidState('ERR_NOT_STARTED', 'the IOMMU driver is not enabled')
    }
    return this.#submitter
  }

  /** @throws InvalidState ERR_EXHAUSTED */
  takeDomain(): number {
    const count = 2 ** (4 + 2 * CAP.ND.in(this.#cap))
    for (let domain = FIRST_DOMAIN; domain < count; domain++) {
      if (this.#domains.has(domain)) continue
      this.#domains.add(domain)
      return domain
    }
    throw new InvalidState('ERR_EXHAUSTED', `the IOMMU has ${count} domains`)
  }

  giveDomain(domain: number): void {
    this.#domains.delete(domain)
  }

  /**
   * Switches the unit on for the first device, and makes the device's context entry present.
   * @throws InvalidState ERR_IN_USE when the device has one
   */
  attach(source: number, entry: ContextEntry): void {
    if (this.#devices === 0) {
      try {
        this.#switchOn()
      } catch (error) {
        this.#release()
        throw error
      }
    }
    const { words, at } = this.#contextEntry(source)
    if (CONTEXT_ENTRY.field.P.read(words, at) === 1) {
      throw new InvalidState('ERR_IN_USE', `source id ${source} has a driver already`)
    }
    const values = {
      TT: TRANSLATION_TYPE[entry.type],
      SSPTPTR: entry.tablePage,
      AW: entry.levels - 2,
      DID: entry.domain,
    }
    fill(CONTEXT_ENTRY, values, words, at)
    CONTEXT_ENTRY.field.P.write(words, 1, at)
    this.#devices += 1
    if (!this.capabilities.cachingMode) return
    // VT-d 4.1, 6.1: what was not present is cached under domain 0.
    this.queue.contextDevice(0, source)
    this.queue.submit()
    this.queue.iotlbDomain(entry.domain)
    this.queue.submit()
  }

  /** Takes the context entry away and switches the unit off after the last device. */
  detach(source: number, domain: number, deviceTlb: boolean): void {
    const { words, at } = this.#contextEntry(source)
    words.fill(0, at, at + WORDS_PER_ENTRY)
    const queue = this.queue
    try {
      queue.contextDevice(domain, source)
      queue.submit()
      queue.iotlbDomain(domain)
      if (deviceTlb) queue.deviceTlbAll(source)
      queue.submit()
    } finally {
      this.#devices -= 1
      if (this.#devices === 0) this.#switchOff()
    }
  }

  /** Reads and clears the fault records (Linux: `dmar_fault`). */
  takeFaults(): readonly UnitFault[] {
    const faults: UnitFault[] = []
    const first = 16 * CAP.FRO.in(this.#cap)
    const count = CAP.NFR.in(this.#cap) + 1
    for (let index = 0; index < count; index++) {
      const offset = first + 16 * index
      const high = this.#iommu.read(offset + 8, 8)
      const record = (high << 64n) | this.#iommu.read(offset, 8)
      const { F, FI, FR, SID, T } = FAULT_RECORD.field
      if (F.in(record) === 0) continue
      faults.push({
        source: SID.in(record),
        page: FI.in(record),
        reason: FR.in(record),
        access: T.in(record) === 1 ? 'read' : 'write',
      })
      this.#iommu.write(offset + 12, 0x80000000n, 4)
    }
    this.#iommu.write(REGISTER.FSTS, FSTS.PFO.of(1), 4)
    return faults
  }

  /** The register sequence of Linux's `init_dmars`, without interrupt remapping. */
  #switchOn(): void {
    const iommu = this.#iommu
    const tables = {
      queue: this.#clearedPage(),
      status: this.#clearedPage(),
      root: this.#clearedPage(),
    }
    this.#tables = tables
    iommu.read(REGISTER.VER, 4)
    iommu.read(REGISTER.GSTS, 4)
    this.#settleFaults()
    const place = { queuePage: tables.queue, statusPage: tables.status }
    const drain = { reads: CAP.DRD.in(this.#cap) === 1, writes: CAP.DWD.in(this.#cap) === 1 }
    const queue = new QueueSubmitter(this.#memory, iommu, place, drain)
    this.#submitter = queue
    iommu.write(REGISTER.IQT, 0n, 4)
    iommu.write(REGISTER.IQA, BigInt(tables.queue * PAGE_SIZE), 8)
    this.#set(COMMAND.QIE.of(1))
    if (this.#order === '6.1') this.#armFaults()
    iommu.write(REGISTER.RTADDR, BigInt(tables.root * PAGE_SIZE), 8)
    this.#once(COMMAND.SRTP.of(1))
    if (CAP.ESRTPS.in(this.#cap) === 0) {
      queue.contextGlobal()
      queue.submit()
      queue.iotlbGlobal()
      queue.submit()
    }
    if (this.#order === '6.12') this.#armFaults()
    this.#set(COMMAND.TE.of(1))
  }

  #switchOff(): void {
    this.#clear(COMMAND.TE.of(1))
    this.#clear(COMMAND.QIE.of(1))
    this.#release()
  }

  #release(): void {
    for (const page of this.#contexts.values()) this.#pages.free(page)
    this.#contexts.clear()
    const tables = this.#tables
    if (tables !== undefined) for (const page of Object.values(tables)) this.#pages.free(page)
    this.#tables = undefined
    this.#submitter = undefined
    this.#command = 0n
  }

  /** 6.1 writes the fault status back three times over; 6.12 reads it once. */
  #settleFaults(): void {
    const times = this.#order === '6.1' ? 3 : 1
    for (let time = 0; time < times; time++) {
      const status = this.#iommu.read(REGISTER.FSTS, 4)
      if (this.#order === '6.1') this.#iommu.write(REGISTER.FSTS, status, 4)
    }
  }

  #armFaults(): void {
    this.#iommu.write(REGISTER.FEDATA, FAULT_MESSAGE.data, 4)
    this.#iommu.write(REGISTER.FEADDR, FAULT_MESSAGE.address, 4)
    this.#iommu.write(REGISTER.FEUADDR, 0n, 4)
    this.#iommu.write(REGISTER.FECTL, 0n, 4)
    this.#iommu.read(REGISTER.FECTL, 4)
  }

  /** GCMD takes all persistent bits with each write (11.4.4). */
  #set(bit: bigint): void {
    this.#command |= bit
    this.#write(this.#command, bit, true)
  }

  #clear(bit: bigint): void {
    this.#command &= ~bit
    this.#write(this.#command, bit, false)
  }

  #once(bit: bigint): void {
    this.#write(this.#command | bit, bit, true)
  }

  #write(command: bigint, bit: bigint, expected: boolean): void {
    this.#iommu.write(REGISTER.GCMD, command, 4)
    const status = this.#iommu.read(REGISTER.GSTS, 4)
    if (((status & bit) !== 0n) === expected) return
    throw new InvalidState(
      'ERR_UNSUPPORTED',
      `the IOMMU did not take command 0x${command.toString(16)}: GSTS 0x${status.toString(16)}`,
    )
  }

  #contextEntry(source: number): { words: Uint32Array; at: number } {
    const root = this.#tables?.root
    if (root === undefined) throw new InvalidState('ERR_NOT_STARTED', 'the IOMMU is switched off')
    const bus = source >> 8
    let page = this.#contexts.get(bus)
    if (page === undefined) {
      page = this.#clearedPage()
      this.#contexts.set(bus, page)
      const entry = this.#words(root, bus)
      ROOT_ENTRY.field.CTP.write(entry.words, page, entry.at)
      ROOT_ENTRY.field.P.write(entry.words, 1, entry.at)
    }
    return this.#words(page, source % CONTEXTS_PER_BUS)
  }

  #words(page: number, entry: number): { words: Uint32Array; at: number } {
    const region = this.#memory.find(page * PAGE_SIZE)
    if (region === undefined) throw new RangeError(`page ${page} is not memory`)
    const at = (page * PAGE_SIZE - region.start) / 4 + WORDS_PER_ENTRY * entry
    return { words: region.u32, at }
  }

  #clearedPage(): number {
    const page = this.#pages.allocate()
    this.#memory.view(page * PAGE_SIZE, PAGE_SIZE).fill(0)
    return page
  }
}

/** @throws InvalidState ERR_UNSUPPORTED for a unit without queue or second-stage tables */
function capabilities(cap: bigint, ecap: bigint): UnitCapabilities {
  if (ECAP.QI.in(ecap) === 0) {
    throw new InvalidState('ERR_UNSUPPORTED', 'the IOMMU has no invalidation queue (ECAP.QI)')
  }
  const widths = CAP.SAGAW.in(cap)
  const levels = ([5, 4, 3] as const).find((each) => ((widths >> (each - 2)) & 1) === 1)
  if (levels === undefined) {
    throw new InvalidState('ERR_UNSUPPORTED', 'the IOMMU does not translate (CAP.SAGAW)')
  }
  const bits = Math.min(CAP.MGAW.in(cap) + 1, 12 + 9 * levels)
  const large = CAP.SSLPS.in(cap)
  return {
    levels,
    lastPage: 2 ** (bits - 12) - 1,
    largestLeaf: (large & 3) === 3 ? 3 : (large & 1) === 1 ? 2 : 1,
    maxOrder: CAP.PSI.in(cap) === 1 ? CAP.MAMV.in(cap) : -1,
    deviceTlb: ECAP.DT.in(ecap) === 1,
    passThrough: ECAP.PT.in(ecap) === 1,
    cachingMode: CAP.CM.in(cap) === 1,
  }
}

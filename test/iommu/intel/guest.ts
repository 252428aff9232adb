/**
 * The guest's side of a VT-d unit, as short as tests like it: tables at fixed places, register
 * writes by name, descriptors by hand. Entries are written as raw numbers on purpose, from the
 * specification and not from the library's tables.
 */
import { iova } from '../../../lib/address'
import type { Access } from '../../../lib/address'
import type { InvalidationSource, Notifier } from '../../../lib/memory/address-space'
import type { IntelIommuOptions } from '../../../lib/iommu/intel/capabilities'
import { IntelIommu } from '../../../lib/iommu/intel/intel-iommu'
import { PlainMemory } from '../plain-memory'

export const REG = {
  ...{ VER: 0x00, CAP: 0x08, ECAP: 0x10, GCMD: 0x18, GSTS: 0x1c, RTADDR: 0x20, CCMD: 0x28 },
  ...{ FSTS: 0x34, FECTL: 0x38, FEDATA: 0x3c, FEADDR: 0x40, FEUADDR: 0x44 },
  ...{ IQH: 0x80, IQT: 0x88, IQA: 0x90, ICS: 0x9c, IECTL: 0xa0, IEDATA: 0xa4, IEADDR: 0xa8 },
  ...{ IEUADDR: 0xac, IQERCD: 0xb0, IRTA: 0xb8, IVA: 0xf0, IOTLB: 0xf8, FRCD: 0x220 },
} as const

export const GCMD = {
  TE: 1 << 31,
  SRTP: 1 << 30,
  QIE: 1 << 26,
  IRE: 1 << 25,
  SIRTP: 1 << 24,
} as const

/** Where things are in the guest's 4 MiB. */
export const AT = {
  root: 0x1000,
  context: 0x2000,
  queue: 0x10000,
  status: 0x20000,
  directory: 0x30000,
  pasids: 0x31000,
  tables: 0x100000,
} as const

export const REQUESTER = 0x0018
const MEMORY_BYTES = 0x400000

export class Guest {
  readonly memory = PlainMemory.of(MEMORY_BYTES)
  readonly iommu: IntelIommu
  tableRoot: number
  #nextTable: number = AT.tables
  tail = 0

  constructor(
    readonly options: IntelIommuOptions = {},
    readonly source: number = REQUESTER,
  ) {
    this.iommu = new IntelIommu(this.memory, options)
    this.tableRoot = this.table()
  }

  /** Root table, context entry of the requester, translation on, queue on. */
  start({ type = 0, domain = 7, queue = true } = {}): this {
    this.rootEntry(this.source >> 8, AT.context)
    this.contextEntry(this.source, { type, domain })
    this.write('RTADDR', BigInt(AT.root), 8)
    this.command(GCMD.SRTP)
    if (queue) {
      this.write('IQA', BigInt(AT.queue), 8)
      this.command(GCMD.QIE)
    }
    this.command(GCMD.TE)
    return this
  }

  rootEntry(bus: number, contextTable: number): void {
    this.memory.setU64(AT.root + bus * 16, BigInt(contextTable) | 1n)
  }

  contextEntry(source: number, { type = 0, domain = 7, width = this.width, fpd = 0, p = 1 } = {}) {
    const at = AT.context + (source & 255) * 16
    const low = BigInt(this.tableRoot) | BigInt(p | (fpd << 1) | (type << 2))
    this.memory.setU64(at, low)
    this.memory.setU64(at + 8, BigInt(width) | (BigInt(domain) << 8n))
  }

  /** AW of a context entry for the unit's widest tables. */
  get width(): number {
    return { 39: 1, 48: 2, 57: 3 }[this.options.addressWidth ?? 48]
  }

  get levels(): number {
    return this.width + 2
  }

  /** A fresh zeroed table. */
  table(): number {
    const at = this.#nextTable
    this.#nextTable += 4096
    return at
  }

  /** Maps one page of `level` (1: 4K, 2: 2M, 3: 1G), with all permissions above it. */
  map(at: bigint, target: bigint, permission = 3, level = 1): number {
    const entry = this.entryAt(at, level)
    this.memory.setU64(entry, target | BigInt(permission) | (level > 1 ? 0x80n : 0n))
    return entry
  }

  /** The gpa of the entry of `level` for an iova; tables above it are made as needed. */
  entryAt(at: bigint, level: number): number {
    let table = this.tableRoot
    for (let l = this.levels; ; l--) {
      const entry = table + Number((at >> BigInt(12 + 9 * (l - 1))) & 511n) * 8
      if (l === level) return entry
      if (this.memory.u64(entry) === 0n) this.memory.setU64(entry, BigInt(this.table()) | 3n)
      table = Number(this.memory.u64(entry) & 0xffffffffff000n)
    }
  }

  write(register: keyof typeof REG, value: bigint | number, size = 4): void {
    this.iommu.write(REG[register], BigInt(value), size)
  }

  read(register: keyof typeof REG, size = 4): number {
    return Number(this.iommu.read(REG[register], size))
  }

  /** GCMD with the persistent bits kept. */
  command(set: number, clear = 0): void {
    const persistent = this.read('GSTS') & 0x96800000
    this.write('GCMD', BigInt(((persistent | set) & ~clear) >>> 0))
  }

  /** Puts descriptors of two quadwords at the tail, and moves it. */
  submit(...descriptors: readonly (readonly [bigint, bigint])[]): void {
    for (const [low, high] of descriptors) {
      this.memory.setU64(AT.queue + this.tail * 16, low)
      this.memory.setU64(AT.queue + this.tail * 16 + 8, high)
      this.tail = (this.tail + 1) % 256
    }
    this.write('IQT', this.tail * 16, 8)
  }

  /** A wait descriptor; answers whether its status was written. */
  wait(data = 2): boolean {
    this.memory.setU32(AT.status, 0)
    this.submit([(BigInt(data) << 32n) | 0x25n, BigInt(AT.status)])
    return this.memory.u32(AT.status) === data
  }

  /** The status register of the queue's head, in descriptors of 16 bytes. */
  get head(): number {
    return this.read('IQH', 8) / 16
  }

  get space() {
    return this.iommu.addressSpace(this.source)
  }

  /** The translation of an address, or the code of its fault. */
  translate(at: bigint, wanted: Access = 'read') {
    return this.space.translate(iova(at), wanted)
  }

  code(at: bigint, wanted: Access = 'read'): number {
    const result = this.translate(at, wanted)
    return result.ok ? 0 : result.reason.code
  }

  /** The first fault record: source, reason, whether a read, page address. */
  get fault() {
    const low = this.iommu.read(REG.FRCD, 8)
    const high = this.iommu.read(REG.FRCD + 8, 8)
    if (high >> 63n === 0n) return undefined
    return {
      source: Number(high & 0xffffn),
      reason: Number((high >> 32n) & 0xffn),
      read: ((high >> 62n) & 1n) === 1n,
      address: low,
    }
  }

  clearFault(): void {
    this.iommu.write(REG.FRCD + 12, 0x80000000n, 4)
  }

  /** Hears what reaches the requester's address space from now on. */
  listen(source = this.source): Heard[] {
    const heard: Heard[] = []
    const notifier: Notifier = {
      invalidate(range, source) {
        heard.push({ first: range.first, last: range.last, source })
      },
    }
    this.iommu.addressSpace(source).notify(notifier)
    return heard
  }
}

export interface Heard {
  readonly first: bigint
  readonly last: bigint
  readonly source: InvalidationSource
}

export const EVERYTHING = { first: 0n, last: 2n ** 64n - 1n }

/** GSTS of a unit that runs: TES, RTPS, QIES. */
export const RUNNING = 0xc4000000

export interface PasidEntry {
  readonly type?: number
  readonly domain?: number
  readonly pasid?: number
  readonly width?: number
  readonly mode?: number
  readonly fpd?: number
  readonly p?: number
}

/** In scalable mode: descriptors of 256 bits, and a PASID entry that names the stages. */
export class ScalableGuest extends Guest {
  /** The top first-stage table. */
  firstRoot = 0

  constructor(options: IntelIommuOptions = {}, source: number = REQUESTER) {
    super({ scalableMode: true, firstStage: true, ...options }, source)
    this.firstRoot = this.table()
  }

  override start({ type = 2, domain = 7 } = {}): this {
    const upper = (this.source & 0x80) === 0 ? 0 : 8
    this.memory.setU64(AT.root + (this.source >> 8) * 16 + upper, BigInt(AT.context) | 1n)
    this.scalableContext()
    this.memory.setU64(AT.directory, BigInt(AT.pasids) | 1n)
    this.pasidEntry({ type, domain })
    this.write('RTADDR', BigInt(AT.root) | (1n << 10n), 8)
    this.command(GCMD.SRTP)
    this.write('IQA', BigInt(AT.queue) | (1n << 11n), 8)
    this.command(GCMD.QIE)
    this.command(GCMD.TE)
    return this
  }

  get contextAt(): number {
    return AT.context + (this.source & 127) * 32
  }

  scalableContext({ dte = 1, fpd = 0, p = 1, pdts = 0, pasid = 0 } = {}): void {
    const flags = BigInt(p | (fpd << 1) | (dte << 2) | (pdts << 9))
    this.memory.setU64(this.contextAt, BigInt(AT.directory) | flags)
    this.memory.setU64(this.contextAt + 8, BigInt(pasid))
  }

  pasidEntry(entry: PasidEntry = {}): number {
    const { type = 2, domain = 7, pasid = 0, width = this.width, mode = 0, fpd = 0, p = 1 } = entry
    const at = AT.pasids + (pasid % 64) * 64
    // What belongs to a stage that the unit does not have is reserved (9.6).
    const { firstStage = true, secondStage = true } = this.options
    const second = secondStage ? BigInt(this.tableRoot) | BigInt(width << 2) : 0n
    const first = firstStage ? BigInt(this.firstRoot) | BigInt(mode << 2) : 0n
    this.memory.setU64(at, second | BigInt(p | (fpd << 1) | (type << 6)))
    this.memory.setU64(at + 8, BigInt(domain))
    this.memory.setU64(at + 16, first)
    return at
  }

  /** Maps in the first stage. @returns where the entry is */
  mapFirst(at: bigint, target: bigint, flags = 7, level = 1, levels = 4): number {
    let table = this.firstRoot
    for (let l = levels; ; l--) {
      const entry = table + Number((at >> BigInt(12 + 9 * (l - 1))) & 511n) * 8
      if (l === level) {
        this.memory.setU64(entry, target | BigInt(flags) | (level > 1 ? 0x80n : 0n))
        return entry
      }
      if (this.memory.u64(entry) === 0n) this.memory.setU64(entry, BigInt(this.table()) | 7n)
      table = Number(this.memory.u64(entry) & 0xffffffffff000n)
    }
  }

  /** Gives the second stage every page of guest memory that the first stage's tables may use. */
  mapTables(permission = 3): void {
    for (let at = 0n; at < 0x400000n; at += 0x200000n) this.map(at, at, permission, 2)
  }

  override submit(...descriptors: readonly (readonly [bigint, bigint])[]): void {
    for (const [low, high] of descriptors) this.put(low, high, 0n, 0n)
    this.write('IQT', this.tail * 32, 8)
  }

  put(...quads: readonly bigint[]): void {
    quads.forEach((quad, i) => {
      this.memory.setU64(AT.queue + this.tail * 32 + i * 8, quad)
    })
    this.tail = (this.tail + 1) % 128
  }
}

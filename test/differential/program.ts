/**
 * One random program, run on QEMU's VT-d and on ours at the same time, and compared after each
 * step: every register, and at the end every byte of memory.
 *
 * Memory of the program is 64 pages from 1 MiB on. What lies elsewhere is no memory for the one
 * and unassigned for the other. A context entry or root entry is never changed without an
 * invalidation after it: QEMU's context cache would show, and that is not what is compared.
 */
import { expect } from 'vitest'
import { IntelIommu } from '../../lib/iommu/intel/intel-iommu'
import type { IntelIommuOptions } from '../../lib/iommu/intel/capabilities'
import { PlainMemory } from '../iommu/plain-memory'
import { Random } from '../oracle/random'
import { QemuCaches } from './qemu-caches'
import { EDU_SLOTS, writeQuad, writeRegister } from './qtest'
import type { Qtest } from './qtest'

const START = 0x100000
const PAGES = 64
const page = (index: number): number => START + index * 4096

const ROOT = page(0)
const CONTEXT = page(1)
/** Two pages, so that a queue of 512 descriptors fits. */
const QUEUE = page(2)
const STATUS = page(4)
/** The tables of each level, so that most walks come to their end. */
const LEVELS: Readonly<Record<number, readonly number[]>> = {
  4: [5, 6],
  3: [7, 8, 9],
  2: [10, 11, 12, 13, 14],
  1: [15, 16, 17, 18, 19, 20, 21, 22, 23],
}
const DATA = 24
/** Neither RAM nor a device, in both. */
const NOWHERE = 0x40_0000_0000n

const SOURCES = EDU_SLOTS.map((slot) => slot << 3)
const DOMAINS = [1, 2, 3]
const SLOTS = [0, 1, 2, 511]

const GSTS = 0x1c
const FSTS = 0x34
const FEDATA = 0x3c
const IEDATA = 0xa4

/** Registers that a program writes, by size; QEMU 7.2 aborts at 8 bytes on 0x38, 0xa0 and 0xa8. */
const WRITES: readonly (readonly [offset: number, sizes: readonly (4 | 8)[]])[] = [
  [0x00, [4, 8]],
  [0x08, [4, 8]],
  [0x10, [4, 8]],
  [0x1c, [4]],
  [0x34, [4]],
  [0x38, [4]],
  [0x3c, [4]],
  [0x40, [4, 8]],
  [0x44, [4]],
  [0x58, [4, 8]],
  [0x64, [4]],
  [0x68, [4, 8]],
  [0x80, [4, 8]],
  [0x9c, [4]],
  [0xa0, [4]],
  [0xa4, [4]],
  [0xa8, [4]],
  [0xac, [4]],
  [0xb8, [4, 8]],
  [0xf0, [4, 8]],
  [0x220, [4, 8]],
  [0x228, [4, 8]],
  [0x22c, [4]],
]

export class Program {
  readonly #memory = new PlainMemory([{ start: START, bytes: PAGES * 4096 }])
  readonly #iommu: IntelIommu
  readonly #caches: QemuCaches
  readonly #buffers = SOURCES.map(() => 0)
  readonly #random: Random
  readonly #width: number
  readonly #commands: string[] = []
  #tail = 0
  readonly #log: string[] = []
  /** What was done, for the run's own account. */
  readonly counts = { steps: 0, granted: 0, refused: 0, records: 0, descriptors: 0, errors: 0 }

  /** Fault records that were seen, by reason. */
  readonly reasons = new Map<number, number>()

  constructor(
    private readonly machine: Qtest,
    options: IntelIommuOptions,
    seed: number,
  ) {
    this.#iommu = new IntelIommu(this.#memory, { ...options, compat: 'qemu' })
    this.#caches = new QemuCaches(this.#iommu, (source) => this.#domainOf(source))
    this.#random = new Random(seed)
    this.#width = options.addressWidth === 48 ? 2 : 1
  }

  async run(steps: number): Promise<void> {
    await this.#arrange()
    for (let step = 0; step < steps; step++) {
      await this.#step()
      await this.#compareRegisters()
    }
    await this.#compareMemory()
  }

  /** Tables that work, and pages that say where they are. */
  async #arrange(): Promise<void> {
    for (let i = DATA; i < PAGES; i++) {
      for (let word = 0; word < 1024; word += 2) {
        const at = page(i) + word * 4
        const value = (BigInt(at + 4) << 32n) | BigInt(at)
        if (word < 8) this.#store(at, value)
      }
    }
    this.#store(ROOT, BigInt(CONTEXT) | 1n)
    for (const source of SOURCES) this.#writeContext(source, false)
    for (let level = 4; level >= 1; level--) {
      for (const table of LEVELS[level]) {
        for (const slot of SLOTS) this.#store(page(table) + slot * 8, this.#entry(level))
      }
    }
    this.#register(0x20, BigInt(ROOT), 8)
    this.#register(0x18, 0x40000000n, 4)
    this.#register(0x90, BigInt(QUEUE), 8)
    this.#register(0x18, 0x04000000n, 4)
    this.#register(0x18, 0x84000000n, 4)
    await this.#compareRegisters()
  }

  async #step(): Promise<void> {
    const random = this.#random
    this.counts.steps++
    const kind = random.below(20)
    if (kind < 8) await this.#transfer()
    else if (kind < 11) this.#changeEntry()
    else if (kind < 12) this.#changeContext()
    else if (kind < 15) this.#submit()
    else if (kind < 16) this.#command()
    else if (kind < 17) this.#invalidateByRegister()
    else if (kind < 18) this.#clearFaults()
    else if (kind < 19) this.#randomRegister()
    else this.#queueRegisters()
  }

  // Both sides of each action: what QEMU is sent, and what ours is told.

  #store(at: number, wide: bigint): void {
    const value = BigInt.asUintN(64, wide)
    if (this.counts.steps > 0) this.#note(`store 0x${at.toString(16)} = 0x${value.toString(16)}`)
    this.#commands.push(writeQuad(at, value))
    this.#memory.setU64(at, value)
  }

  #register(offset: number, value: bigint, size: 4 | 8): void {
    const cut = size === 4 ? value & 0xffffffffn : value
    this.#note(`write 0x${offset.toString(16)} = 0x${cut.toString(16)} (${size})`)
    this.#commands.push(writeRegister(offset, cut, size))
    const before = this.#read(GSTS)
    this.#iommu.write(offset, cut, size)
    // TE changing and SRTP empty QEMU's caches (7.2, vtd_handle_gcmd_write).
    if (
      offset === 0x18 &&
      ((before ^ this.#read(GSTS)) >>> 31 !== 0 || (cut & 0x40000000n) !== 0n)
    ) {
      this.#caches.flush()
    }
  }

  async #transfer(): Promise<void> {
    const random = this.#random
    const device = random.below(SOURCES.length)
    const write = random.chance(0.5)
    const at = this.#someIova()
    const target = this.#caches.peek(SOURCES[device], at, write)
    if (!this.#mayTouch(target)) return
    this.#note(
      `${write ? 'write' : 'read'} by ${SOURCES[device].toString(16)} at 0x${at.toString(16)}`,
    )
    await this.#flush()
    await this.machine.transfer(device, at, write)
    const granted = this.#caches.access(SOURCES[device], at, write)
    this.#note(`  to ${granted === undefined ? 'nothing' : `0x${granted.toString(16)}`}`)
    const gpa = granted !== undefined && this.#isMirrored(granted) ? Number(granted) : undefined
    this.counts[granted === undefined ? 'refused' : 'granted']++
    if (write && gpa !== undefined) this.#memory.setU32(gpa, this.#buffers[device])
    if (!write) this.#buffers[device] = gpa === undefined ? 0 : this.#memory.u32(gpa)
  }

  /** Data pages and nothing; not the tables, and no memory that only QEMU has. */
  #mayTouch(target: bigint | undefined): boolean {
    if (target === undefined || target >= 0x1_0000_0000n) return true
    return target >= BigInt(page(DATA)) && target < BigInt(page(PAGES))
  }

  #isMirrored(target: bigint): boolean {
    return target >= BigInt(START) && target < BigInt(page(PAGES))
  }

  #changeEntry(): void {
    const level = 1 + this.#random.below(4)
    const at = page(this.#random.pick(LEVELS[level])) + this.#random.pick(SLOTS) * 8
    this.#store(at, this.#entry(level))
  }

  #changeContext(): void {
    const random = this.#random
    const source = random.pick(SOURCES)
    if (random.chance(0.1) || this.#iommu.read(0x20, 8) !== BigInt(ROOT)) {
      const root = random.chance(0.7) ? BigInt(ROOT) : NOWHERE
      this.#register(0x20, root, 8)
      this.#register(0x18, BigInt(this.#read(GSTS) | 0x40000000) & 0xffffffffn, 4)
    } else if (random.chance(0.2)) {
      const broken = random.pick([1n, 2n, 1n << 50n, NOWHERE])
      const low = random.chance(0.7) ? BigInt(CONTEXT) | 1n : (BigInt(CONTEXT) | 1n) ^ broken
      this.#store(ROOT, low)
      this.#store(ROOT + 8, random.chance(0.1) ? 1n : 0n)
      this.#invalidateContexts(undefined)
    } else {
      this.#writeContext(source, true)
      this.#invalidateContexts(source)
    }
  }

  #writeContext(source: number, wild: boolean): void {
    const random = this.#random
    const at = CONTEXT + (source & 255) * 16
    const chance = (probability: number): boolean => wild && random.chance(probability)
    const width = chance(0.1) ? random.below(8) : random.chance(0.5) ? this.#width : 1
    const top = LEVELS[width === 2 && !chance(0.1) ? 4 : 3]
    const table = chance(0.05) ? NOWHERE : BigInt(page(random.pick(top)))
    const present = chance(0.1) ? 0n : 1n
    const fpd = chance(0.15) ? 2n : 0n
    const type = chance(0.5) ? BigInt(random.below(4)) << 2n : 0n
    const noise = chance(0.1) ? 1n << BigInt(4 + random.below(8)) : 0n
    this.#store(at, table | present | fpd | type | noise)
    const high = BigInt(width) | (BigInt(random.pick(DOMAINS)) << 8n)
    this.#store(at + 8, high | (chance(0.1) ? 1n << BigInt(24 + random.below(40)) : 0n))
  }

  /** By whatever works now: the queue, the register, or a new root pointer, which always does. */
  #invalidateContexts(source: number | undefined): void {
    const status = this.#read(GSTS)
    const queue = (status & 0x04000000) !== 0
    const device = source !== undefined && this.#random.chance(0.5)
    if (queue && (this.#read(FSTS) & 0x10) === 0 && this.#random.chance(0.8)) {
      this.#submitThese([device ? [0x31n | (BigInt(source) << 32n), 0n] : [0x11n, 0n]])
      if (this.#head === this.#tail) return
    } else if (!queue && this.#random.chance(0.8)) {
      const which = device ? (3n << 61n) | (BigInt(source) << 16n) : 1n << 61n
      this.#register(0x28, (1n << 63n) | which, 8)
      return
    }
    this.#register(0x18, BigInt(status | 0x40000000) & 0xffffffffn, 4)
  }

  get #head(): number {
    return Number(this.#iommu.read(0x80, 8) >> 4n)
  }

  #submit(): void {
    const random = this.#random
    const descriptors = Array.from({ length: 1 + random.below(4) }, () => this.#descriptor())
    this.#submitThese(descriptors)
  }

  #submitThese(descriptors: readonly (readonly [bigint, bigint])[]): void {
    // From the head on: over what an error has left there.
    this.#tail = this.#head
    const size = this.#queueState.entries
    for (const [low, high] of descriptors) {
      this.#store(QUEUE + (this.#tail % 512) * 16, low)
      this.#store(QUEUE + (this.#tail % 512) * 16 + 8, high)
      this.#tail = (this.#tail + 1) % size
      this.counts.descriptors++
    }
    this.#runQueue(() => {
      this.#register(0x88, BigInt(this.#tail * 16), this.#random.pick([4, 8]))
    })
  }

  /** What our queue did between two heads, QEMU's IOTLB must feel too. */
  #runQueue(action: () => void): void {
    const before = this.#head
    const wasOn = (this.#read(GSTS) & 0x04000000) !== 0
    action()
    const isOn = (this.#read(GSTS) & 0x04000000) !== 0
    if (!isOn) return
    const { base, entries } = this.#queueState
    const after = this.#head
    if ((this.#read(FSTS) & 0x10) !== 0) {
      this.counts.errors++
      if (this.#random.chance(0.7)) this.#register(FSTS, 0x10n, 4)
    }
    for (let head = wasOn ? before : 0; head !== after; head = (head + 1) % entries) {
      this.#feel(this.#memory.u64(base + head * 16), this.#memory.u64(base + head * 16 + 8))
    }
  }

  /** Size and place of the queue that is on, kept from when it was switched on. */
  #queueState = { base: QUEUE, entries: 256 }

  #feel(low: bigint, high: bigint): void {
    if ((low & 15n) !== 2n) return
    const domain = Number((low >> 16n) & 0xffffn)
    const granularity = (low >> 4n) & 3n
    if (granularity === 1n) this.#caches.flush()
    else if (granularity === 2n) this.#caches.flushDomain(domain)
    else this.#caches.flushPages(domain, Number(high >> 12n), Number(high & 63n))
  }

  #descriptor(): readonly [bigint, bigint] {
    const random = this.#random
    const domain = BigInt(random.pick(DOMAINS)) << 16n
    const source = BigInt(random.pick(SOURCES)) << 32n
    const noise = random.chance(0.02) ? 1n << BigInt(random.below(64)) : 0n
    const status = BigInt(STATUS + 4 * random.below(64))
    switch (random.below(16)) {
      case 0:
        return [0x11n | noise, 0n]
      case 1:
        return [0x21n | domain, noise & ~1n]
      case 2:
        return [0x31n | domain | source | (BigInt(random.below(4)) << 48n), 0n]
      case 3:
        return [0x12n | noise, 0n]
      case 4:
        return [0x22n | domain | noise, 0n]
      case 5:
      case 6:
        return [
          0x32n | domain | (noise << 32n),
          (this.#someIova() & ~0xfffn) | BigInt(random.below(random.pick([1, 3, 10, 22]))),
        ]
      case 7:
        return [0x03n | source | noise, this.#someIova() & ~0xffen]
      case 8:
        return [0x04n, 0n]
      case 9:
        return [0x25n | (BigInt(random.u32()) << 32n), random.chance(0.05) ? NOWHERE : status]
      case 10:
        // Not SW as well: QEMU 7.2 aborts on both.
        return [0x15n | (noise & 0xffffffdfn), 0n]
      case 11:
        return [BigInt(random.pick([0x05, 0x45, 0x06, 0x07, 0x08, 0x09, 0x00, 0x02])), 0n]
      default:
        return [0x25n | (BigInt(random.u32()) << 32n), status]
    }
  }

  #command(): void {
    const random = this.#random
    const status = BigInt(this.#read(GSTS)) & 0x96800000n
    const bit = random.pick([
      0x80000000n,
      0x80000000n,
      0x40000000n,
      0x04000000n,
      0x01000000n,
      0x02000000n,
      0x10000000n,
    ])
    this.#switch(random.chance(0.7) ? status ^ bit : status | bit)
    // Most programs run on with both on.
    if (random.chance(0.8)) this.#switch((BigInt(this.#read(GSTS)) & 0x96800000n) | 0x84000000n)
  }

  #switch(command: bigint): void {
    const off = (this.#read(GSTS) & 0x04000000) === 0
    if (off && (command & 0x04000000n) !== 0n) {
      const iqa = this.#writtenIqa
      this.#queueState = { base: Number(iqa & ~0xfffn), entries: 256 << Number(iqa & 7n) }
    }
    this.#runQueue(() => {
      this.#register(0x18, command, 4)
    })
  }

  /** IQA as it was last written: QEMU reads back something else. */
  #writtenIqa = BigInt(QUEUE)

  #queueRegisters(): void {
    const random = this.#random
    if (random.chance(0.4)) {
      this.#writtenIqa = BigInt(QUEUE) | BigInt(random.below(2))
      this.#register(0x90, this.#writtenIqa, 8)
      return
    }
    const tail = random.chance(0.9) ? random.below(256) : random.below(0x800)
    this.#runQueue(() => {
      this.#register(0x88, BigInt(tail * 16), random.pick([4, 8]))
    })
  }

  #invalidateByRegister(): void {
    const random = this.#random
    const high = 1n << 63n
    const domain = random.pick(DOMAINS)
    const on = (this.#read(GSTS) & 0x04000000) !== 0
    if (random.chance(0.4)) {
      const fields = (BigInt(random.below(4)) << 61n) | (BigInt(random.below(4)) << 32n)
      const which = (BigInt(random.pick(SOURCES)) << 16n) | BigInt(domain)
      this.#register(0x28, (random.chance(0.9) ? high : 0n) | fields | which, 8)
      return
    }
    const address = (this.#someIova() & ~0xfffn) | BigInt(random.below(random.pick([1, 4, 22])))
    this.#register(0xf0, address, 8)
    const granularity = random.below(4)
    const command = high | (BigInt(granularity) << 60n) | (BigInt(domain) << 32n)
    if (random.chance(0.5)) this.#register(0xf8, command, 8)
    else this.#register(0xfc, command >> 32n, 4)
    if (on) return
    if (granularity === 1) this.#caches.flush()
    if (granularity === 2) this.#caches.flushDomain(domain)
    const mask = Number(address & 63n)
    if (granularity === 3 && mask <= 18) {
      this.#caches.flushPages(domain, Number(address >> 12n), mask)
    }
  }

  #clearFaults(): void {
    const record = this.#iommu.read(0x228, 8)
    if (record >> 63n === 1n) {
      const reason = Number((record >> 32n) & 0xffn)
      this.reasons.set(reason, (this.reasons.get(reason) ?? 0) + 1)
      this.counts.records++
    }
    if (this.#random.chance(0.5)) this.#register(0x228, 1n << 63n, 8)
    else this.#register(0x22c, 0x80000000n, 4)
    if (this.#random.chance(0.8)) this.#register(FSTS, 0xffffffffn, 4)
  }

  #randomRegister(): void {
    const random = this.#random
    const [offset, sizes] = random.pick(WRITES)
    // Message data with a delivery mode would be an NMI, SMI or INIT for the halted CPU.
    const isData = offset === FEDATA || offset === IEDATA
    const value = random.u64() & (isData ? 0x7ffff8ffn : 0x7fffffff_7fffffffn)
    this.#register(offset, value, random.pick(sizes))
  }

  // What programs are made of.

  #entry(level: number): bigint {
    const random = this.#random
    const permission = random.chance(0.95) ? 3n : BigInt(random.below(4))
    const large = random.chance(0.05) ? 0x80n : 0n
    // Not in the bits that would lead to memory that only QEMU has.
    const bit = random.chance(0.5) ? 2 + random.below(10) : 32 + random.below(32)
    const noise = random.chance(0.03) ? 1n << BigInt(bit) : 0n
    let frame = BigInt(
      page(level === 1 ? DATA + random.below(PAGES - DATA) : random.pick(LEVELS[level - 1])),
    )
    // The window is a device in QEMU: as a table it would be readable.
    if (random.chance(0.015)) frame = level > 1 || random.chance(0.5) ? NOWHERE : 0xfee00000n
    if (large !== 0n && level > 1 && random.chance(0.8)) frame = NOWHERE
    return (frame | permission | large) ^ noise
  }

  #someIova(): bigint {
    const random = this.#random
    if (random.chance(0.02)) return random.u64() & ~3n
    let at = BigInt(random.below(8) * 4)
    for (let level = 1; level <= 4; level++) {
      at |= BigInt(random.pick(SLOTS)) << BigInt(12 + 9 * (level - 1))
    }
    const width = this.#width === 2 && random.chance(0.5) ? 48n : 39n
    at &= (1n << (random.chance(0.95) ? width : 48n)) - 1n
    // The interrupt window is compared by the tests of the library.
    return at >= 0xfee00000n && at <= 0xfeefffffn ? 0n : at
  }

  #domainOf(source: number): number {
    return Number((this.#memory.u64(CONTEXT + (source & 255) * 16 + 8) >> 8n) & 0xffffn)
  }

  #read(offset: number): number {
    return Number(this.#iommu.read(offset, 4))
  }

  #note(what: string): void {
    this.#log.push(what)
    if (this.#log.length > 120) this.#log.shift()
  }

  /** What was only noted so far, to QEMU. */
  async #flush(): Promise<void> {
    const commands = this.#commands.splice(0)
    if (commands.length > 0) await this.machine.send(...commands)
  }

  async #compareRegisters(): Promise<void> {
    await this.#flush()
    const theirs = await this.machine.registers()
    const differences: string[] = []
    for (let offset = 0; offset < theirs.length; offset += 8) {
      const mine = this.#iommu.read(offset, 8)
      const other = theirs.readBigUInt64LE(offset)
      if (mine === other) continue
      differences.push(
        `0x${offset.toString(16)}: ours 0x${mine.toString(16)} QEMU 0x${other.toString(16)}`,
      )
    }
    if (differences.length > 0) expect.fail([...differences, '', ...this.#log].join('\n'))
  }

  async #compareMemory(): Promise<void> {
    const theirs = await this.machine.block(START, PAGES * 4096)
    const mine = Buffer.from(this.#memory.regions[0].u32.buffer)
    for (let at = 0; at < mine.length; at += 4) {
      if (mine.readUInt32LE(at) === theirs.readUInt32LE(at)) continue
      const where = `memory at 0x${(START + at).toString(16)}`
      const values = `ours 0x${mine.readUInt32LE(at).toString(16)} QEMU 0x${theirs.readUInt32LE(at).toString(16)}`
      expect.fail([`${where}: ${values}`, '', ...this.#log].join('\n'))
    }
  }
}

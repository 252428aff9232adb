/**
 * Random tables: pages full of entries that mostly make sense, so that walks get far, and
 * sometimes do not. Any page may serve as any table; requests aim at the slots that are filled.
 */
import type { PlainMemory } from '../iommu/plain-memory'
import type { Random } from './random'

/** The slots of a page that hold an entry of 8 bytes; requests use the same as indices. */
export const SLOTS = [0, 1, 2, 3, 6, 7, 48, 49, 255, 256, 503, 510, 511] as const
/** The lowest slots too, so that a second stage translates the pages of a first stage's tables. */
const FILLED = new Set([...SLOTS, ...Array.from({ length: 48 }, (_, slot) => slot)])
/** Source ids whose root, context and scalable entries lie on such slots. */
export const SOURCES = [0x0000, 0x0001, 0x0003, 0x0018, 0x0080, 0x00ff, 0x0100, 0x1818, 0xff80]

export interface SoupKind {
  readonly addressWidth: number
  readonly hostAddressWidth: number
  readonly firstStage: boolean
  readonly secondStage: boolean
  /** How often a bit that should be 0 is set, and how often an address leaves memory. */
  readonly faults: number
}

/** Pages by what most of those that point to them want to find there. */
interface Roles {
  readonly legacy: number[]
  readonly scalable: number[]
  readonly directory: number[]
  readonly pasid: number[]
  readonly paging: number[]
}

/** Fills all of memory; the page `rootPage` becomes a root table of the wanted mode. */
export function stir(
  memory: PlainMemory,
  random: Random,
  kind: SoupKind,
  rootPage: number,
  scalable: boolean,
): void {
  const roles: Roles = { legacy: [], scalable: [], directory: [], pasid: [], paging: [] }
  const pages = memory.regions.flatMap(({ start, u32 }) =>
    Array.from({ length: u32.length / 1024 }, (_, i) => start / 4096 + i),
  )
  const few = ['legacy', 'scalable', 'directory', 'pasid'] as const
  pages.forEach((page, i) => {
    const role = i < few.length * 2 ? few[i % few.length] : 'paging'
    if (page !== rootPage) roles[role].push(page)
  })
  for (const page of roles.legacy) legacyContexts(memory, random, kind, roles, page * 4096)
  for (const page of roles.scalable) scalableContexts(memory, random, kind, roles, page * 4096)
  for (const page of roles.directory) pasidDirectory(memory, random, kind, roles, page * 4096)
  for (const page of roles.pasid) pasidEntries(memory, random, kind, roles, page * 4096)
  for (const page of roles.paging) {
    for (const slot of FILLED) {
      memory.setU64(page * 4096 + slot * 8, pagingEntry(random, kind, roles.paging))
    }
  }
  root(memory, random, kind, scalable ? roles.scalable : roles.legacy, rootPage, scalable)
}

function root(
  memory: PlainMemory,
  random: Random,
  kind: SoupKind,
  contexts: readonly number[],
  rootPage: number,
  scalable: boolean,
): void {
  for (const source of SOURCES) {
    const at = rootPage * 4096 + (source >> 8) * 16
    const present = random.chance(1 - kind.faults) ? 1n : 0n
    memory.setU64(at, address(random, kind, contexts) | present | noise(random, kind, 11, 1))
    const upper = scalable ? address(random, kind, contexts) | 1n : noise(random, kind, 63, 0)
    memory.setU64(at + 8, upper)
  }
}

function pagingEntry(random: Random, kind: SoupKind, pages: readonly number[]): bigint {
  let permission = random.chance(0.8) ? 7n : BigInt(random.below(8))
  if (random.chance(0.3)) permission |= 0x60n
  const large = random.chance(0.15) ? 0x80n : 0n
  let frame = address(random, kind, pages)
  if (large !== 0n && random.chance(0.7)) {
    // Aligned to its size, now and then with the interrupt window in it.
    const size = random.chance(0.5) ? 1n << 21n : 1n << 30n
    frame = random.chance(0.2) ? 0xfee00000n & ~(size - 1n) : frame & ~(size - 1n)
  } else if (random.chance(0.03)) {
    frame = 0xfee00000n + (BigInt(random.below(0x120)) << 12n) - 0x10000n
  }
  const ignored = random.chance(0.1) ? random.u64() & 0xbff0000000000018n : 0n
  return frame | permission | large | ignored | noise(random, kind, 63, 8)
}

function legacyContexts(
  memory: PlainMemory,
  random: Random,
  kind: SoupKind,
  roles: Roles,
  at: number,
): void {
  for (const source of SOURCES) {
    const entry = at + (source & 255) * 16
    const present = random.chance(0.97) ? 1n : 0n
    const type = BigInt(random.pick([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 3])) << 2n
    const fpd = random.chance(0.2) ? 2n : 0n
    const low = address(random, kind, roles.paging) | present | fpd | type
    memory.setU64(entry, low | noise(random, kind, 11, 4))
    const width = someWidth(random, kind)
    const high = width | (BigInt(random.below(4)) << 8n) | BigInt(random.below(16) << 3)
    memory.setU64(entry + 8, high | noise(random, kind, 63, 7))
  }
}

function scalableContexts(
  memory: PlainMemory,
  random: Random,
  kind: SoupKind,
  roles: Roles,
  at: number,
): void {
  for (const source of SOURCES) {
    const entry = at + (source & 127) * 32
    const present = random.chance(0.97) ? 1n : 0n
    const fpd = random.chance(0.1) ? 2n : 0n
    const enables = random.chance(0.85) ? 4n : random.chance(0.3) ? 8n : 0n
    const size = BigInt(random.below(8)) << 9n
    const low = address(random, kind, roles.directory) | present | fpd | enables | size
    memory.setU64(entry, low | noise(random, kind, 8, 4))
    const pasid = BigInt(random.chance(0.8) ? random.pick([0, 1, 6, 7, 64, 448]) : random.u32())
    memory.setU64(entry + 8, (pasid & 0xfffffn) | noise(random, kind, 63, 20))
    memory.setU64(entry + 16, noise(random, kind, 63, 0))
    memory.setU64(entry + 24, noise(random, kind, 63, 0))
  }
}

function pasidDirectory(
  memory: PlainMemory,
  random: Random,
  kind: SoupKind,
  roles: Roles,
  at: number,
): void {
  for (let slot = 0; slot < 512; slot++) {
    const present = random.chance(0.97) ? 1n : 0n
    const fpd = random.chance(0.03) ? 2n : 0n
    const low = address(random, kind, roles.pasid) | present | fpd
    memory.setU64(at + slot * 8, low | noise(random, kind, 11, 2))
  }
}

function pasidEntries(
  memory: PlainMemory,
  random: Random,
  kind: SoupKind,
  roles: Roles,
  at: number,
): void {
  for (let slot = 0; slot < 64; slot++) {
    const entry = at + slot * 64
    const present = random.chance(0.97) ? 1n : 0n
    const fpd = random.chance(0.03) ? 2n : 0n
    const width = someWidth(random, kind) << 2n
    const type = BigInt(random.pick([1, 1, 1, 2, 2, 2, 3, 3, 3, 4, random.below(8)])) << 6n
    const second = kind.secondStage ? address(random, kind, roles.paging) | width : 0n
    memory.setU64(entry, second | present | fpd | type | noise(random, kind, 11, 9))
    memory.setU64(entry + 8, BigInt(random.below(4)) | noise(random, kind, 63, 16))
    const mode = BigInt(random.pick([0, 0, 0, 0, 0, 1, 1, 2])) << 2n
    const first = kind.firstStage ? address(random, kind, roles.paging) | mode : 0n
    memory.setU64(entry + 16, first | noise(random, kind, 11, 0))
    memory.setU64(entry + 24 + 8 * random.below(5), noise(random, kind, 63, 0))
  }
}

/** AW: mostly that of the unit, or 39 bits, which every unit has. */
function someWidth(random: Random, kind: SoupKind): bigint {
  const widest = (kind.addressWidth - 30) / 9
  return BigInt(random.pick([widest, widest, widest, 1, 1, 1, 1, 2, 3, random.below(8)]))
}

/** A page of memory, mostly. */
function address(random: Random, kind: SoupKind, pages: readonly number[]): bigint {
  if (!random.chance(kind.faults)) return BigInt(random.pick(pages)) << 12n
  const wild = random.u64() & 0x000ffffffffff000n
  return random.chance(0.5) ? wild : wild & ((1n << BigInt(kind.hostAddressWidth)) - 1n)
}

/** Rarely, one bit between `low` and `high`. */
function noise(random: Random, kind: SoupKind, high: number, low: number): bigint {
  return random.chance(kind.faults) ? 1n << BigInt(low + random.below(high - low + 1)) : 0n
}

/** An iova that uses the filled slots at every level; now and then any at all. */
export function someIova(random: Random): bigint {
  if (random.chance(0.03)) return random.u64()
  let iova = BigInt(random.below(4096))
  for (let level = 1; level <= 5; level++) {
    iova |= BigInt(random.pick(SLOTS)) << BigInt(12 + 9 * (level - 1))
  }
  const width = BigInt(random.pick([30, 30, 39, 39, 39, 39, 48, 48, 57]))
  iova &= (1n << width) - 1n
  if (random.chance(0.02)) return 0xfee00000n - 0x2000n + BigInt(random.below(0x104000))
  const negative = (iova >> (width - 1n)) & 1n
  return negative === 1n && random.chance(0.5)
    ? BigInt.asUintN(64, BigInt.asIntN(Number(width), iova))
    : iova
}

/**
 * The walk of second-stage tables (VT-d 5.10, 3.7 and 9.8), in numbers: the hot path of a miss.
 *
 * A page number has up to 52 bits, more than a bit operation takes, so the walk splits it once
 * into the index bits of levels 1 to 3 and those of levels 4 and 5. Not here: which table belongs
 * to a request (`root-context.ts`, `pasid-table.ts`), and the interrupt window.
 */
import type { AccessBits } from '../../address'
import { layout } from '../../bits'
import type { PageTranslation } from '../../memory/address-space'
import type { TableMemory, TableRegion } from '../table-memory'
import type { Capabilities } from './capabilities'
import { CODE } from './faults'
import type { WalkTrace } from './walk-trace'

/** VT-d 5.10 9.8. What hardware ignores is named IGN; ADDR is checked against the host's width. */
export const SECOND_STAGE_ENTRY = layout(64, [
  { name: 'R', from: 0, to: 0 },
  { name: 'W', from: 1, to: 1 },
  { name: 'IGN1', from: 2, to: 6 },
  { name: 'PS', from: 7, to: 7 },
  { name: 'IGN2', from: 8, to: 10 },
  { name: 'SNP', from: 11, to: 11 },
  { name: 'ADDR', from: 12, to: 51 },
  { name: 'IGN3', from: 52, to: 61 },
  { name: 'TM', from: 62, to: 62 },
  { name: 'IGN4', from: 63, to: 63 },
])

const { R, W, PS, SNP, ADDR, TM } = SECOND_STAGE_ENTRY.field
/** An entry has R and W where `AccessBits` has them. */
const W_BIT = W.mask()
const BOTH = R.mask() | W_BIT
const LEAF = PS.mask()
const ADDR_HIGH = ADDR.mask(1)

/** Index bits of levels 1 to 3 are below, those of levels 4 and 5 above. */
const LOW_LEVELS = 2 ** 27
/** An entry that changes under its reader is read again, this often. */
const READS = 4

/** The codes that a walk ends with; legacy and scalable mode number them differently. */
export interface SecondStageCodes {
  /** For neither R nor W over all levels. 0: legacy mode has those for a refused access only. */
  readonly notPresent: number
  readonly readDenied: number
  readonly writeDenied: number
  readonly reserved: number
  readonly access: number
  readonly rootAccess: number
}

export const LEGACY_CODES: SecondStageCodes = {
  notPresent: 0,
  readDenied: CODE['read-denied'],
  writeDenied: CODE['write-denied'],
  reserved: CODE['paging-reserved'],
  access: CODE['table-access'],
  rootAccess: CODE['context-invalid'],
}

export const SCALABLE_CODES: SecondStageCodes = {
  notPresent: CODE['ss-not-present'],
  readDenied: CODE['sm-read-denied'],
  writeDenied: CODE['sm-write-denied'],
  reserved: CODE['ss-reserved'],
  access: CODE['ss-access'],
  rootAccess: CODE['ss-root-access'],
}

/** What an entry must not set, by level (1 to 5) and by whether it is a leaf: two words each. */
export class SecondStageRules {
  readonly codes: SecondStageCodes
  readonly leafLevel: number
  /** Whether a leaf may bring its neighbours: QEMU's answers are those of one leaf. */
  readonly widens: boolean
  readonly reserved: Int32Array

  constructor(has: Capabilities, codes: SecondStageCodes) {
    this.codes = codes
    this.leafLevel = has.leafLevel
    this.widens = !has.qemu
    this.reserved = new Int32Array(6 * 4)
    const beyondHost = ADDR.bits & ~((1n << BigInt(has.hostAddressWidth)) - 1n)
    const snoop = has.snoopControl || (has.qemu && has.scalable) ? 0n : SNP.bits
    const transient = has.qemu && has.deviceTlb ? 0n : TM.bits
    for (let level = 1; level <= 5; level++) {
      const table = beyondHost | SNP.bits | TM.bits | (level > has.leafLevel ? PS.bits : 0n)
      const offset = ((1n << BigInt(9 * (level - 1))) - 1n) << BigInt(ADDR.from)
      const leaf = beyondHost | snoop | transient | offset
      this.#set(level, 0, level === 1 ? leaf : table)
      this.#set(level, 1, leaf)
    }
  }

  #set(level: number, leaf: 0 | 1, mask: bigint): void {
    this.reserved[level * 4 + leaf * 2] = Number(BigInt.asIntN(32, mask))
    this.reserved[level * 4 + leaf * 2 + 1] = Number(BigInt.asIntN(32, mask >> 32n))
  }
}

/**
 * Walks from the table at page `root` to the leaf that translates `page`, and fills `out` with
 * the whole leaf and the access that every level grants.
 *
 * @param page below 2^(9 * levels)
 * @param wanted none asks for whatever is granted, as long as it is something
 * @returns 0, or a code of the rules
 */
export function walkSecondStage(
  memory: TableMemory,
  rules: SecondStageRules,
  root: number,
  levels: number,
  page: number,
  wanted: AccessBits,
  out: PageTranslation,
  trace?: WalkTrace,
): number {
  const { codes, reserved, leafLevel } = rules
  const high = Math.floor(page / LOW_LEVELS)
  const low = page - high * LOW_LEVELS
  let table = root
  let granted: number = BOTH
  let region: TableRegion | undefined
  for (let level = levels; ; level--) {
    const index = (level > 3 ? high >> (9 * (level - 4)) : low >> (9 * (level - 1))) & 511
    const at = table * 4096 + index * 8
    if (trace !== undefined) trace.entry('second-stage entry', at, level)
    if (region === undefined || at < region.start || at >= region.end) {
      region = memory.find(at)
      if (region === undefined) return level === levels ? codes.rootAccess : codes.access
    }
    const { u32 } = region
    const word = (at - region.start) >>> 2
    let entry = u32[word]
    let entryHigh = u32[word + 1]
    for (let reads = 1; u32[word] !== entry && reads < READS; reads++) {
      entry = u32[word]
      entryHigh = u32[word + 1]
    }
    granted &= entry & BOTH
    if (granted === 0 || (granted & wanted) !== wanted) {
      if (granted === 0 && codes.notPresent !== 0) return codes.notPresent
      return (wanted & ~granted & W_BIT) !== 0 ? codes.writeDenied : codes.readDenied
    }
    const leaf = level === 1 || ((entry & LEAF) !== 0 && level <= leafLevel)
    const rule = level * 4 + (leaf ? 2 : 0)
    if ((entry & reserved[rule]) !== 0 || (entryHigh & reserved[rule + 1]) !== 0) {
      return codes.reserved
    }
    const target = (entryHigh & ADDR_HIGH) * 0x100000 + (entry >>> 12)
    if (leaf) {
      const pages = 1 << (9 * (level - 1))
      const offset = low & (pages - 1)
      out.firstPage = page - offset
      out.lastPage = out.firstPage + pages - 1
      out.gpaPage = target
      out.access = granted as AccessBits
      if (level === 1 && rules.widens) widen(region, at, entry, entryHigh, out)
      return 0
    }
    table = target
  }
}

/**
 * Adds to a leaf of 4 KiB what its own table maps on beside it: entries that differ from it in the
 * address alone, by as many pages. They are valid as it is, and granted through the same tables.
 * @param at guest-physical address of the leaf's entry, which lies in the region
 */
function widen(
  region: TableRegion,
  at: number,
  entry: number,
  entryHigh: number,
  out: PageTranslation,
): void {
  const { above: wantedAbove = 0, below: wantedBelow = 0 } = out
  if (wantedAbove + wantedBelow === 0) return
  const { u32, start, end } = region
  const word = (at - start) >>> 2
  const index = (at >>> 3) & 511
  // Where the lower word of the address has no carry, within the table and what is known of it.
  const address = entry >>> 12
  const most = Math.min(wantedAbove, 511 - index, 0xfffff - address, (end - at) / 8 - 1)
  const least = Math.min(wantedBelow, index, address, (at - start) / 8)
  let above = 0
  while (above < most && maps(u32, word, entry, entryHigh, above + 1)) above++
  let below = 0
  while (below < least && maps(u32, word, entry, entryHigh, -below - 1)) below++
  out.firstPage -= below
  out.lastPage += above
  out.gpaPage -= below
}

/** Whether the entry `by` further on is that of the page `by` further on. */
function maps(u32: Uint32Array, word: number, entry: number, high: number, by: number): boolean {
  const at = word + 2 * by
  const expected = (entry + by * 4096) >>> 0
  return u32[at] === expected && u32[at + 1] === high && u32[at] === expected
}

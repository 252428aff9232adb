/**
 * Guest memory that a ring's driver owns: its parts and indirect tables as words to write.
 */
import { PAGE_SHIFT } from '../address'
import type { ByteSpace, RegionViews } from './dma-view'

/** 4 KiB pages that 32 bits of an address name. */
const PAGES_PER_HIGH_WORD = 2 ** 20

/** Words of 32 bits; for descriptors `addr` low, `addr` high, `len`, `flags` and `next`. */
export interface WordTable {
  readonly words: Uint32Array
  /** Index of the first word. */
  readonly base: number
}

/**
 * Writes a 64-bit address.
 * @param page 4 KiB page, 0 to 2^52-1; `offset` is the byte within it
 */
export function writeAddress(words: Uint32Array, word: number, page: number, offset: number): void {
  if (page < PAGES_PER_HIGH_WORD) {
    words[word] = (page << PAGE_SHIFT) | offset
    words[word + 1] = 0
    return
  }
  const high = Math.floor(page / PAGES_PER_HIGH_WORD)
  words[word] = ((page - high * PAGES_PER_HIGH_WORD) << PAGE_SHIFT) | offset
  words[word + 1] = high
}

/** The region that holds a part, and the byte of it at which the part begins. */
export interface RingPart {
  readonly views: RegionViews
  readonly at: number
}

/**
 * Finds a part and clears it.
 * @throws RangeError for one that is misaligned or not in memory as a whole
 */
export function clearedPart(
  memory: ByteSpace,
  address: bigint,
  bytes: number,
  alignment: number,
  name: string,
): RingPart {
  const start = Number(address)
  if (start % alignment !== 0) {
    throw new RangeError(`${name} must be aligned to ${alignment}: 0x${address.toString(16)}`)
  }
  const views = memory.find(start)
  if (views === undefined || start + bytes > views.end) {
    throw new RangeError(`${name} is not in memory as a whole: 0x${address.toString(16)}`)
  }
  const at = start - views.start
  views.u8.fill(0, at, at + bytes)
  return { views, at }
}

/**
 * One chain of descriptors as a device reads it, and the rules that it is refused by. Every buffer
 * of it is an allegation: an address, a length and a direction that nobody has followed yet.
 */
import type { AccessBits } from '../address'
import { VIRTQ_DESC_F_WRITE } from './ring-layout'

/** 4 KiB pages that 32 bits of an address name. */
const PAGES_PER_HIGH_WORD = 2 ** 20
const LAST_HIGH_WORD = 0xffffffff
const MAX_CHAIN_BYTES = 2 ** 32

/**
 * Why a chain or a ring was refused.
 *
 * `misaligned`: a ring part is not aligned as 2.7 wants it, or an indirect table not to 4 bytes.
 * `unmapped`: a part or table may not be read or written; `Chain.refusedPage` says where.
 * `avail-index`: more chains offered than the ring has (2.7.13.3). `head`, `next`: index past the
 * table. `loop`: more descriptors than the table has (2.7.5.2). `length`: an empty buffer, or over
 * 2^32 bytes in all (2.7.5.2). `wrap`: a buffer reaches over the end of the address space. `order`:
 * readable after writable (2.7.4.2). `indirect`: not negotiated, inside a table, with NEXT
 * (2.7.5.3.1), or a table whose length is no positive multiple of 16.
 */
export type ChainRefusal =
  | 'misaligned'
  | 'unmapped'
  | 'avail-index'
  | 'head'
  | 'next'
  | 'loop'
  | 'length'
  | 'wrap'
  | 'order'
  | 'indirect'

/** One chain, as far as it was read. The arrays are reused; `count` of them are valid. */
export class Chain {
  head = 0
  count = 0
  /** 4 KiB page of each buffer's device address, the byte within it, and bytes. */
  readonly page: Float64Array
  readonly offset: Uint16Array
  readonly length: Uint32Array
  /** 1 where the device may write, 0 where it may read. */
  readonly writable: Uint8Array
  readableBytes = 0
  writableBytes = 0
  refusal: ChainRefusal | undefined
  /** For `unmapped`: the page, and what was wanted. */
  refusedPage = 0
  refusedAccess: AccessBits = 0
  /**
   * The page where the indirect table begins, the byte within it, and its length; 0 bytes for none.
   */
  indirectPage = 0
  indirectOffset = 0
  indirectBytes = 0

  /** @param limit buffers that a chain may have; longer ones are refused as a `loop` */
  constructor(limit: number) {
    this.page = new Float64Array(limit)
    this.offset = new Uint16Array(limit)
    this.length = new Uint32Array(limit)
    this.writable = new Uint8Array(limit)
  }
}

/** Empties a chain before it is read. */
export function clear(chain: Chain): void {
  chain.count = 0
  chain.readableBytes = 0
  chain.writableBytes = 0
  chain.refusal = undefined
  chain.indirectBytes = 0
}

export function refuse(chain: Chain, reason: ChainRefusal): false {
  chain.refusal = reason
  return false
}

export function unmapped(chain: Chain, page: number, byte: number, wanted: AccessBits): false {
  chain.refusedPage = page + (byte >>> 12)
  chain.refusedAccess = wanted
  return refuse(chain, 'unmapped')
}

/** Adds the buffer of one descriptor. @param tail its `flags` and `next` */
export function append(
  chain: Chain,
  low: number,
  high: number,
  length: number,
  tail: number,
): boolean {
  const at = chain.count
  if (at === chain.page.length) return refuse(chain, 'loop')
  const writable = (tail & VIRTQ_DESC_F_WRITE) !== 0
  if (!writable && chain.writableBytes > 0) return refuse(chain, 'order')
  if (length === 0) return refuse(chain, 'length')
  if (chain.readableBytes + chain.writableBytes + length > MAX_CHAIN_BYTES) {
    return refuse(chain, 'length')
  }
  if (high === LAST_HIGH_WORD && low + length > MAX_CHAIN_BYTES) return refuse(chain, 'wrap')
  chain.page[at] = pageOfWords(low, high)
  chain.offset[at] = low & 0xfff
  chain.length[at] = length
  chain.writable[at] = writable ? 1 : 0
  if (writable) chain.writableBytes += length
  else chain.readableBytes += length
  chain.count = at + 1
  return true
}

/** The 4 KiB page of a 64-bit address: exact, because it is at most 2^52 - 1. */
export function pageOfWords(low: number, high: number): number {
  return high * PAGES_PER_HIGH_WORD + (low >>> 12)
}

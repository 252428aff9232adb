/**
 * What a walker needs of guest memory: where tables and queues lie. `GuestMemory` is one.
 *
 * The address comes from the guest, so that every read starts with `find`: a region, or undefined
 * for what is not memory. Regions are page aligned, and no table entry crosses a page.
 */

export interface TableRegion {
  /** Guest-physical address of the first byte. */
  readonly start: number
  /** The first byte beyond; at most 4 GiB after `start`. */
  readonly end: number
  readonly u32: Uint32Array
}

export interface TableMemory {
  /**
   * A region may be kept: one whose memory goes has its arrays detached, as `GuestMemory` does it.
   * @param at guest-physical address, 0 to 2^52-1
   */
  find(at: number): TableRegion | undefined
}

/** A 4-byte store as a device makes it: after everything before it. False where no memory is. */
export function storeWord(memory: TableMemory, at: number, value: number): boolean {
  const region = memory.find(at)
  if (region === undefined || at % 4 !== 0) return false
  Atomics.store(region.u32, (at - region.start) / 4, value)
  return true
}

/**
 * Copies `into.length` words at `at`; they must not cross a page. False where no memory is.
 * The queue and the tables belong to the guest: what was read here is not read again.
 */
export function readWords(memory: TableMemory, at: number, into: Uint32Array): boolean {
  const region = memory.find(at)
  if (region === undefined) return false
  const { u32 } = region
  const first = (at - region.start) >>> 2
  const count = into.length
  for (let i = 0; i < count; i++) into[i] = u32[first + i]
  return true
}

/**
 * Memory as a device addresses it: by gpa, or by iova through an address space.
 *
 * A window remembers where the last page led until the address space says that something was
 * invalidated, so that walking a ring costs one translation and not one per word. It holds no
 * translation across an invalidation (DESIGN R1): the generation is compared at each access.
 */
import { LAST_PAGE, PAGE_SHIFT, PAGE_SIZE, READ, READWRITE, WRITE } from '../address'
import type { AccessBits } from '../address'
import { PageTranslation } from '../memory/address-space'
import type { AddressSpace } from '../memory/address-space'

/** Bytes of guest memory that are contiguous in this process; `Region` of guest memory is one. */
export interface RegionViews {
  /** Guest-physical address of the first byte, and of the byte after the last. */
  readonly start: number
  readonly end: number
  readonly u8: Uint8Array
  readonly u16: Uint16Array
  readonly u32: Uint32Array
}

/** What a ring needs of guest memory: the region that holds a gpa, or undefined. */
export interface ByteSpace {
  /** Changes when a region found before may be gone; where it is missing, none ever goes. */
  readonly generation?: number
  find(at: number): RegionViews | undefined
}

/** Where a run of device pages leads; filled by a `DmaView`, reused by its holder. */
export class Located {
  /** Inclusive. No page is in an empty location. */
  firstPage = 1
  lastPage = 0
  access: AccessBits = 0
  /** Byte of `region` at which `firstPage` begins. */
  base = 0
  region: RegionViews = NOWHERE
}

const NOWHERE: RegionViews = {
  start: 0,
  end: 0,
  u8: new Uint8Array(0),
  u16: new Uint16Array(0),
  u32: new Uint32Array(0),
}

export interface DmaView {
  /** Changes when something located before may be gone. */
  readonly generation: number
  /** Answers false, and leaves `out` empty, where the device may not make the access. */
  locate(page: number, wanted: AccessBits, out: Located): boolean
}

/** Without an IOMMU: device addresses are gpas. */
export function physicalView(memory: ByteSpace): DmaView {
  return {
    get generation(): number {
      return memory.generation ?? 0
    },
    locate: (page, _wanted, out) => place(memory, page, page, 0, LAST_PAGE, READWRITE, out),
  }
}

/** Through an address space; refusals are recorded there, as for any device. */
export function translatedView(memory: ByteSpace, space: AddressSpace): DmaView {
  const found = new PageTranslation()
  return {
    // Neither falls, so that their sum stands still only while both do.
    get generation(): number {
      return space.generation + (memory.generation ?? 0)
    },
    locate(page, wanted, out): boolean {
      if (!space.translatePage(page, wanted, found)) return nowhere(out)
      const { firstPage, lastPage, gpaPage, access } = found
      return place(memory, page, gpaPage + (page - firstPage), firstPage, lastPage, access, out)
    },
  }
}

/** Fills `out` with the pages from `first` to `last` that lie in one region around `gpaPage`. */
function place(
  memory: ByteSpace,
  page: number,
  gpaPage: number,
  first: number,
  last: number,
  access: AccessBits,
  out: Located,
): boolean {
  const at = gpaPage * PAGE_SIZE
  const region = memory.find(at)
  if (region === undefined) return nowhere(out)
  out.region = region
  out.access = access
  out.firstPage = Math.max(first, page - (at - region.start) / PAGE_SIZE)
  out.lastPage = Math.min(last, page + (region.end - at) / PAGE_SIZE - 1)
  out.base = at - region.start - (page - out.firstPage) * PAGE_SIZE
  return true
}

function nowhere(out: Located): false {
  out.firstPage = 1
  out.lastPage = 0
  return false
}

/** A remembered location: the word accessors of one ring part or one table. */
export class DmaWindow {
  readonly #view: DmaView
  readonly #located = new Located()
  #generation = -1

  constructor(view: DmaView) {
    this.#view = view
  }

  /** Where the window looks, valid after a `reach` that did not answer -1. */
  get region(): RegionViews {
    return this.#located.region
  }

  /**
   * The byte of `region` behind a device address, or -1 where the access is refused.
   * @param page device page; `byte` counts from its beginning and may lie in a later page
   */
  reach(page: number, byte: number, wanted: AccessBits): number {
    const into = byte >>> PAGE_SHIFT
    const at = page + into
    const located = this.#located
    if (
      at < located.firstPage ||
      at > located.lastPage ||
      (located.access & wanted) !== wanted ||
      this.#generation !== this.#view.generation
    ) {
      if (!this.#locate(at, wanted)) return -1
    }
    return located.base + (at - located.firstPage) * PAGE_SIZE + (byte & (PAGE_SIZE - 1))
  }

  /** How many bytes from a reached address on are contiguous in `region`. */
  contiguous(page: number, byte: number): number {
    const at = page + (byte >>> PAGE_SHIFT)
    return (this.#located.lastPage - at + 1) * PAGE_SIZE - (byte & (PAGE_SIZE - 1))
  }

  /**
   * Copies what the device reads at an address into `into`.
   * @returns false where the access is refused; what was copied before stays
   */
  read(page: number, byte: number, into: Uint8Array, at: number, length: number): boolean {
    for (let done = 0; done < length;) {
      const from = this.reach(page, byte + done, READ)
      if (from < 0) return false
      const run = Math.min(length - done, this.contiguous(page, byte + done))
      into.set(this.region.u8.subarray(from, from + run), at + done)
      done += run
    }
    return true
  }

  /** The device writes `length` bytes of `from`. @returns as `read` */
  write(page: number, byte: number, from: Uint8Array, at: number, length: number): boolean {
    for (let done = 0; done < length;) {
      const to = this.reach(page, byte + done, WRITE)
      if (to < 0) return false
      const run = Math.min(length - done, this.contiguous(page, byte + done))
      this.region.u8.set(from.subarray(at + done, at + done + run), to)
      done += run
    }
    return true
  }

  #locate(page: number, wanted: AccessBits): boolean {
    const generation = this.#view.generation
    if (page > LAST_PAGE) return false
    const found = this.#view.locate(page, wanted, this.#located)
    this.#generation = found ? generation : -1
    return found
  }
}

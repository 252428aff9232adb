/**
 * The guest's physical memory: page-aligned regions of this process, each at a gpa.
 *
 * Inside the library a gpa is a number (at most 2^52, exact in a double); `Gpa` is for callers.
 * Every access is checked against the regions, because addresses come from the guest: the number
 * accessors answer -1 or false for what is not memory, the methods for callers throw.
 */
import { GiB, PAGE_SIZE, gpa as asGpa } from '../address'
import type { Gpa, Hva, Range } from '../address'
import { InvalidState, SystemError, succeeded } from '../errors'
import { native } from '../native'
import type { Descriptor, Mapping } from '../native'

export type HugePages = '2M' | '1G'

export interface RegionOptions {
  /** Page aligned; aligned to the huge page where one is asked for. */
  readonly gpa: Gpa | bigint | number
  /** A multiple of the page size. On Node 20 at most 4 GiB. */
  readonly bytes: number
  readonly hugePages?: HugePages
}

export interface MemoryRegion {
  readonly range: Range<Gpa>
  readonly hva: Hva
  readonly bytes: number
  /** Names the region's memory to other threads of this process (`GuestMemory.share`). */
  readonly id: number
}

/** As on q35: below 4 GiB the last GiB belongs to devices. */
const LOW_MEMORY = 3 * GiB
const HIGH_MEMORY = 4 * GiB
const HUGE = { '2M': 2 * 1024 * 1024, '1G': GiB } as const
const LAST_GPA = 2 ** 52

/** One region with its views; numbers only, for the library's own inner loops. */
class Region implements MemoryRegion {
  readonly u8: Uint8Array
  readonly u16: Uint16Array
  readonly u32: Uint32Array
  readonly hva: Hva
  readonly hvaPage: number
  readonly bytes: number
  readonly end: number

  constructor(
    /** Guest-physical address of the first byte. */
    readonly start: number,
    readonly mapping: Mapping,
  ) {
    this.bytes = mapping.byteLength
    this.end = start + this.bytes
    this.hva = mapping.address as Hva
    this.hvaPage = Number(mapping.address >> 12n)
    this.u8 = new Uint8Array(mapping.buffer)
    this.u16 = new Uint16Array(mapping.buffer)
    this.u32 = new Uint32Array(mapping.buffer)
  }

  get id(): number {
    return this.mapping.id
  }

  get range(): Range<Gpa> {
    return { first: BigInt(this.start) as Gpa, last: BigInt(this.end - 1) as Gpa }
  }
}

export class GuestMemory implements Disposable {
  readonly #regions: Region[]
  readonly #pins = new Set<object>()
  #last: Region
  #closed = false

  private constructor(regions: Region[]) {
    this.#regions = regions
    this.#last = regions[0]
  }

  /**
   * One region at `at` (0), or, when it would reach the hole that q35 has from 3 to 4 GiB, two.
   * @throws RangeError for a size that is not a positive multiple of the page size
   * @throws SystemError ENOMEM
   */
  static allocate(
    bytes: number,
    options: { readonly at?: Gpa | bigint | number; readonly hugePages?: HugePages } = {},
  ): GuestMemory {
    const at = options.at ?? 0
    const huge = options.hugePages === undefined ? {} : { hugePages: options.hugePages }
    const start = Number(asGpa(at))
    if (start >= LOW_MEMORY || start + bytes <= LOW_MEMORY) {
      return GuestMemory.fromRegions([{ gpa: at, bytes, ...huge }])
    }
    const low = LOW_MEMORY - start
    return GuestMemory.fromRegions([
      { gpa: start, bytes: low, ...huge },
      { gpa: HIGH_MEMORY, bytes: bytes - low, ...huge },
    ])
  }

  /**
   * @throws RangeError for no region, one that is not page aligned, or two that overlap
   * @throws SystemError ENOMEM
   */
  static fromRegions(regions: readonly RegionOptions[]): GuestMemory {
    const sorted = regions.map(checkedRegion).sort((a, b) => a.start - b.start)
    if (sorted.length === 0) throw new RangeError('guest memory needs at least one region')
    for (let i = 1; i < sorted.length; i++) {
      if (sorted[i].start < sorted[i - 1].start + sorted[i - 1].bytes) {
        throw new RangeError(`regions overlap at gpa 0x${sorted[i].start.toString(16)}`)
      }
    }
    const made: Region[] = []
    for (const { start, bytes, huge } of sorted) {
      const mapping = native().mapMemory(bytes, huge)
      if (typeof mapping === 'number') {
        for (const region of made) region.mapping.close()
        throw new SystemError(mapping, 'mmap', {
          hint:
            huge === 0
              ? `${bytes} bytes of guest memory`
              : `no ${huge / 1024} KiB pages free: raise nr_hugepages under /sys/kernel/mm/hugepages`,
        })
      }
      made.push(new Region(start, mapping))
    }
    return new GuestMemory(made)
  }

  /** The same memory in another thread of this process, from what `share()` gave there. */
  static fromShared(shared: SharedMemory): GuestMemory {
    const made: Region[] = []
    for (const { start, id } of shared.regions) {
      const mapping = native().openMapping(id)
      if (typeof mapping === 'number') {
        for (const region of made) region.mapping.close()
        throw new SystemError(mapping, 'mmap', { hint: 'the memory was closed by its owner' })
      }
      made.push(new Region(start, mapping))
    }
    return new GuestMemory(made)
  }

  share(): SharedMemory {
    this.#open()
    return { regions: this.#regions.map(({ start, id }) => ({ start, id })) }
  }

  get regions(): readonly MemoryRegion[] {
    return this.#regions
  }

  get bytes(): number {
    return this.#regions.reduce((sum, region) => sum + region.bytes, 0)
  }

  get closed(): boolean {
    return this.#closed
  }

  /** The widest range of memory around `range` that is contiguous in host memory, or undefined. */
  span(range: Range<Gpa>): Range<Gpa> | undefined {
    const region = this.find(Number(range.first))
    if (region === undefined || range.last < range.first) return undefined
    return Number(range.last) < region.end ? region.range : undefined
  }

  /** A window on the bytes themselves. @throws RangeError where it is not memory as a whole */
  view(at: Gpa | number, length: number): Uint8Array {
    const region = this.#contiguous(Number(at), length, 1)
    return region.u8.subarray(Number(at) - region.start, Number(at) - region.start + length)
  }

  /** The host address of a byte. @throws RangeError where it is not memory */
  hva(at: Gpa | number): Hva {
    const region = this.#contiguous(Number(at), 1, 1)
    return (region.hva + BigInt(Number(at) - region.start)) as Hva
  }

  u16(at: Gpa | number): number {
    const region = this.#contiguous(Number(at), 2, 2)
    return region.u16[(Number(at) - region.start) / 2]
  }

  u32(at: Gpa | number): number {
    const region = this.#contiguous(Number(at), 4, 4)
    return region.u32[(Number(at) - region.start) / 4]
  }

  u64(at: Gpa | number): bigint {
    const region = this.#contiguous(Number(at), 8, 8)
    const word = (Number(at) - region.start) / 4
    return (BigInt(region.u32[word + 1]) << 32n) | BigInt(region.u32[word])
  }

  setU16(at: Gpa | number, value: number): void {
    const region = this.#contiguous(Number(at), 2, 2)
    region.u16[(Number(at) - region.start) / 2] = value
  }

  setU32(at: Gpa | number, value: number): void {
    const region = this.#contiguous(Number(at), 4, 4)
    region.u32[(Number(at) - region.start) / 4] = value
  }

  /** The high word first: a walker that reads the low word, with the present bits, sees both. */
  setU64(at: Gpa | number, value: bigint): void {
    const region = this.#contiguous(Number(at), 8, 8)
    const word = (Number(at) - region.start) / 4
    region.u32[word + 1] = Number((value >> 32n) & 0xffffffffn)
    Atomics.store(region.u32, word, Number(value & 0xffffffffn))
  }

  loadAcquireU16(at: Gpa | number): number {
    const region = this.#contiguous(Number(at), 2, 2)
    return Atomics.load(region.u16, (Number(at) - region.start) / 2)
  }

  storeReleaseU16(at: Gpa | number, value: number): void {
    const region = this.#contiguous(Number(at), 2, 2)
    Atomics.store(region.u16, (Number(at) - region.start) / 2, value)
  }

  /** For inner loops: the region that holds a byte, or undefined. Remembers the last answer. */
  find(at: number): Region | undefined {
    const last = this.#last
    if (at >= last.start && at < last.end) return last
    for (const region of this.#regions) {
      if (at >= region.start && at < region.end) {
        this.#last = region
        return region
      }
    }
    return undefined
  }

  /** A device that may touch the memory: `close()` is refused until it lets go. */
  pin(holder: object, descriptor?: Descriptor): Disposable {
    this.#open()
    this.#pins.add(holder)
    if (descriptor !== undefined) {
      for (const region of this.#regions) {
        succeeded(native().hold(descriptor, region.mapping), 'hold')
      }
    }
    return { [Symbol.dispose]: () => void this.#pins.delete(holder) }
  }

  /** @throws InvalidState ERR_IN_USE while a device may touch it */
  close(): void {
    if (this.#closed) return
    if (this.#pins.size > 0) {
      throw new InvalidState(
        'ERR_IN_USE',
        'a device still uses this memory: close the device first',
      )
    }
    this.#closed = true
    for (const region of this.#regions) region.mapping.close()
  }

  [Symbol.dispose](): void {
    this.close()
  }

  #open(): void {
    if (this.#closed) throw new InvalidState('ERR_CLOSED', 'this guest memory is closed')
  }

  #contiguous(at: number, length: number, alignment: number): Region {
    const region = this.find(at)
    if (region === undefined || !(length >= 0) || at + length > region.end) {
      throw new RangeError(`gpa 0x${at.toString(16)} + ${length} is not in guest memory`)
    }
    if (at % alignment !== 0) {
      throw new RangeError(`gpa 0x${at.toString(16)} is not aligned to ${alignment}`)
    }
    if (this.#closed) this.#open()
    return region
  }
}

export type { Region }

/** What `postMessage` can carry to a Worker. */
export interface SharedMemory {
  readonly regions: readonly { readonly start: number; readonly id: number }[]
}

function checkedRegion(options: RegionOptions): { start: number; bytes: number; huge: number } {
  const start = Number(asGpa(options.gpa))
  const huge = options.hugePages === undefined ? 0 : HUGE[options.hugePages]
  const unit = huge === 0 ? PAGE_SIZE : huge
  if (!Number.isSafeInteger(options.bytes) || options.bytes <= 0 || options.bytes % unit !== 0) {
    throw new RangeError(`a region's size is a positive multiple of ${unit}: ${options.bytes}`)
  }
  if (start % unit !== 0) {
    throw new RangeError(`a region starts at a multiple of ${unit}: 0x${start.toString(16)}`)
  }
  if (start + options.bytes > LAST_GPA) throw new RangeError('a region ends below 2^52')
  return { start, bytes: options.bytes, huge }
}

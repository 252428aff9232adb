/**
 * The guest's physical memory: page-aligned regions of this process, each at a gpa.
 *
 * Inside the library a gpa is a number (at most 2^52, exact in a double); `Gpa` is for callers.
 * Every access is checked against the regions, because addresses come from the guest: `find` and
 * `span` answer undefined for what is not memory, the accessors for callers throw. Multi-byte
 * values are little-endian, as the guest's are on both hosts that the package runs on.
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

/** Where `find` looks first once the memory is closed: no address is in it. */
const NOWHERE = new Region(0, {
  buffer: new ArrayBuffer(0),
  address: 0n,
  byteLength: 0,
  id: 0,
  holders: 0,
  close: () => undefined,
})

export class GuestMemory implements Disposable {
  readonly #regions: readonly Region[]
  /** Who holds the memory: one entry per `pin`, so that a holder may pin twice. */
  readonly #pins = new Set<{ readonly holder: object }>()
  /** What `find` searches: the regions, none once closed. */
  #mapped: readonly Region[]
  #last: Region

  private constructor(regions: readonly Region[]) {
    this.#regions = regions
    this.#mapped = regions
    this.#last = regions[0]
  }

  /**
   * One region at `at` (0), or, when it would grow into the hole that q35 has from 3 to 4 GiB,
   * two. Memory that starts at 3 GiB or above is one region, as asked.
   *
   * Normal pages are committed when they are first touched; huge pages at once.
   * @throws RangeError for a size that is not a positive multiple of the page size, or for a
   * region above 4 GiB on Node 20
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
    return new GuestMemory(
      mapEach(
        sorted,
        ({ bytes, huge }) => native().mapMemory(bytes, huge),
        ({ bytes, huge }) =>
          huge === 0
            ? `${bytes} bytes of guest memory`
            : `no ${huge / 1024} KiB pages free: raise nr_hugepages under /sys/kernel/mm/hugepages`,
      ),
    )
  }

  /**
   * The same memory in another thread of this process, from what `share()` gave there. The memory
   * stays until every thread has closed it.
   * @throws SystemError ENOENT when every thread has closed it already
   */
  static fromShared(shared: SharedMemory): GuestMemory {
    if (shared.regions.length === 0) throw new RangeError('guest memory needs at least one region')
    return new GuestMemory(
      mapEach(
        shared.regions,
        ({ id }) => native().openMapping(id),
        () => 'the memory was closed by its owner',
      ),
    )
  }

  /** What another thread of this process needs for `fromShared`. @throws InvalidState ERR_CLOSED */
  share(): SharedMemory {
    this.#open()
    return { regions: this.#regions.map(({ start, id }) => ({ start, id })) }
  }

  /** In ascending order. They are told even after `close()`. */
  get regions(): readonly MemoryRegion[] {
    return this.#regions
  }

  /** Of all regions together. */
  get bytes(): number {
    return this.#regions.reduce((sum, region) => sum + region.bytes, 0)
  }

  get closed(): boolean {
    return this.#mapped.length === 0
  }

  /** The widest range of memory around `range` that is contiguous in host memory, or undefined. */
  span(range: Range<Gpa>): Range<Gpa> | undefined {
    const region = this.find(Number(range.first))
    if (region === undefined || range.last < range.first) return undefined
    return Number(range.last) < region.end ? region.range : undefined
  }

  /**
   * A window on the bytes themselves, empty once the memory is closed.
   * @throws RangeError where it is not memory as a whole
   */
  view(at: Gpa | number, length: number): Uint8Array {
    if (!Number.isInteger(length)) throw new RangeError(`a length is an integer: ${length}`)
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

  /**
   * For inner loops: the region that holds a byte, or undefined. Remembers the last answer. Not to
   * be kept without a pin: `close()` empties the views.
   */
  find(at: number): Region | undefined {
    const last = this.#last
    if (at >= last.start && at < last.end) return last
    for (const region of this.#mapped) {
      if (at >= region.start && at < region.end) {
        this.#last = region
        return region
      }
    }
    return undefined
  }

  /**
   * For a device that may touch the memory: `close()` is refused until it lets go, and with a
   * descriptor the memory stays in place until that is closed, whatever else happens. The
   * addresses that `descriptor` may give to the kernel are those of memory that it pins.
   * @throws InvalidState ERR_CLOSED
   * @throws SystemError EBADF when the descriptor is closed
   */
  pin(holder: object, descriptor?: Descriptor): Disposable {
    this.#open()
    if (descriptor !== undefined) {
      for (const region of this.#regions) {
        succeeded(native().hold(descriptor, region.mapping), 'hold')
      }
    }
    const pin = { holder }
    this.#pins.add(pin)
    return { [Symbol.dispose]: () => void this.#pins.delete(pin) }
  }

  /** A no-op the second time. @throws InvalidState ERR_IN_USE while a device may touch it */
  close(): void {
    if (this.closed) return
    if (this.#pins.size > 0) {
      throw new InvalidState(
        'ERR_IN_USE',
        'a device still uses this memory: close the device first',
      )
    }
    this.#mapped = []
    this.#last = NOWHERE
    for (const region of this.#regions) region.mapping.close()
  }

  [Symbol.dispose](): void {
    this.close()
  }

  #open(): void {
    if (this.closed) throw new InvalidState('ERR_CLOSED', 'this guest memory is closed')
  }

  #contiguous(at: number, length: number, alignment: number): Region {
    const region = this.find(at)
    if (region === undefined || length < 0 || at + length > region.end) {
      this.#open()
      throw new RangeError(`gpa 0x${at.toString(16)} + ${length} is not in guest memory`)
    }
    if (at % alignment !== 0) {
      throw new RangeError(`gpa 0x${at.toString(16)} is not a multiple of ${alignment}`)
    }
    return region
  }
}

export type { Region }

/** What `postMessage` can carry to a Worker. */
export interface SharedMemory {
  readonly regions: readonly { readonly start: number; readonly id: number }[]
}

/** All or nothing: what is mapped already is closed when one mapping is refused. */
function mapEach<Plan extends { readonly start: number }>(
  plans: readonly Plan[],
  map: (plan: Plan) => Mapping | number,
  hint: (plan: Plan) => string,
): readonly Region[] {
  const made: Region[] = []
  try {
    for (const plan of plans) {
      const mapping = map(plan)
      if (typeof mapping === 'number') throw new SystemError(mapping, 'mmap', { hint: hint(plan) })
      made.push(new Region(plan.start, mapping))
    }
  } catch (error) {
    for (const region of made) region.mapping.close()
    throw error
  }
  return made
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

/**
 * The guest's physical memory: page-aligned regions of this process, each at a gpa.
 *
 * Inside the library a gpa is a number (at most 2^52, exact in a double); `Gpa` is for callers.
 * Every access is checked against the regions, because addresses come from the guest: `find` and
 * `span` answer undefined for what is not memory, the accessors for callers throw. Multi-byte
 * values are little-endian, as the guest's are on both hosts that the package runs on.
 */
import type { InspectOptions } from 'node:util'
import { GiB, gpa as asGpa } from '../address'
import type { Gpa, Hva, Range } from '../address'
import { InvalidState, succeeded } from '../errors'
import { plain, shown, summary } from '../inspect'
import { native } from '../native'
import type { Descriptor } from '../native'
import { NOWHERE, checkedRegion, mapEach, mapNew } from './region'
import type { HugePages, MemoryRegion, Region, RegionOptions } from './region'

export type { HugePages, MemoryRegion, Region, RegionOptions } from './region'

/** As on q35: below 4 GiB the last GiB belongs to devices. */
const LOW_MEMORY = 3 * GiB
const HIGH_MEMORY = 4 * GiB

interface Pin {
  readonly holder: object
  readonly descriptor: Descriptor | undefined
  readonly changed: (() => void) | undefined
}

export class GuestMemory implements Disposable {
  #regions: readonly Region[]
  /** Who holds the memory: one entry per `pin`, so that a holder may pin twice. */
  readonly #pins = new Set<Pin>()
  /** What `find` searches: the regions, none once closed. */
  #mapped: readonly Region[]
  #last: Region
  #generation = 0
  #shared = false

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
    return new GuestMemory(mapNew(sorted))
  }

  /**
   * The same memory in another thread of this process, from what `share()` gave there. The memory
   * stays until every thread has closed it.
   * @throws SystemError ENOENT when every thread has closed it already
   */
  static fromShared(shared: SharedMemory): GuestMemory {
    if (shared.regions.length === 0) throw new RangeError('guest memory needs at least one region')
    const memory = new GuestMemory(
      mapEach(
        shared.regions,
        ({ id }) => native().openMapping(id),
        () => 'the memory was closed by its owner',
      ),
    )
    memory.#shared = true
    return memory
  }

  /** What another thread of this process needs for `fromShared`. @throws InvalidState ERR_CLOSED */
  share(): SharedMemory {
    this.#open()
    this.#shared = true
    return { regions: this.#regions.map(({ start, id }) => ({ start, id })) }
  }

  /**
   * Plugs a region in while devices may run: when it returns, all that pinned the memory reach it.
   * @throws RangeError as `fromRegions`; SystemError ENOMEM
   * @throws InvalidState ERR_CLOSED; ERR_UNSUPPORTED once the memory was shared with another thread
   * @throws what a device throws that cannot take it; the region is gone again then
   */
  add(options: RegionOptions): MemoryRegion {
    this.#changeable()
    const plan = checkedRegion(options)
    const after = plan.start + plan.bytes
    if (this.#regions.some(({ start, end }) => start < after && plan.start < end)) {
      throw new RangeError(`regions overlap at gpa 0x${plan.start.toString(16)}`)
    }
    const [region] = mapNew([plan])
    const regions = [...this.#regions, region].sort((a, b) => a.start - b.start)
    try {
      for (const { descriptor } of this.#pins) {
        if (descriptor !== undefined) succeeded(native().hold(descriptor, region.mapping), 'hold')
      }
      this.#change(regions)
    } catch (error) {
      this.#retire(region)
      throw error
    }
    return region
  }

  /**
   * Takes a region out while devices may run: when it returns, no device reaches it, and every view
   * of it is empty. Only then may the host have it back.
   * @param at the gpa at which it starts
   * @throws RangeError for what starts no region, or the only one
   * @throws InvalidState as `add`
   * @throws what a device throws that cannot do without it; the region stays then
   */
  remove(at: Gpa | bigint | number): void {
    this.#changeable()
    const region = this.#regions.find(({ start }) => start === Number(at))
    if (region === undefined) throw new RangeError(`no region starts at 0x${at.toString(16)}`)
    const regions = this.#regions.filter((one) => one !== region)
    if (regions.length === 0) throw new RangeError('guest memory needs at least one region')
    this.#change(regions)
    this.#retire(region)
  }

  /** Rises when a region comes or goes: what `find` answered before may be gone. */
  get generation(): number {
    return this.#generation
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

  /** In one piece, as a processor does: a walker in another thread never sees half an entry. */
  setU64(at: Gpa | number, value: bigint): void {
    const region = this.#contiguous(Number(at), 8, 8)
    Atomics.store(region.u64, (Number(at) - region.start) / 8, value)
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
   * Looks at a 32-bit word until it is not `value` any more, which somebody else sees to: a guest, the
   * kernel, another thread. Blocks this one, and offers its processor to others in between.
   * @param microseconds 0 to 1000; the word is looked at once at least
   * @returns whether it is another
   * @throws RangeError where it is no aligned word of memory, and for a time out of range
   */
  awaitChangeU32(at: Gpa | number, value: number, microseconds: number): boolean {
    const region = this.#contiguous(Number(at), 4, 4)
    return native().awaitChange(region.u32, Number(at) - region.start, value, microseconds)
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
   * @param changed called when a region has come, or has gone out of `find` and is about to go from
   *   the host: when it returns, nothing behind the holder reaches it. A throw refuses the change,
   *   and it is called again.
   * @throws InvalidState ERR_CLOSED
   * @throws SystemError EBADF when the descriptor is closed
   */
  pin(holder: object, descriptor?: Descriptor, changed?: () => void): Disposable {
    this.#open()
    if (descriptor !== undefined) {
      for (const region of this.#regions) {
        succeeded(native().hold(descriptor, region.mapping), 'hold')
      }
    }
    const pin = { holder, descriptor, changed }
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

  [shown](depth: number, options: InspectOptions): string {
    const fields = {
      bytes: this.#mapped.reduce((sum, { bytes }) => sum + bytes, 0),
      regions: this.#mapped.map(({ start, bytes }) =>
        plain(`0x${start.toString(16)}-0x${(start + bytes - 1).toString(16)}`),
      ),
      ...(this.#mapped.length === 0 ? { closed: true } : { pinned: this.#pins.size > 0 }),
    }
    return summary('GuestMemory', fields, depth, options)
  }

  [Symbol.dispose](): void {
    this.close()
  }

  #changeable(): void {
    this.#open()
    if (!this.#shared) return
    throw new InvalidState(
      'ERR_UNSUPPORTED',
      'memory that another thread may have cannot change: nothing would tell that thread',
    )
  }

  /** Tells every holder, and takes it back if one refuses. */
  #change(regions: readonly Region[]): void {
    const before = this.#regions
    const told: Pin[] = []
    this.#become(regions)
    try {
      for (const pin of this.#pins) {
        told.push(pin)
        pin.changed?.()
      }
    } catch (error) {
      this.#become(before)
      for (const pin of told) quietly(() => pin.changed?.())
      throw error
    }
  }

  #become(regions: readonly Region[]): void {
    this.#regions = regions
    this.#mapped = regions
    this.#last = regions[0]
    this.#generation++
  }

  /** For a region that nobody reaches any more. */
  #retire({ mapping }: Region): void {
    for (const { descriptor } of this.#pins) {
      if (descriptor !== undefined) native().letGo(descriptor, mapping)
    }
    mapping.close()
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

/** What `postMessage` can carry to a Worker. */
export interface SharedMemory {
  readonly regions: readonly { readonly start: number; readonly id: number }[]
}

/** After a refusal, which is what the caller hears of. */
function quietly(action: () => void): void {
  try {
    action()
  } catch {
    // A holder that refuses both states still pins all that it had.
  }
}

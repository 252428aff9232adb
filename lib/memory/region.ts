/**
 * One region of guest memory: page-aligned memory of this process at a gpa, and its views.
 *
 * How it comes to be, from what a caller asks for, checked. Not here: which regions a guest has,
 * and who uses them (`guest-memory.ts`).
 */
import { GiB, PAGE_SIZE, gpa as asGpa } from '../address'
import type { Gpa, Hva, Range } from '../address'
import { SystemError } from '../errors'
import { native } from '../native'
import type { Mapping } from '../native'

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

const HUGE = { '2M': 2 * 1024 * 1024, '1G': GiB } as const
const LAST_GPA = 2 ** 52

/** One region with its views; numbers only, for the library's own inner loops. */
export class Region implements MemoryRegion {
  readonly u8: Uint8Array
  readonly u16: Uint16Array
  readonly u32: Uint32Array
  readonly u64: BigUint64Array
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
    this.u64 = new BigUint64Array(mapping.buffer)
  }

  get id(): number {
    return this.mapping.id
  }

  get range(): Range<Gpa> {
    return { first: BigInt(this.start) as Gpa, last: BigInt(this.end - 1) as Gpa }
  }
}

/** Where `find` looks first once the memory is closed: no address is in it. */
export const NOWHERE = new Region(0, {
  buffer: new ArrayBuffer(0),
  address: 0n,
  byteLength: 0,
  id: 0,
  holders: 0,
  close: () => undefined,
})

export interface NewRegion {
  readonly start: number
  readonly bytes: number
  /** The size of its pages, 0 for normal ones. */
  readonly huge: number
}

export function mapNew(plans: readonly NewRegion[]): readonly Region[] {
  return mapEach(
    plans,
    ({ bytes, huge }) => native().mapMemory(bytes, huge),
    ({ bytes, huge }) =>
      huge === 0
        ? `${bytes} bytes of guest memory`
        : `no ${huge / 1024} KiB pages free: raise nr_hugepages under /sys/kernel/mm/hugepages`,
  )
}

/** All or nothing: what is mapped already is closed when one mapping is refused. */
export function mapEach<Plan extends { readonly start: number }>(
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

/** @throws RangeError for what cannot be a region */
export function checkedRegion(options: RegionOptions): NewRegion {
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

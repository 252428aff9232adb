/** Guest memory without the addon: regions of plain arrays, for tests of tables and queues. */
import type { TableMemory, TableRegion } from '../../lib/iommu/table-memory'

class PlainRegion implements TableRegion {
  readonly u32: Uint32Array
  readonly end: number

  constructor(
    readonly start: number,
    bytes: number,
  ) {
    this.u32 = new Uint32Array(bytes / 4)
    this.end = start + bytes
  }
}

export class PlainMemory implements TableMemory {
  readonly regions: readonly PlainRegion[]

  constructor(regions: readonly { readonly start: number; readonly bytes: number }[]) {
    this.regions = regions.map(({ start, bytes }) => new PlainRegion(start, bytes))
  }

  static of(bytes: number): PlainMemory {
    return new PlainMemory([{ start: 0, bytes }])
  }

  find(at: number): PlainRegion | undefined {
    return this.regions.find((region) => at >= region.start && at < region.end)
  }

  u32(at: number): number {
    const region = this.#region(at)
    return region.u32[(at - region.start) / 4]
  }

  setU32(at: number, value: number): void {
    const region = this.#region(at)
    region.u32[(at - region.start) / 4] = value
  }

  u64(at: number): bigint {
    return (BigInt(this.u32(at + 4)) << 32n) | BigInt(this.u32(at))
  }

  setU64(at: number, value: bigint): void {
    this.setU32(at, Number(value & 0xffffffffn))
    this.setU32(at + 4, Number((value >> 32n) & 0xffffffffn))
  }

  clear(): void {
    for (const region of this.regions) region.u32.fill(0)
  }

  #region(at: number): PlainRegion {
    const region = this.find(at)
    if (region === undefined) throw new RangeError(`0x${at.toString(16)} is not memory`)
    return region
  }
}

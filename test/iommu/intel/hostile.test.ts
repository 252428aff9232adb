/**
 * A guest that writes anything anywhere: nothing throws, nothing hangs, and the work of one write
 * is bounded by one queue full of descriptors. `RUNS` sets the number of operations (100,000).
 */
import { describe, expect, it } from 'vitest'
import { iova } from '../../../lib/address'
import { IntelIommu } from '../../../lib/iommu/intel/intel-iommu'
import { Random } from '../../oracle/random'
import { SOURCES, someIova, stir } from '../../oracle/table-soup'
import { PlainMemory } from '../plain-memory'

const RUNS = Number(process.env['RUNS'] ?? 100_000)
const SEED = Number(process.env['SEED'] ?? 7)
const OPERATIONS_PER_WORLD = 1000
/** VT-d 5.10 11.4.9.3: QS is at most 7, for 2^15 descriptors of 16 bytes. */
const MOST_DESCRIPTORS = 2 ** 15

const INTERESTING = [
  ...[0x18, 0x20, 0x28, 0x2c, 0x34, 0x38, 0x3c, 0x40, 0x44, 0x80, 0x88, 0x90, 0x9c, 0xa0],
  ...[0xa4, 0xa8, 0xac, 0xb8, 0xf0, 0xf8, 0xfc, 0x220, 0x228, 0x22c],
]

class World {
  readonly memory = new PlainMemory([
    { start: 0, bytes: 40 * 4096 },
    { start: 0x40000000, bytes: 8 * 4096 },
  ])
  readonly iommu: IntelIommu
  notifications = 0
  interrupts = 0

  constructor(readonly random: Random) {
    const scalableMode = random.chance(0.5)
    this.iommu = new IntelIommu(this.memory, {
      addressWidth: random.pick([39, 48, 57] as const),
      faultRecords: random.pick([1, 2, 16]),
      scalableMode,
      ...(scalableMode ? { firstStage: true, pasid: true } : {}),
      ...(random.chance(0.2) ? { compat: 'qemu' as const } : {}),
    })
    for (const source of SOURCES) {
      this.iommu.addressSpace(source).notify({ invalidate: () => this.notifications++ })
    }
    this.iommu.on('interrupt', () => this.interrupts++)
    const stages = { firstStage: scalableMode, secondStage: true }
    const kind = { addressWidth: 48, hostAddressWidth: 48, faults: 0.02, ...stages }
    stir(this.memory, random, kind, 5, scalableMode)
    this.iommu.write(0x20, 0x5000n | (scalableMode ? 0x400n : 0n), 8)
    this.iommu.write(0x18, 0x40000000n, 4)
    this.iommu.write(0x18, 0x80000000n, 4)
    this.iommu.write(0x90, 0x8000n, 8)
    this.iommu.write(0x18, 0x84000000n, 4)
  }

  /** Descriptors that are mostly good, at random places of the queue and of everything else. */
  #descriptors(): void {
    const { random, memory } = this
    for (let i = 0; i < 16; i++) {
      const at = 0x8000 + 16 * random.below(512)
      const source = BigInt(random.pick(SOURCES))
      const low =
        BigInt(random.pick([1, 1, 2, 2, 3, 3, 4, 5, 5, 6, 7, 8, 9, 0])) |
        (BigInt(random.below(4)) << 4n) |
        (BigInt(random.below(4)) << 16n) |
        (source << 32n)
      memory.setU64(at, random.chance(0.05) ? random.u64() : low)
      const high = random.chance(0.3) ? random.u64() : BigInt(random.below(40) * 4096)
      memory.setU64(at + 8, random.chance(0.5) ? high & ~0xfffn : high)
    }
  }

  step(): void {
    const { random, iommu } = this
    switch (random.below(8)) {
      case 0:
        iommu.write(random.below(0x1100), random.u64(), random.pick([1, 2, 4, 8]))
        break
      case 1:
        iommu.write(random.pick(INTERESTING), random.u64(), random.pick([4, 8]))
        break
      case 2:
        this.#descriptors()
        iommu.write(0x34, 0xffffffffn, 4)
        iommu.write(0x88, BigInt(random.below(0x2000)), random.pick([4, 8]))
        break
      case 3:
        this.memory.setU64(random.below(40 * 512) * 8, random.u64())
        break
      case 4:
        iommu.setAts(random.pick(SOURCES), random.chance(0.5))
        break
      case 5:
        iommu.write(0x18, BigInt(random.pick([0x80, 0xc0, 0x84, 0xc4, 0x04, 0x00])) << 24n, 4)
        break
      case 6:
        iommu.write(0x228, random.u64(), 8)
        expect(iommu.read(random.below(0x1100), 8)).toBeTypeOf('bigint')
        break
      default: {
        const at = iova(someIova(random))
        const result = iommu.addressSpace(random.pick(SOURCES)).translate(at, 'read')
        if (result.ok) expect(result.iova.first <= at && at <= result.iova.last).toBe(true)
      }
    }
  }
}

describe('a hostile guest', () => {
  it(`throws nothing in ${RUNS} operations, and each does bounded work`, { timeout: 0 }, () => {
    let told = 0
    let most = 0
    for (let done = 0; done < RUNS; done += OPERATIONS_PER_WORLD) {
      const world = new World(new Random(SEED + done))
      for (let i = 0; i < OPERATIONS_PER_WORLD; i++) {
        const before = world.notifications
        try {
          world.step()
        } catch (error) {
          throw new Error(`seed ${SEED + done}, operation ${i}`, { cause: error })
        }
        most = Math.max(most, world.notifications - before)
      }
      told += world.notifications
    }
    expect(told).toBeGreaterThan(RUNS / 100)
    // Two notifications per descriptor and device in QEMU's way, one otherwise.
    expect(most).toBeLessThanOrEqual(2 * SOURCES.length * MOST_DESCRIPTORS)
  })

  it('with the longest queue, all global, is done in one write that ends', () => {
    const memory = PlainMemory.of(MOST_DESCRIPTORS * 16)
    const iommu = new IntelIommu(memory)
    let told = 0
    iommu.addressSpace(0x18).notify({ invalidate: () => told++ })
    for (let i = 0; i < MOST_DESCRIPTORS; i++) memory.setU64(i * 16, 0x12n)
    iommu.write(0x90, 7n, 8)
    iommu.write(0x18, 0x04000000n, 4)
    iommu.write(0x88, BigInt((MOST_DESCRIPTORS - 1) * 16), 8)
    expect(told).toBe(MOST_DESCRIPTORS - 1)
    expect(iommu.read(0x80, 8)).toBe(BigInt((MOST_DESCRIPTORS - 1) * 16))
  })

  it('whose status writes fall into the queue itself is done as well', () => {
    const memory = PlainMemory.of(4096)
    const iommu = new IntelIommu(memory)
    for (let i = 0; i < 256; i++) {
      memory.setU64(i * 16, 0x1200000025n)
      memory.setU64(i * 16 + 8, BigInt(((i + 1) % 256) * 16))
    }
    iommu.write(0x18, 0x04000000n, 4)
    iommu.write(0x88, 0xff0n, 8)
    // Each wait turned the next descriptor into a global IOTLB invalidation with reserved bits.
    expect(iommu.read(0x80, 8)).toBe(0x10n)
    expect(iommu.read(0x34, 4)).toBe(0x10n)
  })

  it('leaves no memory behind for requests that are refused', () => {
    const memory = PlainMemory.of(40 * 4096)
    const iommu = new IntelIommu(memory)
    iommu.write(0x18, 0x80000000n, 4)
    const space = iommu.addressSpace(0x18)
    const burst = (): void => {
      for (let i = 0; i < 20_000; i++) {
        space.translate(iova(i * 4096), 'write')
        iommu.write(0x88, 0n, 4)
      }
    }
    burst()
    const before = process.memoryUsage().arrayBuffers
    burst()
    expect(process.memoryUsage().arrayBuffers - before).toBeLessThan(4 * 1024 * 1024)
    expect(iommu.listenerCount('fault')).toBe(0)
  })
})

/** Seeded randomness: a failing case is named by its seed. (mulberry32, 32 bits of state) */
export class Random {
  #state: number

  constructor(readonly seed: number) {
    this.#state = seed >>> 0
  }

  /** 0 to 2^32-1. */
  u32(): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0
    let t = this.#state
    t = Math.imul(t ^ (t >>> 15), t | 1)
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61)
    return (t ^ (t >>> 14)) >>> 0
  }

  /** 0 to `end` - 1. */
  below(end: number): number {
    return Math.floor((this.u32() / 0x100000000) * end)
  }

  chance(probability: number): boolean {
    return this.u32() < probability * 0x100000000
  }

  pick<T>(from: readonly T[]): T {
    return from[this.below(from.length)]
  }

  u64(): bigint {
    return (BigInt(this.u32()) << 32n) | BigInt(this.u32())
  }
}

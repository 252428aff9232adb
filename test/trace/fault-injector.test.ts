import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import type { AccessBits } from '../../lib/address'
import { SystemError } from '../../lib/errors'
import type { Miss } from '../../lib/iotlb/channel'
import { MissHandler } from '../../lib/iotlb/miss-handler'
import { merged } from '../../lib/iotlb/reply-policy'
import { FakeAddressSpace } from '../../lib/testing/fake-address-space'
import { FakeVhost } from '../../lib/testing/fake-channel'
import type { FakeAccess } from '../../lib/testing/fake-queue'
import { FAULT_KINDS, faulty } from '../../lib/trace/fault-injector'
import type { FaultKind, FaultyChannel } from '../../lib/trace/fault-injector'
import { HVA_PAGE, hostMemory } from '../iotlb/support'

const SEED = Number(process.env['SEED'] ?? 2016)
const RUNS = Number(process.env['RUNS'] ?? 300)

function made(
  chances: Partial<Record<FaultKind, number>>,
  seed = 1,
): { vhost: FakeVhost; channel: FaultyChannel; ask: (...pages: number[]) => void } {
  const vhost = new FakeVhost({ queues: 8 })
  const channel = faulty(vhost, { seed, chances })
  const ask = (...pages: number[]): void => {
    for (const [queue, page] of pages.entries()) {
      vhost.access(BigInt(page) << 12n, 'read', { queue })
    }
  }
  return { vhost, channel, ask }
}

const pagesOf = (misses: readonly Miss[]): number[] => misses.map(({ page }) => page)

describe('each kind of mishap', () => {
  test('none: all passes as it is', () => {
    const { vhost, channel, ask } = made({})
    ask(1, 2)
    expect(pagesOf(channel.drain())).toEqual([1, 2])
    channel.updatePages(1, 1, HVA_PAGE, 1)
    channel.invalidatePages(1, 1)
    expect(vhost.counters).toMatchObject({ updates: 1, invalidates: 1 })
    expect(channel.limit).toBe(vhost.limit)
    expect(Object.values(channel.counts).every((count) => count === 0)).toBe(true)
  })

  test('delay: a miss comes some drains late, and comes', () => {
    const { channel, ask } = made({ delay: 1 })
    ask(1)
    let drains = 0
    while (channel.drain().length === 0) drains++
    expect(drains).toBeGreaterThanOrEqual(1)
    expect(drains).toBeLessThanOrEqual(4)
    expect([channel.counts.delay, channel.held]).toEqual([1, 0])
  })

  test('delay: who waits to be called is called for what was kept back', async () => {
    const { channel, ask } = made({ delay: 1 })
    const seen: number[] = []
    const done = new Promise<void>((resolve) => {
      channel.onReadable(() => {
        seen.push(...pagesOf(channel.drain()))
        if (seen.length === 3) resolve()
      })
    })
    ask(1, 2, 3)
    await done
    expect(seen.toSorted()).toEqual([1, 2, 3])
  })

  test('double: it comes twice', () => {
    const { channel, ask } = made({ double: 1 })
    ask(1, 2)
    expect(pagesOf(channel.drain())).toEqual([1, 1, 2, 2])
  })

  test('reorder: the same, in another order', () => {
    const { channel, ask } = made({ reorder: 1 })
    ask(1, 2, 3, 4, 5, 6)
    const seen = pagesOf(channel.drain())
    expect(seen).not.toEqual([1, 2, 3, 4, 5, 6])
    expect(seen.toSorted()).toEqual([1, 2, 3, 4, 5, 6])
  })

  test('drop-update: who writes it hears nothing', () => {
    const { vhost, channel } = made({ 'drop-update': 1 })
    channel.updatePages(1, 1, HVA_PAGE, 1)
    expect([vhost.entries, channel.counts['drop-update']]).toEqual([[], 1])
  })

  test('evict: the device holds nothing any more', () => {
    const { vhost, channel } = made({ evict: 1 })
    vhost.updatePages(1, 1, HVA_PAGE, 1)
    vhost.updatePages(2 ** 52 - 1, 2 ** 52 - 1, HVA_PAGE, 1)
    channel.drain()
    expect(vhost.entries).toEqual([])
  })

  test.each(FAULT_KINDS.filter((kind) => kind.includes(' ')))('%s', (kind) => {
    const [operation, code] = kind.split(' ')
    const { vhost, channel, ask } = made({ [kind]: 1 })
    ask(1)
    const perform = {
      drain: () => channel.drain(),
      update: () => {
        channel.updatePages(1, 1, HVA_PAGE, 1)
      },
      invalidate: () => {
        channel.invalidatePages(1, 1)
      },
    }[operation as 'drain' | 'update' | 'invalidate']
    const effects = new Set<boolean>()
    for (let i = 0; i < 20; i++) {
      const before = vhost.counters.updates + vhost.counters.invalidates
      expect(perform).toThrow(SystemError)
      expect(perform).toThrow(expect.objectContaining({ code }) as Error)
      effects.add(vhost.counters.updates + vhost.counters.invalidates > before)
    }
    expect(channel.counts[kind]).toBe(40)
    // A refused write may have had its effect; what is not read stays to be read.
    expect(effects.has(true)).toBe(operation !== 'drain')
    channel.calm()
    expect(pagesOf(channel.drain())).toEqual([1])
  })

  test('a chance that is none is refused', () => {
    expect(() => made({ delay: 2 })).toThrow(/delay 2/)
    expect(() => made({ evict: Number.NaN })).toThrow(RangeError)
  })
})

test('the same seed, the same mishaps; another, others', () => {
  const run = (seed: number): string => {
    const { vhost, channel } = made({ delay: 0.3, double: 0.3, reorder: 0.5, evict: 0.1 }, seed)
    const seen: number[][] = []
    for (let i = 0; i < 50; i++) {
      for (let queue = 0; queue < 8; queue++) vhost.kick(queue)
      vhost.access(BigInt(i) << 12n, 'read', { queue: i % 8 })
      seen.push(pagesOf(channel.drain()))
    }
    return JSON.stringify([seen, channel.counts])
  }
  expect(run(7)).toBe(run(7))
  expect(run(7)).not.toBe(run(8))
})

const PAGES = 16
const QUEUES = 4

const page = fc.integer({ min: 0, max: PAGES - 1 })
const pages = fc.integer({ min: 1, max: 4 })
const step = fc.oneof(
  { weight: 3, arbitrary: fc.tuple(fc.constant('map' as const), page, pages, fc.nat(40)) },
  { weight: 2, arbitrary: fc.tuple(fc.constant('unmap' as const), page, pages, fc.nat(0)) },
  { weight: 6, arbitrary: fc.tuple(fc.constant('access' as const), page, pages, fc.nat(2)) },
  { weight: 2, arbitrary: fc.tuple(fc.constant('kick' as const), page, pages, fc.nat(2)) },
)
type Step = typeof step extends fc.Arbitrary<infer T> ? T : never

const chance = fc.constantFrom(0, 0, 0, 0, 0, 0, 0.1, 0.3)
const chances = fc
  .tuple(...FAULT_KINDS.map(() => chance))
  .map((drawn) => Object.fromEntries(FAULT_KINDS.map((kind, i) => [kind, drawn[i]])))

/** A guest, a handler and a device, with a channel between them on which anything may go wrong. */
class World {
  readonly vhost = new FakeVhost({ limit: 8, queues: QUEUES })
  readonly channel: FaultyChannel
  readonly space = new FakeAddressSpace()
  readonly handler: MissHandler
  readonly accesses: { readonly access: FakeAccess; readonly page: number }[] = []
  /** What the device may hold of a page: what it was mapped to since it was last taken back. */
  readonly #allowed = new Map<number, Set<number>>()
  readonly #mapped = new Set<number>()

  constructor(seed: number, faults: Partial<Record<FaultKind, number>>) {
    this.channel = faulty(this.vhost, { seed, chances: faults })
    this.handler = new MissHandler({
      channel: this.channel,
      addressSpace: this.space,
      memory: hostMemory({ gpaPage: 0, pages: 64 }),
      reply: merged(4 * 4096),
      split: true,
      onError: (error) => {
        expect(error).toBeInstanceOf(SystemError)
      },
    })
  }

  take([what, first, count, number]: Step): void {
    const last = Math.min(first + count, PAGES) - 1
    if (what === 'map') {
      // A guest that maps over a mapping takes the old one back first.
      this.#unmap(first, last)
      this.space.mapPages(first, last, number, 3)
      for (let page = first; page <= last; page++) {
        this.#mapped.add(page)
        const before = this.#allowed.get(page) ?? new Set()
        this.#allowed.set(page, before.add(HVA_PAGE + number + page - first))
      }
    } else if (what === 'unmap') {
      this.#unmap(first, last)
    } else if (what === 'access') {
      for (let page = first; page <= last; page++) {
        const queue = (number + page) % QUEUES
        const access = this.vhost.access(BigInt(page) << 12n, 'write', { queue })
        this.accesses.push({ access, page })
      }
    } else {
      this.vhost.kick(number % QUEUES)
    }
    for (let turns = 0; turns < 20; turns++) this.handler.handle()
  }

  /** The faults are over: what a watchdog's look does is enough to set all going again. */
  recover(): void {
    this.channel.calm()
    for (let round = 0; round < 3 * PAGES + this.accesses.length; round++) {
      this.handler.handle()
      this.handler.retry()
      for (let queue = 0; queue < QUEUES; queue++) this.vhost.kick(queue)
    }
    this.handler.handle()
  }

  /** An invalidation that was refused is not complete; the page stays what it was to the device. */
  #unmap(first: number, last: number): void {
    this.space.unmapPages(first, last)
    for (let page = first; page <= last; page++) this.#mapped.delete(page)
    try {
      this.space.invalidatePages(first, last)
      for (let page = first; page <= last; page++) this.#allowed.delete(page)
    } catch (error) {
      expect(error).toBeInstanceOf(SystemError)
    }
  }

  noOverlap(): void {
    const sorted = this.vhost.entries.toSorted((a, b) => Number(a.iova.first - b.iova.first))
    for (let i = 1; i < sorted.length; i++) {
      expect(sorted[i].iova.first > sorted[i - 1].iova.last).toBe(true)
    }
  }

  nothingStale(): void {
    for (const { iova, hva } of this.vhost.entries) {
      const first = Number(iova.first >> 12n)
      for (let page = first; page <= Number(iova.last >> 12n); page++) {
        const held = Number(hva >> 12n) + page - first
        expect(this.#allowed.get(page)?.has(held), `page ${page}`).toBe(true)
      }
    }
  }

  /** Every entry of the device is one that the shadow knows, unless the table is in doubt. */
  shadowHoldsAll(): void {
    for (const { iova, access } of this.vhost.entries) {
      const bits = ['none', 'read', 'write', 'readwrite'].indexOf(access) as AccessBits
      const first = Number(iova.first >> 12n)
      expect(this.handler.covers(first, Number(iova.last >> 12n), bits)).toBe(true)
    }
  }

  /** Of each queue, the access that it stands at is one that nobody mapped. */
  nobodySleeps(): void {
    for (const { access, page } of this.accesses) {
      if (access.state === 'done' || !this.#mapped.has(page)) continue
      // It waits behind another one of its queue, which is not mapped.
      const blocked = this.accesses.some(
        (other) => other.access.state !== 'done' && !this.#mapped.has(other.page),
      )
      expect(blocked, `the access of page ${page} sleeps`).toBe(true)
    }
  }
}

describe('whatever goes wrong, in whatever order', () => {
  test('no entry overlaps or is stale, and when it is over, nobody sleeps', () => {
    const injected = Object.fromEntries(FAULT_KINDS.map((kind) => [kind, 0]))
    fc.assert(
      fc.property(
        fc.integer(),
        chances,
        fc.array(step, { maxLength: 60, size: 'max' }),
        (seed, faults, steps) => {
          const world = new World(seed, faults)
          for (const each of steps) {
            world.take(each)
            world.noOverlap()
            world.nothingStale()
          }
          world.recover()
          // All that was refused, and still is mapped, is taken back by a guest that tries again.
          world.space.invalidatePages()
          world.recover()
          world.noOverlap()
          world.shadowHoldsAll()
          world.nobodySleeps()
          for (const [kind, count] of Object.entries(world.channel.counts)) injected[kind] += count
        },
      ),
      { numRuns: RUNS, seed: SEED },
    )
    // Each kind had its chance.
    for (const kind of FAULT_KINDS) expect(injected[kind], kind).toBeGreaterThan(RUNS / 20)
  })
})

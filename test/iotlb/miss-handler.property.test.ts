/**
 * The rules of the miss loop under whatever a guest may do, against a model that keeps its tables
 * page by page in BigInt and remembers what each page was mapped to since its last invalidation.
 */
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { READ, READWRITE, WRITE } from '../../lib/address'
import type { AccessBits } from '../../lib/address'
import { MissHandler } from '../../lib/iotlb/miss-handler'
import { exact, merged } from '../../lib/iotlb/reply-policy'
import { FakeAddressSpace } from '../../lib/testing/fake-address-space'
import { FakeVhost } from '../../lib/testing/fake-channel'
import type { FakeAccess } from '../../lib/testing/fake-queue'
import { LookedInto, Refusing, byte, hostMemory } from './support'

/** Fixed, so that a run says the same tomorrow; any other number must pass too. */
const SEED = Number(process.env['SEED'] ?? 2016)
const RUNS = Number(process.env['RUNS'] ?? 300)
const TURNS = 100
const PAGES = 24
const QUEUES = 3
/** Guest-physical pages 0 to 15 and 20 to 35 are memory; the two lie side by side in the host. */
const LOW = { gpaPage: 0, pages: 16, hvaPage: 0x7f00_0000_0 }
const HIGH = { gpaPage: 20, pages: 16, hvaPage: 0x7f00_0001_0 }

interface Page {
  readonly gpa: bigint
  readonly access: AccessBits
}

/** What the tables say and said. */
class Model {
  readonly #now = new Map<bigint, Page>()
  /** Each page's mappings since the last invalidation that covered it. */
  readonly #since = new Map<bigint, Page[]>()

  map(first: bigint, pages: bigint, gpa: bigint, access: AccessBits): void {
    for (let i = 0n; i < pages; i++) {
      const mapped = { gpa: gpa + i, access }
      this.#now.set(first + i, mapped)
      this.#since.set(first + i, [...(this.#since.get(first + i) ?? []), mapped])
    }
  }

  unmap(first: bigint, pages: bigint): void {
    for (let i = 0n; i < pages; i++) this.#now.delete(first + i)
  }

  invalidate(first: bigint, last: bigint): void {
    for (const page of this.#since.keys()) {
      if (page < first || page > last) continue
      const now = this.#now.get(page)
      this.#since.set(page, now === undefined ? [] : [now])
    }
  }

  /** Whether the device may hold this for a page: the tables said so, and it was not taken back. */
  allows(page: bigint, hvaPage: bigint, access: AccessBits): boolean {
    const since = this.#since.get(page) ?? []
    return since.some((one) => hostOf(one.gpa) === hvaPage && one.access === access)
  }

  grants(page: bigint, wanted: AccessBits): boolean {
    const now = this.#now.get(page)
    return now !== undefined && (now.access & wanted) === wanted && hostOf(now.gpa) !== undefined
  }
}

function hostOf(gpa: bigint): bigint | undefined {
  for (const { gpaPage, pages, hvaPage } of [LOW, HIGH]) {
    const offset = gpa - BigInt(gpaPage)
    if (offset >= 0n && offset < BigInt(pages)) return BigInt(hvaPage) + offset
  }
  return undefined
}

const page = fc.integer({ min: 0, max: PAGES - 1 })
const pages = fc.integer({ min: 1, max: 8 })
const queue = fc.integer({ min: 0, max: QUEUES - 1 })
const gpa = fc.integer({ min: 0, max: 40 })
const granted = fc.constantFrom<AccessBits>(READ, READWRITE, WRITE)
const way = fc.constantFrom('read' as const, 'write' as const)

const step = fc.oneof(
  {
    weight: 4,
    arbitrary: fc.record({ do: fc.constant('map' as const), page, pages, gpa, granted }),
  },
  {
    weight: 3,
    arbitrary: fc.record({ do: fc.constant('mapSingles' as const), page, pages, gpa, granted }),
  },
  { weight: 2, arbitrary: fc.record({ do: fc.constant('unmap' as const), page, pages }) },
  { weight: 4, arbitrary: fc.record({ do: fc.constant('invalidate' as const), page, pages }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('invalidateAll' as const) }) },
  {
    weight: 8,
    arbitrary: fc.record({
      do: fc.constant('access' as const),
      page,
      queue,
      way,
      long: fc.boolean(),
    }),
  },
  { weight: 2, arbitrary: fc.record({ do: fc.constant('kick' as const), queue }) },
  {
    weight: 1,
    arbitrary: fc.record({ do: fc.constant('preload' as const), page, pages, granted }),
  },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('prefetch' as const), page }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('retry' as const) }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('setFeatures' as const) }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('resetOwner' as const) }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('flush' as const) }) },
)
type Step = typeof step extends fc.Arbitrary<infer T> ? T : never

const setting = fc.record({
  limit: fc.constantFrom(1, 2, 3, 5, 8, 2048),
  mergedPages: fc.constantFrom(0, 1, 2, 5, 16),
  split: fc.boolean(),
  paranoid: fc.boolean(),
  /** Each queue's accesses stand in a ring that the handler looks into. */
  lookAhead: fc.constantFrom('off' as const, 'on-miss' as const, 'on-kick' as const),
  /** Where the pages lie: at the bottom, over the middle, at the top of the address space. */
  base: fc.constantFrom(0, 2 ** 51 - PAGES / 2, 2 ** 52 - PAGES),
})
type Setting = typeof setting extends fc.Arbitrary<infer T> ? T : never

/** One device, its loop and its guest, taken step by step. */
class World {
  readonly vhost: FakeVhost
  readonly channel: Refusing
  readonly space = new FakeAddressSpace()
  readonly handler: MissHandler
  readonly model = new Model()
  readonly accesses: { access: FakeAccess; queue: number }[] = []
  failures = 0
  readonly #rings: readonly LookedInto[]
  /** Queues whose misses were handled in this step, so under the tables as they are now. */
  fresh = new Set<number>()

  constructor(readonly setting: Setting) {
    const { limit, mergedPages, split, paranoid, lookAhead } = setting
    this.vhost = new FakeVhost({ limit, queues: QUEUES })
    this.channel = new Refusing(this.vhost)
    this.handler = new MissHandler({
      channel: this.channel,
      addressSpace: this.space,
      memory: hostMemory(LOW, HIGH),
      reply: mergedPages === 0 ? exact : merged(mergedPages * 4096),
      split,
      paranoid,
      lookAhead,
      onError: () => {
        this.failures++
      },
    })
    const looked = lookAhead === 'off' ? 0 : QUEUES
    this.#rings = Array.from({ length: looked }, () => new LookedInto(this.handler, 8))
  }

  take(step: Step): void {
    this.fresh.clear()
    try {
      this.#act(step)
    } catch (error) {
      if ((error as { code?: unknown }).code !== 'EFAULT') throw error
      this.failures++
    }
    // A device that refuses in step with the queue's turns could go on for ever.
    for (let turns = 0; turns < TURNS && this.vhost.turn(); turns++);
  }

  #act(step: Step): void {
    const { base } = this.setting
    const first = base + ('page' in step ? step.page : 0)
    const count = 'pages' in step ? Math.min(step.pages, base + PAGES - first) : 1
    const last = first + count - 1
    switch (step.do) {
      case 'map':
        this.space.mapPages(first, last, step.gpa, step.granted)
        this.model.map(BigInt(first), BigInt(count), BigInt(step.gpa), step.granted)
        break
      case 'mapSingles':
        for (let i = 0; i < count; i++) {
          this.space.mapPages(first + i, first + i, step.gpa + i, step.granted)
        }
        this.model.map(BigInt(first), BigInt(count), BigInt(step.gpa), step.granted)
        break
      case 'unmap':
        this.space.unmapPages(first, last)
        this.model.unmap(BigInt(first), BigInt(count))
        break
      case 'invalidate':
        this.space.invalidatePages(first, last)
        this.model.invalidate(BigInt(first), BigInt(last))
        break
      case 'invalidateAll':
        this.space.invalidatePages()
        this.model.invalidate(0n, 2n ** 52n)
        break
      case 'access':
        this.#access(first, step)
        break
      case 'kick':
        this.#rings.at(step.queue)?.outlook.kicked()
        this.vhost.kick(step.queue)
        this.fresh.add(step.queue)
        break
      case 'preload':
        if (this.handler.preload(first, last, step.granted)) {
          expect(this.handler.covers(first, last, step.granted)).toBe(true)
        }
        break
      case 'prefetch':
        this.handler.prefetch(first)
        break
      case 'retry':
        this.handler.retry()
        break
      case 'flush':
        this.handler.flush()
        this.model.invalidate(0n, 2n ** 52n)
        break
      case 'setFeatures':
        this.vhost.setFeatures()
        this.handler.reset()
        break
      case 'resetOwner':
        this.vhost.resetOwner()
        this.handler.reset()
        this.handler.forgetMisses()
        break
    }
  }

  #access(first: number, { queue, way, long }: Extract<Step, { do: 'access' }>): void {
    const { base, limit } = this.setting
    // Queues that need two entries each would push each other out of a small table for ever.
    const roomy = limit > 2 * QUEUES && first < base + PAGES - 1
    const length = long && roomy ? 4096 : 1
    const ring = this.#rings.at(queue)
    ring?.offer(byte(first, 40), length, way === 'write')
    ring?.outlook.kicked()
    const access = this.vhost.access(byte(first, 40), way, { queue, length })
    this.accesses.push({ access, queue })
    this.fresh.add(queue)
  }
}

/** (a) The shadow is the device's table, entry by entry, in the order of eviction. */
function shadowIsTable({ handler, vhost }: World): void {
  expect(handler.shadow.snapshot()).toEqual(vhost.entries)
}

/** (b) No entry grants what the tables did not since the last invalidation that covers it. */
function nothingStale({ vhost, model }: World): void {
  for (const { iova, hva, access } of vhost.entries) {
    const bits = ['none', 'read', 'write', 'readwrite'].indexOf(access) as AccessBits
    for (let page = iova.first >> 12n; page <= iova.last >> 12n; page++) {
      const hvaPage = (hva >> 12n) + page - (iova.first >> 12n)
      expect(model.allows(page, hvaPage, bits), `page ${page.toString()}`).toBe(true)
    }
  }
}

/** No two entries overlap (K3). */
function noOverlap({ vhost }: World): void {
  const sorted = [...vhost.entries].sort((a, b) => (a.iova.first < b.iova.first ? -1 : 1))
  for (let i = 1; i < sorted.length; i++) {
    expect(sorted[i].iova.first > sorted[i - 1].iova.last).toBe(true)
  }
}

/** (c) Every miss that was read is answered, or in the list. */
function noneLost({ vhost, handler }: World): void {
  const listed = new Set(handler.unanswered().map(({ iova }) => iova >> 12n))
  for (const iova of vhost.pendingIovas) expect(listed).toContain(iova >> 12n)
}

/** (d) Nobody sleeps on pages that were mapped when the miss was handled. */
function nobodySleeps({ accesses, fresh, model }: World): void {
  for (const queue of fresh) {
    const head = accesses.find(
      (one) => one.queue === queue && !['done', 'cancelled'].includes(one.access.state),
    )
    if (head?.access.state !== 'waiting') continue
    const { iova, access, length } = head.access
    const last = (iova + BigInt(length) - 1n) >> 12n
    const mapped = model.grants(iova >> 12n, access) && model.grants(last, access)
    expect(mapped, `an access of page ${(iova >> 12n).toString()} sleeps`).toBe(false)
  }
}

describe('the miss loop, whatever the guest does', () => {
  it('keeps shadow and device in step, holds nothing stale, loses no miss', () => {
    fc.assert(
      fc.property(setting, fc.array(step, { maxLength: 60, size: 'max' }), (setting, steps) => {
        const world = new World(setting)
        for (const step of steps) {
          world.take(step)
          shadowIsTable(world)
          nothingStale(world)
          noOverlap(world)
          noneLost(world)
          nobodySleeps(world)
        }
        expect([world.failures, world.vhost.unread]).toEqual([0, 0])
      }),
      { numRuns: RUNS, seed: SEED },
    )
  })

  it('holds nothing stale and loses no miss while the device refuses messages', () => {
    const refusals = fc.array(fc.constantFrom(undefined, undefined, undefined, 'lost', 'done'), {
      minLength: 1,
      maxLength: 40,
    })
    fc.assert(
      fc.property(
        setting,
        fc.array(step, { maxLength: 40, size: 'max' }),
        refusals,
        (setting, steps, how) => {
          const world = new World(setting)
          let messages = 0
          world.channel.refuse = (message) =>
            message === 'drain' ? undefined : how[messages++ % how.length]
          for (const step of steps) {
            world.take(step)
            nothingStale(world)
            noneLost(world)
          }
          world.channel.refuse = () => undefined
          world.take({ do: 'flush' })
          shadowIsTable(world)
        },
      ),
      { numRuns: RUNS, seed: SEED },
    )
  })
})

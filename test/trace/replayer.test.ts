import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { READ, READWRITE } from '../../lib/address'
import type { AccessBits } from '../../lib/address'
import { exact, merged } from '../../lib/iotlb/reply-policy'
import { GuestMemory } from '../../lib/memory/guest-memory'
import { replay } from '../../lib/trace/replayer'
import type { TraceEvent } from '../../lib/trace/event'
import { physicalView } from '../../lib/virtio/dma-view'
import { DriverQueue } from '../../lib/virtio/driver-queue'
import { byte } from '../iotlb/support'
import { recording, stored } from './support'
import type { Recording } from './support'

const PAGES = 24
const page = fc.integer({ min: 0, max: PAGES - 1 })
const pages = fc.integer({ min: 1, max: 8 })
const granted = fc.constantFrom<AccessBits>(READ, READWRITE)
const step = fc.oneof(
  { weight: 4, arbitrary: fc.record({ do: fc.constant('map' as const), page, pages, granted }) },
  { weight: 4, arbitrary: fc.record({ do: fc.constant('invalidate' as const), page, pages }) },
  {
    weight: 8,
    arbitrary: fc.record({ do: fc.constant('access' as const), page, way: fc.boolean() }),
  },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('preload' as const), page, pages }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('prefetch' as const), page }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('repair' as const), page }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('renew' as const), page }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('retry' as const) }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('lost' as const) }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('flush' as const) }) },
)
type Step = typeof step extends fc.Arbitrary<infer T> ? T : never

const setting = fc.record({
  limit: fc.constantFrom(2, 3, 5, 2048),
  mergedPages: fc.constantFrom(0, 1, 5, 16),
  split: fc.boolean(),
  paranoid: fc.boolean(),
})

function act({ space, vhost, handler }: Recording, step: Step): void {
  const first = 'page' in step ? step.page : 0
  const last = 'pages' in step ? Math.min(first + step.pages, PAGES) - 1 : first
  switch (step.do) {
    case 'map':
      for (let at = first; at <= last; at++) space.mapPages(at, at, 0x100 + at, step.granted)
      break
    case 'invalidate':
      space.unmapPages(first, last)
      space.invalidatePages(first, last)
      break
    case 'access':
      vhost.access(byte(first, 100), step.way ? 'read' : 'write', {
        ...{ length: first % 2 === 0 ? 100 : 6000, queue: first % 3 },
      })
      break
    case 'preload':
      handler.preload(first, last, READ)
      break
    case 'prefetch':
      handler.prefetch(first)
      break
    case 'repair':
      handler.repair(first, READWRITE)
      break
    case 'renew':
      handler.renew(first, READWRITE)
      break
    case 'retry':
      handler.retry()
      break
    case 'flush':
      handler.flush()
      break
    case 'lost':
      vhost.setFeatures()
      handler.reset()
  }
  for (let turns = 0; turns < 6 && vhost.turn(); turns++);
}

function messages(events: readonly TraceEvent[]): number {
  return events.filter(({ kind }) => kind === 'update' || kind === 'invalidate').length
}

describe('a replay', () => {
  it('writes what was written and holds what was held, whatever happened', () => {
    let total = 0
    fc.assert(
      fc.property(
        fc.array(step, { maxLength: 25, size: 'max' }),
        setting,
        fc.array(fc.nat(40), { maxLength: 4 }),
        (steps, { mergedPages, ...rest }, refusals) => {
          const reply = mergedPages === 0 ? exact : merged(mergedPages * 4096)
          const made = recording({ ...rest, reply })
          for (let at = 0; at < 20; at++) made.space.mapPages(at, at, 0x100 + at, READWRITE)
          let written = 0
          made.channel.refuse = (message) => {
            if (message === 'drain' || !refusals.includes(written++)) return undefined
            return written % 2 === 0 ? 'lost' : 'done'
          }
          for (const each of steps) {
            try {
              act(made, each)
            } catch (error) {
              if ((error as { code?: unknown }).code !== 'EFAULT') throw error
            }
          }
          const result = replay(stored(made.events))
          expect(result.divergence).toBeUndefined()
          expect(result.compared).toBe(messages(made.events))
          expect(result.state.devices[0].shadow).toEqual(made.handler.shadow.snapshot())
          expect(result.state.devices[0].unanswered).toEqual(made.handler.unanswered())
          expect(result.state.devices[0].stats).toEqual(made.handler.stats())
          total += result.compared
        },
      ),
      { seed: 2016, numRuns: 200 },
    )
    expect(total).toBeGreaterThan(1000)
  })

  it('looks ahead where it was looked ahead, without the rings', () => {
    using memory = GuestMemory.allocate(64 * 4096)
    const ring = { size: 64, desc: 0n, avail: 0x1000n, used: 0x2000n }
    const made = recording({ lookAhead: 'on-miss', memory })
    const driver = new DriverQueue(memory, ring)
    made.handler.lookInto(physicalView(memory), ring, 0)
    for (let i = 0; i < 20; i++) {
      made.space.mapPages(0x1000 + i, 0x1000 + i, 8 + i, READ)
      driver.add([{ address: byte(0x1000 + i), length: 100, writable: false }], i)
    }
    driver.publish()
    made.vhost.access(byte(0x1000), 'read')
    made.vhost.settle()
    expect(made.handler.stats()).toMatchObject({ misses: 1, ahead: 20 })
    const result = replay(stored(made.events))
    expect(result.divergence).toBeUndefined()
    expect(result.state.devices[0].stats).toEqual(made.handler.stats())
  })

  it('has an invalidation come in within the walk that it came in', () => {
    const made = recording()
    let once = true
    const walk = made.space.translatePage.bind(made.space)
    made.space.translatePage = (at, wanted, out) => {
      if (once) {
        once = false
        made.space.unmapPages(4, 4)
        made.space.invalidatePages(4, 4)
      }
      return walk(at, wanted, out)
    }
    made.space.mapPages(4, 4, 9, READ)
    made.vhost.access(byte(4), 'read')
    made.vhost.settle()
    made.space.mapPages(4, 4, 9, READ)
    made.handler.retry()
    expect(made.events.map(({ kind }) => kind).join(' ')).toContain('miss drain invalidation walk')
    const result = replay(stored(made.events))
    expect(result).toMatchObject({ divergence: undefined, compared: 1 })
  })

  it('stops at an event, and says what is held, what waits and what is offered then', () => {
    const made = recording()
    for (const at of [1, 2, 3]) made.space.mapPages(at, at, 0x100 + at, READ)
    for (const at of [1, 2, 3, 7]) {
      made.vhost.access(byte(at), 'read', { queue: 1 })
      made.vhost.settle()
    }
    const updates = made.events.flatMap(({ kind }, i) => (kind === 'update' ? [i] : []))
    const held = updates.map(
      (at) => replay(stored(made.events), at + 1).state.devices[0].shadow.length,
    )
    expect(held).toEqual([1, 2, 3])
    const end = replay(stored(made.events)).state
    expect(end.devices[0].unanswered).toMatchObject([{ iova: byte(7), wanted: 'read' }])
    expect(replay(stored(made.events), 5).events).toBe(5)
    expect(end.counts).toMatchObject({ miss: 4, update: 3 })
  })

  it.each([
    ['another answer', { hvaPage: 5 }],
    ['an answer elsewhere', { firstPage: 2, lastPage: 2 }],
  ])('says where it went another way: %s', (_, change) => {
    const made = recording()
    made.space.mapPages(1, 1, 0x101, READ)
    made.vhost.access(byte(1), 'read')
    made.vhost.settle()
    const at = made.events.findIndex(({ kind }) => kind === 'update')
    const events = made.events.map((event, i) => (i === at ? { ...event, ...change } : event))
    const { divergence } = replay(events)
    expect(divergence?.event).toBeGreaterThanOrEqual(at)
    expect(divergence?.got).toContain('UPDATE 0x1-0x1')
  })

  it('says so where the handler answers and then did not, or did and now does not', () => {
    const made = recording()
    made.space.mapPages(1, 1, 0x101, READ)
    made.vhost.access(byte(1), 'read')
    made.vhost.settle()
    const without = made.events.filter(({ kind }) => kind !== 'update')
    expect(replay(without).divergence?.got).toContain('UPDATE')
    const update = made.events.find(({ kind }) => kind === 'update')!
    const more = [...made.events, update]
    expect(replay(more).divergence).toMatchObject({ event: made.events.length, got: 'nothing' })
  })
})

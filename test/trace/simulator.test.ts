import { describe, expect, it } from 'vitest'
import { LAST_PAGE } from '../../lib/address'
import { exact, merged } from '../../lib/iotlb/reply-policy'
import type { TraceEvent } from '../../lib/trace/event'
import { simulate } from '../../lib/trace/simulator'
import type { SimulatedPolicy } from '../../lib/trace/simulator'

const RING = { size: 16, desc: 0x1000n, avail: 0x2000n, used: 0x3000n }
const BUFFERS = 0x100

/** A trace of one device with a sending ring on pages 1 to 3, granted before it starts. */
class Story {
  readonly events: TraceEvent[] = []
  #at = 0
  #index = 0

  constructor(limit = 2048) {
    this.add({ kind: 'handler', device: 0, requester: 0x18, limit, flags: 2 })
    this.add({ kind: 'region', gpaPage: 0, pages: 0x1000, hvaPage: 0x7000_0000 })
    this.add({ kind: 'ring', device: 0, queue: 1, ...RING })
    for (const page of [1, 2, 3]) this.mapped(page)
    for (const page of [1, 2, 3]) {
      this.add({ kind: 'preload', device: 0, firstPage: page, lastPage: page, access: 1 })
    }
  }

  add(event: Record<string, unknown>): void {
    this.events.push({ at: this.#at++, ...event } as unknown as TraceEvent)
  }

  /** The iova of a page is its gpa. */
  mapped(page: number): void {
    this.add({
      kind: 'mapped',
      device: 0,
      firstPage: page,
      lastPage: page,
      gpaPage: page,
      access: 3,
    })
  }

  /** Offers one page a chain, kicks, and sees them complete. */
  send(...pages: number[]): void {
    const chains = pages.map((page) => ({ page, index: this.#index++ }))
    for (const { page, index } of chains) {
      this.mapped(page)
      const chain = { index, head: index % 16, indirectPage: 0, buffers: [page, 0, 100, 0] }
      this.add({ kind: 'offer', device: 0, queue: 1, ...chain })
    }
    this.add({ kind: 'kick', device: 0, queue: 1 })
    for (const { index } of chains) {
      this.add({ kind: 'complete', device: 0, queue: 1, index, head: index % 16, written: 0 })
    }
  }

  takeBack(firstPage: number, lastPage: number): void {
    this.add({ kind: 'invalidation', device: 0, firstPage, lastPage, source: 0 })
  }
}

function misses(story: Story, ...policies: SimulatedPolicy[]): readonly number[] {
  return simulate(story.events, policies).map((result) => result.misses)
}

const off: SimulatedPolicy = { reply: exact, lookAhead: 'off' }

describe('simulated policies', () => {
  it('ask once for each page that is sent once, once for a burst, or never', () => {
    const story = new Story()
    for (let burst = 0; burst < 10; burst++) {
      const first = BUFFERS + burst * 8
      story.send(...Array.from({ length: 8 }, (_, i) => first + i))
      story.takeBack(first, first + 7)
    }
    expect(
      misses(
        story,
        off,
        { reply: exact, lookAhead: 'on-miss' },
        { reply: exact, lookAhead: 'on-kick' },
      ),
    ).toEqual([80, 10, 0])
  })

  it('grant neighbours that are known, and none that were taken back', () => {
    const story = new Story()
    story.send(BUFFERS, BUFFERS + 1, BUFFERS + 2, BUFFERS + 3)
    expect(misses(story, off, { reply: merged(0x4000), lookAhead: 'off' })).toEqual([4, 1])
    story.takeBack(BUFFERS, BUFFERS + 3)
    story.send(BUFFERS)
    expect(misses(story, { reply: merged(0x4000), lookAhead: 'off' })).toEqual([2])
    const [{ updates, invalidates, chains, hitRate, unknown }] = simulate(story.events, [off])
    expect({ updates, invalidates, chains, unknown }).toEqual({
      ...{ updates: 8, invalidates: 1, chains: 5, unknown: 0 },
    })
    expect(hitRate).toBe(0)
  })

  it('miss again what a smaller table has lost', () => {
    const story = new Story()
    for (let round = 0; round < 5; round++) {
      for (let i = 0; i < 12; i++) story.send(BUFFERS + i)
    }
    const [small, large] = misses(story, { ...off, entries: 8 }, off)
    expect(large).toBe(12)
    expect(small).toBeGreaterThanOrEqual(60)
  })

  it('know the rings and what is offered after an invalidation of everything', () => {
    const story = new Story()
    story.send(BUFFERS)
    story.takeBack(0, LAST_PAGE)
    story.send(BUFFERS + 1)
    const [result] = simulate(story.events, [off])
    // Both buffers, and the three parts of the ring once.
    expect(result).toMatchObject({ misses: 5, unknown: 0 })
  })

  it('count what the trace does not know', () => {
    const story = new Story()
    story.send(BUFFERS)
    const without = story.events.filter(
      (event) => event.kind !== 'mapped' || event.firstPage !== BUFFERS,
    )
    expect(simulate(without, [off])).toMatchObject([{ misses: 0, unknown: 1, chains: 1 }])
  })
})

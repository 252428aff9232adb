/** The rules of the kernel's IOTLB (K1 to K12), one by one, as the handler has to meet them. */
import { describe, expect, it } from 'vitest'
import { KiB, LAST_PAGE, READ, READWRITE, WRITE } from '../../lib/address'
import { merged } from '../../lib/iotlb/reply-policy'
import type { FakeAccess } from '../../lib/testing/fake-queue'
import { byte, hostMemory, hvaOf, loop } from './support'
import type { Loop } from './support'

const HALF = 2 ** 51

function inStep({ vhost, handler }: Loop): void {
  expect(handler.shadow.snapshot()).toEqual(vhost.entries)
}

describe('a miss', () => {
  it('is answered with the whole translation, and the access goes on where it should', () => {
    const made = loop()
    made.space.mapPages(4, 7, 100, READ)
    const access = made.vhost.access(byte(5, 12), 'read')
    made.vhost.settle()
    expect([access.state, access.hva]).toEqual(['done', hvaOf(101, 12)])
    expect(made.vhost.entries).toEqual([
      { iova: { first: byte(4), last: byte(8) - 1n }, hva: hvaOf(100), access: 'read' },
    ])
    inStep(made)
  })

  it('is answered by the event loop without anybody calling', async () => {
    const { vhost, space } = loop()
    space.mapPages(5, 5, 100, READ)
    const access = vhost.access(byte(5), 'read')
    await new Promise((resolve) => setImmediate(() => setImmediate(resolve)))
    expect(access.state).toBe('done')
  })

  it('K1: is answered also when the page was sent before it was read', () => {
    const made = loop()
    made.space.mapPages(5, 5, 100, READWRITE)
    const access = made.vhost.access(byte(5), 'read')
    expect(made.handler.preload(5, 5, READ)).toBe(true)
    expect(access.state).toBe('waiting')
    made.vhost.settle()
    expect(access.state).toBe('done')
    expect(made.vhost.entries).toHaveLength(1)
    expect(made.handler.stats()).toMatchObject({ updates: 2, invalidates: 1 })
    inStep(made)
  })

  it('K3: is answered with an entry that replaces what it overlaps, never beside it', () => {
    const made = loop()
    made.space.mapPages(3, 3, 103, READ)
    made.vhost.access(byte(3), 'read')
    made.vhost.settle()
    made.space.mapPages(0, 7, 100, READWRITE)
    const access = made.vhost.access(byte(5), 'write')
    made.vhost.settle()
    expect(access.state).toBe('done')
    expect(made.vhost.entries).toHaveLength(1)
    expect(made.vhost.access(byte(3), 'write').state).toBe('done')
    inStep(made)
  })

  it('K7: read several times at once is answered once', () => {
    const made = loop()
    made.space.mapPages(5, 5, 100, READ)
    const access = made.vhost.access(byte(5), 'read')
    for (let i = 0; i < 199; i++) made.vhost.kick()
    made.vhost.settle()
    expect(access.state).toBe('done')
    expect(made.vhost.pending).toBe(0)
    expect(made.handler.stats()).toMatchObject({
      misses: 200,
      coalesced: 199,
      updates: 1,
      invalidates: 0,
      translations: 1,
    })
  })

  it('K7: of two queues in one translation is answered once, and wakes both', () => {
    const made = loop()
    made.space.mapPages(0, 15, 100, READWRITE)
    const one = made.vhost.access(byte(5), 'read', { queue: 0 })
    const other = made.vhost.access(byte(6), 'write', { queue: 1 })
    made.vhost.settle()
    expect([one.state, other.state]).toEqual(['done', 'done'])
    expect(made.handler.stats()).toMatchObject({ misses: 2, coalesced: 1, updates: 1 })
  })

  it('K1, K7: asked while another is answered is answered again, without a second entry', () => {
    const made = loop()
    const { vhost, space } = made
    space.mapPages(5, 5, 100, READ)
    const others: FakeAccess[] = []
    const walk = space.translatePage.bind(space)
    space.translatePage = (page, wanted, out) => {
      if (others.length === 0) others.push(vhost.access(byte(5), 'read', { queue: 1 }))
      return walk(page, wanted, out)
    }
    vhost.access(byte(5), 'read')
    vhost.settle()
    expect(others.map(({ state }) => state)).toEqual(['done'])
    expect(vhost.entries).toHaveLength(1)
    expect(made.handler.stats()).toMatchObject({ misses: 2, updates: 2, invalidates: 1 })
    inStep(made)
  })

  it('K8: that asks to read is answered with the right to write, where the tables grant it', () => {
    const { vhost, space } = loop()
    const rings = {
      desc: { at: byte(16), length: 4096 },
      avail: { at: byte(17), length: 518 },
      used: { at: byte(18), length: 2054 },
    }
    for (const page of [16, 17, 18]) space.mapPages(page, page, page, READWRITE)
    expect(() => {
      vhost.setBackend(0, rings)
    }).toThrow(/EFAULT/)
    vhost.settle()
    vhost.setBackend(0, rings)
    space.mapPages(30, 30, 30, READ)
    const access = vhost.access(byte(30), 'read')
    vhost.settle()
    expect(access.state).toBe('done')
  })

  it('K8: is never answered with more than the tables grant', () => {
    const { vhost, space } = loop()
    space.mapPages(5, 5, 100, READ)
    space.mapPages(6, 6, 101, WRITE)
    vhost.access(byte(5), 'read')
    vhost.access(byte(6), 'write', { queue: 1 })
    vhost.settle()
    expect(vhost.entries.map(({ access }) => access)).toEqual(['read', 'write'])
  })

  it('in a region that ends inside the translation gets the part that is memory', () => {
    const made = loop({ memory: hostMemory({ gpaPage: 100, pages: 8 }) })
    made.space.mapPages(0, 511, 98, READWRITE)
    made.vhost.access(byte(5), 'read')
    made.vhost.settle()
    expect(made.vhost.entries).toEqual([
      { iova: { first: byte(2), last: byte(10) - 1n }, hva: hvaOf(0), access: 'readwrite' },
    ])
  })
})

describe('an invalidation', () => {
  it('takes back what the device holds before it returns (K11)', () => {
    const made = loop()
    made.space.mapPages(5, 5, 100, READ)
    made.vhost.access(byte(5), 'read')
    made.vhost.settle()
    made.space.unmapPages(5, 5)
    made.space.invalidatePages(5, 5)
    const access = made.vhost.access(byte(5), 'read')
    expect([access.state, made.vhost.entries.length]).toEqual(['waiting', 0])
    inStep(made)
  })

  it('K4: of one page makes the shadow forget all that the device dropped with it', () => {
    const made = loop()
    made.space.mapPages(0, 15, 100, READ)
    made.vhost.access(byte(0), 'read')
    made.vhost.settle()
    made.space.invalidatePages(7, 7)
    inStep(made)
    const access = made.vhost.access(byte(0), 'read')
    made.vhost.settle()
    expect(access.state).toBe('done')
  })

  it('of what the device does not hold is not sent', () => {
    const made = loop()
    made.space.mapPages(5, 5, 100, READ)
    made.vhost.access(byte(5), 'read')
    made.vhost.settle()
    made.space.invalidatePages(6, 900)
    expect(made.vhost.counters.invalidates).toBe(0)
    expect(made.handler.stats()).toMatchObject({ invalidations: 1, filtered: 1, invalidates: 0 })
  })

  it('is sent all the same by a paranoid handler', () => {
    const made = loop({ paranoid: true })
    made.space.invalidatePages(6, 900)
    made.space.invalidatePages()
    expect(made.vhost.counters.invalidates).toBe(3)
    expect(made.handler.stats()).toMatchObject({ invalidations: 2, filtered: 0, invalidates: 3 })
  })

  it('K10: of everything goes out as two halves, of which an empty one is not sent', () => {
    const made = loop()
    made.space.mapPages(HALF - 1, HALF - 1, 1, READ)
    made.space.mapPages(HALF, HALF, 2, READ)
    made.vhost.access(byte(HALF - 1), 'read', { queue: 0 })
    made.vhost.access(byte(HALF), 'read', { queue: 1 })
    made.vhost.settle()
    made.space.invalidatePages()
    expect([made.vhost.entries.length, made.vhost.counters.invalidates]).toEqual([0, 2])
    inStep(made)
    made.vhost.kick()
    made.vhost.access(byte(HALF - 1), 'read')
    made.vhost.settle()
    made.space.invalidatePages()
    expect(made.vhost.counters.invalidates).toBe(3)
  })

  it('takes bytes as well as pages, and every page that a byte is in', () => {
    const made = loop()
    made.space.mapPages(5, 5, 100, READ)
    made.vhost.access(byte(5), 'read')
    made.vhost.settle()
    made.handler.invalidate({ first: byte(4, 4095), last: byte(5, 0) } as never, 'iotlb')
    expect(made.vhost.entries).toEqual([])
  })

  it('of no range is the caller’s mistake', () => {
    const { handler } = loop()
    for (const [first, last] of [
      [2, 1],
      [-1, 1],
      [0, LAST_PAGE + 1],
      [Number.NaN, 1],
    ]) {
      expect(() => {
        handler.invalidatePages(first, last, 'iotlb')
      }).toThrow(RangeError)
    }
  })
})

describe('an invalidation of a part, with split', () => {
  const made = (): Loop => {
    const made = loop({ split: true, reply: merged(64 * KiB) })
    for (let page = 0; page < 16; page++) made.space.mapPages(page, page, 100 + page, READ)
    made.vhost.access(byte(0), 'read')
    made.vhost.settle()
    return made
  }
  const ranges = ({ vhost }: Loop): (readonly bigint[])[] =>
    vhost.entries.map(({ iova }) => [iova.first >> 12n, iova.last >> 12n])

  it('keeps what is beside it', () => {
    const it = made()
    it.space.unmapPages(5, 6)
    it.space.invalidatePages(5, 6)
    expect(ranges(it)).toEqual([
      [0n, 4n],
      [7n, 15n],
    ])
    expect(it.handler.stats()).toMatchObject({ resent: 2, updates: 3, invalidates: 1 })
    inStep(it)
  })

  it('R1: walks again for it, and keeps only what the tables grant by now', () => {
    const it = made()
    it.space.unmapPages(2, 3)
    it.space.mapPages(8, 15, 300, READ)
    it.space.unmapPages(5, 7)
    it.space.invalidatePages(5, 7)
    expect(ranges(it)).toEqual([
      [4n, 4n],
      [8n, 15n],
    ])
    expect(it.vhost.access(byte(8), 'read').hva).toBe(hvaOf(300))
    expect(it.space.faults).toEqual([])
  })

  it('sends a larger translation that is still there once, not once for each side', () => {
    const it = loop({ split: true })
    it.space.mapPages(0, 15, 100, READ)
    it.vhost.access(byte(0), 'read')
    it.vhost.settle()
    it.space.invalidatePages(7, 7)
    expect(ranges(it)).toEqual([[0n, 15n]])
    expect(it.handler.stats()).toMatchObject({ resent: 1, updates: 2, invalidates: 1 })
  })

  it('sends nothing beside it when nothing is left', () => {
    const it = made()
    it.space.unmapPages(0, 15)
    it.space.invalidatePages(7, 7)
    expect([ranges(it), it.handler.stats().resent]).toEqual([[], 0])
  })
})

describe('the device’s limit', () => {
  it('K5: is followed by the shadow, duplicate answers and all', () => {
    const made = loop({ vhost: { limit: 4 } })
    made.space.mapPages(0, 0, 100, READ)
    for (let page = 1; page < 10; page++) made.space.mapPages(page * 2, page * 2, page, READ)
    for (let page = 0; page < 10; page++) {
      made.vhost.access(byte(page * 2), 'read')
      made.vhost.settle()
      inStep(made)
    }
    expect(made.handler.stats()).toMatchObject({ evictions: 6, entries: 4, invalidates: 0 })
  })

  it('K5: never costs a ring its entry: it is written again before it is the oldest', () => {
    const made = loop({ vhost: { limit: 8 } })
    for (let page = 0; page < 40; page++) made.space.mapPages(page * 2, page * 2, page, READWRITE)
    for (const ring of [0, 2, 4]) expect(made.handler.preload(ring, ring, READWRITE)).toBe(true)
    for (let page = 3; page < 40; page++) {
      made.vhost.access(byte(page * 2), 'read')
      made.vhost.settle()
      inStep(made)
      for (const ring of [0, 2, 4]) expect(made.handler.covers(ring, ring, READWRITE)).toBe(true)
    }
    const { refreshed, misses } = made.handler.stats()
    expect(misses).toBe(37)
    expect(refreshed).toBeGreaterThan(0)
    expect(refreshed).toBeLessThanOrEqual(3 * Math.ceil(32 / 5))
  })

  it('may be as small as one', () => {
    const made = loop({ vhost: { limit: 1 } })
    made.space.mapPages(0, 0, 100, READ)
    made.space.mapPages(2, 2, 100, READ)
    expect(made.handler.preload(0, 0, READ)).toBe(true)
    const access = made.vhost.access(byte(2), 'read')
    made.vhost.settle()
    expect(access.state).toBe('done')
    inStep(made)
  })
})

describe('preload', () => {
  it('K12: grants a ring in one entry where host memory is contiguous, whatever the policy', () => {
    const made = loop()
    for (let page = 0; page < 12; page++) made.space.mapPages(page, page, 50 + page, READWRITE)
    expect(made.handler.preload(2, 9, READWRITE)).toBe(true)
    expect(made.vhost.entries).toEqual([
      { iova: { first: byte(2), last: byte(10) - 1n }, hva: hvaOf(52), access: 'readwrite' },
    ])
  })

  it('K12: makes one entry of ring parts that share a page', () => {
    const made = loop()
    for (let page = 0; page < 4; page++) made.space.mapPages(page, page, 50 + page, READWRITE)
    expect(made.handler.preload(0, 1, READ)).toBe(true)
    expect(made.handler.preload(1, 3, READWRITE)).toBe(true)
    expect(made.vhost.entries.map(({ iova }) => iova.last)).toEqual([byte(4) - 1n])
    inStep(made)
  })

  it('K12: the answer to a later miss of the ring covers all of it again', () => {
    const made = loop()
    for (let page = 0; page < 4; page++) made.space.mapPages(page, page, 50 + page, READWRITE)
    made.handler.preload(0, 3, READWRITE)
    made.space.invalidatePages()
    made.vhost.access(byte(2), 'read')
    made.vhost.settle()
    expect(made.handler.covers(0, 3, READWRITE)).toBe(true)
    expect(made.vhost.entries).toHaveLength(1)
  })

  it('two pages of a ring that host memory keeps apart do not push each other out', () => {
    const made = loop()
    made.space.mapPages(0, 0, 50, READ)
    made.space.mapPages(1, 1, 70, READ)
    expect(made.handler.preload(0, 1, READ)).toBe(true)
    made.space.invalidatePages()
    const access = made.vhost.access(byte(0, 4090), 'read', { length: 10 })
    made.vhost.settle()
    expect(access.state).toBe('done')
    expect(made.handler.stats().updates).toBe(4)
  })

  it('sends nothing where the device holds as much already', () => {
    const made = loop()
    made.space.mapPages(0, 15, 50, READWRITE)
    made.handler.preload(0, 1, READ)
    made.handler.preload(8, 9, READWRITE)
    expect(made.handler.stats()).toMatchObject({ updates: 1, invalidates: 0 })
  })

  it('replaces an entry that grants less than the tables by now', () => {
    const made = loop()
    made.space.mapPages(0, 0, 50, READ)
    expect(made.handler.preload(0, 0, READ)).toBe(true)
    expect(made.handler.preload(0, 0, READWRITE)).toBe(false)
    made.space.mapPages(0, 0, 50, READWRITE)
    expect(made.handler.preload(0, 0, READWRITE)).toBe(true)
    expect(made.vhost.access(byte(0), 'write').state).toBe('done')
    inStep(made)
  })

  it('says no where a page is missing, and leaves nothing unanswered', () => {
    const made = loop()
    made.space.mapPages(0, 0, 50, READWRITE)
    expect(made.handler.preload(0, 1, READ)).toBe(false)
    expect(made.handler.unanswered()).toEqual([])
  })
})

describe('prefetch', () => {
  it('grants what is mapped, and records no fault for what is not', () => {
    const made = loop()
    made.space.mapPages(4, 7, 50, READ)
    expect([made.handler.prefetch(5), made.handler.prefetch(8)]).toEqual([7, -1])
    expect(made.vhost.access(byte(4), 'read').state).toBe('done')
    expect(made.space.faults).toEqual([])
  })

  it('sends nothing where the device holds the page', () => {
    const made = loop()
    made.space.mapPages(4, 7, 50, READ)
    made.handler.prefetch(5)
    expect(made.handler.prefetch(6)).toBe(7)
    expect(made.handler.stats().updates).toBe(1)
  })
})

describe('repair', () => {
  it('K2: replaces an entry whose permission stopped a queue without a miss', () => {
    const made = loop()
    made.space.mapPages(5, 5, 100, READ)
    made.vhost.access(byte(5), 'read')
    made.vhost.settle()
    made.space.mapPages(5, 5, 100, READWRITE)
    const access = made.vhost.access(byte(5), 'write')
    expect([access.state, made.vhost.errors(), made.vhost.unread]).toEqual(['denied', 1, 0])
    expect(made.handler.repair(5, WRITE)).toBe('repaired')
    made.vhost.kick()
    expect(access.state).toBe('done')
    expect(made.handler.stats().repairs).toBe(1)
    inStep(made)
  })

  it('K2: says that it is a fault when the tables do not grant it either', () => {
    const faults: unknown[] = []
    const made = loop({ onFault: (miss) => faults.push(miss) })
    made.space.mapPages(5, 5, 100, READ)
    made.vhost.access(byte(5), 'read')
    made.vhost.settle()
    expect(made.handler.repair(5, WRITE)).toBe('fault')
    expect(faults).toEqual([{ iova: byte(5), wanted: 'write', cause: 'translation', code: 2 }])
    expect(made.handler.unanswered()).toEqual([])
    inStep(made)
  })

  it('touches nothing where the device may do it already', () => {
    const made = loop()
    made.space.mapPages(5, 5, 100, READ)
    made.vhost.access(byte(5), 'read')
    made.vhost.settle()
    expect(made.handler.repair(5, READ)).toBe('granted')
    expect(made.vhost.counters).toMatchObject({ updates: 1, invalidates: 0 })
  })
})

describe('reset', () => {
  it('K9: SET_FEATURES empties the table, and the shadow follows', () => {
    const made = loop()
    made.space.mapPages(5, 5, 100, READ)
    made.vhost.access(byte(5), 'read')
    made.vhost.settle()
    made.vhost.setFeatures()
    made.handler.reset()
    inStep(made)
    const access = made.vhost.access(byte(5), 'read')
    made.vhost.settle()
    expect(access.state).toBe('done')
    expect(made.handler.stats().invalidates).toBe(0)
    inStep(made)
  })

  it('K9: the misses that SET_FEATURES keeps can still be answered', () => {
    const made = loop()
    const access = made.vhost.access(byte(5), 'read')
    made.vhost.settle()
    made.vhost.setFeatures()
    made.handler.reset()
    made.space.mapPages(5, 5, 100, READ)
    expect(made.handler.retry()).toBe(1)
    expect(access.state).toBe('done')
  })

  it('K9: RESET_OWNER drops the misses too, and the handler forgets them on request', () => {
    const made = loop()
    made.vhost.access(byte(5), 'read')
    made.vhost.settle()
    made.vhost.resetOwner()
    made.handler.reset()
    made.handler.forgetMisses()
    expect(made.handler.unanswered()).toEqual([])
  })
})

describe('flush and close', () => {
  it('flush takes everything back, whatever the shadow says', () => {
    const made = loop()
    made.vhost.updatePages(77, 77, 1, READ)
    made.handler.flush()
    expect(made.vhost.entries).toEqual([])
    expect(made.handler.stats().invalidates).toBe(2)
  })

  it('close ends both subscriptions, and the handler does nothing more', () => {
    const made = loop()
    made.space.mapPages(5, 5, 100, READ)
    made.handler[Symbol.dispose]()
    made.handler.close()
    const access = made.vhost.access(byte(5), 'read')
    made.vhost.turn()
    made.handler.handle()
    made.handler.invalidatePages(0, LAST_PAGE, 'disabled')
    expect([access.state, made.vhost.unread]).toEqual(['waiting', 1])
    for (const call of [
      () => made.handler.preload(5, 5, READ),
      () => made.handler.repair(5, READ),
      () => made.handler.retry(),
      () => {
        made.handler.flush()
      },
    ]) {
      expect(call).toThrow(/closed/)
    }
  })
})

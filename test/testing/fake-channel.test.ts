import { describe, expect, it, vi } from 'vitest'
import { LAST_PAGE, READ, READWRITE, WRITE } from '../../lib/address'
import { FakeVhost } from '../../lib/testing/fake-channel'
import { byte } from '../iotlb/support'

/** drivers/vhost of Linux 6.12 is the specification here; each K is a rule of the design. */
describe('the fake vhost', () => {
  it('K1: an UPDATE wakes only misses that were read', () => {
    const vhost = new FakeVhost()
    const access = vhost.access(byte(5), 'read')
    vhost.updatePages(5, 5, 100, READ)
    expect(access.state).toBe('waiting')
    vhost.drain()
    expect(access.state).toBe('waiting')
    vhost.updatePages(5, 5, 100, READ)
    expect(access.state).toBe('done')
    expect(access.hva).toBe(byte(100))
  })

  it('K1: an UPDATE that does not cover the exact iova wakes nobody', () => {
    const vhost = new FakeVhost()
    const access = vhost.access(byte(5, 8), 'read')
    vhost.drain()
    vhost.updatePages(6, 9, 100, READ)
    expect(access.state).toBe('waiting')
    expect(vhost.pending).toBe(1)
  })

  it('K2: too little permission asks nothing, and only the error eventfd fires', () => {
    const vhost = new FakeVhost()
    vhost.updatePages(5, 5, 100, READ)
    const access = vhost.access(byte(5), 'write')
    expect(access.state).toBe('denied')
    expect(vhost.unread).toBe(0)
    expect(vhost.errors()).toBe(1)
    vhost.invalidatePages(5, 5)
    vhost.updatePages(5, 5, 100, READWRITE)
    expect(access.state).toBe('denied')
    vhost.kick()
    expect(access.state).toBe('done')
  })

  it('K3: of two entries with one start the older wins, whatever the newer allows', () => {
    const vhost = new FakeVhost()
    vhost.updatePages(5, 5, 100, READ)
    vhost.updatePages(5, 5, 200, READWRITE)
    expect(vhost.access(byte(5), 'write').state).toBe('denied')
    vhost.invalidatePages(5, 5)
    vhost.updatePages(5, 5, 200, READWRITE)
    vhost.kick()
    expect(vhost.access(byte(5), 'read').hva).toBe(byte(200))
  })

  it('K3: of two entries that overlap the one with the lower start wins', () => {
    const vhost = new FakeVhost()
    vhost.updatePages(5, 5, 100, READ)
    vhost.updatePages(4, 6, 200, READWRITE)
    expect(vhost.access(byte(5), 'write').hva).toBe(byte(201))
  })

  it('K4: an INVALIDATE of one page drops every entry that it touches, whole', () => {
    const vhost = new FakeVhost()
    vhost.updatePages(0, 15, 100, READ)
    vhost.updatePages(16, 31, 200, READ)
    vhost.invalidatePages(7, 7)
    expect(vhost.entries).toHaveLength(1)
    expect(vhost.access(byte(0), 'read').state).toBe('waiting')
    expect(vhost.access(byte(16), 'read', { queue: 1 }).state).toBe('done')
  })

  it('an INVALIDATE does not touch pending misses and wakes nobody', () => {
    const vhost = new FakeVhost()
    vhost.access(byte(5), 'read')
    vhost.drain()
    vhost.invalidatePages(5, 5)
    expect(vhost.pending).toBe(1)
    expect(vhost.counters.wakes).toBe(0)
  })

  it('K5: a full table retires the entry inserted first, hits or not, and duplicates count', () => {
    const vhost = new FakeVhost({ limit: 3 })
    vhost.updatePages(1, 1, 101, READ)
    vhost.updatePages(2, 2, 102, READ)
    vhost.updatePages(2, 2, 102, READ)
    expect(vhost.access(byte(1), 'read').state).toBe('done')
    vhost.updatePages(3, 3, 103, READ)
    expect(vhost.access(byte(1), 'read').state).toBe('waiting')
    expect(vhost.counters.evictions).toBe(1)
    expect(vhost.entries.map(({ iova }) => iova.first)).toEqual([byte(2), byte(2), byte(3)])
  })

  it('K6: unanswered misses pile up without a bound', () => {
    const vhost = new FakeVhost()
    vhost.access(byte(5), 'read')
    for (let i = 0; i < 99; i++) vhost.kick()
    expect(vhost.unread).toBe(100)
    while (vhost.drain().length > 0);
    expect(vhost.pending).toBe(100)
  })

  it('K7: each kick on a hole queues the same miss again, and one UPDATE frees them all', () => {
    const vhost = new FakeVhost()
    const access = vhost.access(byte(5, 0x10), 'write')
    vhost.kick()
    expect(vhost.drain().map(({ page, offset, access }) => [page, offset, access])).toEqual([
      [5, 0x10, WRITE],
      [5, 0x10, WRITE],
    ])
    vhost.updatePages(5, 5, 100, WRITE)
    expect(access.state).toBe('done')
    expect(vhost.pending).toBe(0)
  })

  const rings = {
    desc: { at: byte(16), length: 4096 },
    avail: { at: byte(17), length: 518 },
    used: { at: byte(18), length: 2054 },
  }

  it('K8: SET_BACKEND asks to read the used ring, which it will write', () => {
    const vhost = new FakeVhost()
    expect(() => {
      vhost.setBackend(0, rings)
    }).toThrow(/EFAULT/)
    expect(vhost.drain()).toMatchObject([{ page: 18, access: READ }])
    vhost.updatePages(16, 18, 100, READ)
    vhost.setBackend(0, rings)
    const access = vhost.access(byte(16), 'read')
    expect([access.state, vhost.unread, vhost.errors()]).toEqual(['waiting', 0, 0])
  })

  it('K9: SET_FEATURES empties the table and keeps the misses', () => {
    const vhost = new FakeVhost()
    vhost.updatePages(5, 5, 100, READ)
    vhost.access(byte(6), 'read')
    vhost.drain()
    vhost.kick()
    vhost.setFeatures()
    expect([vhost.entries.length, vhost.unread, vhost.pending]).toEqual([0, 1, 1])
  })

  it('K9: RESET_OWNER drops the table and the misses, SET_BACKEND -1 the misses of all queues', () => {
    const vhost = new FakeVhost()
    vhost.updatePages(5, 5, 100, READ)
    vhost.access(byte(6), 'read', { queue: 1 })
    vhost.setBackend(0)
    expect([vhost.entries.length, vhost.unread]).toEqual([1, 0])
    const access = vhost.access(byte(6), 'read')
    vhost.resetOwner()
    expect([vhost.entries.length, vhost.unread, access.state]).toEqual([0, 0, 'cancelled'])
  })

  it('K10: a range of 2^64 bytes cannot be said, its halves can', () => {
    const vhost = new FakeVhost()
    expect(() => {
      vhost.invalidatePages(0, LAST_PAGE)
    }).toThrow(/EINVAL/)
    vhost.updatePages(0, 0, 100, READ)
    vhost.updatePages(LAST_PAGE, LAST_PAGE, 101, READ)
    vhost.invalidatePages(0, 2 ** 51 - 1)
    vhost.invalidatePages(2 ** 51, LAST_PAGE)
    expect(vhost.entries).toEqual([])
  })

  it('K10: one drain reads 64 messages, in the order in which they were asked', () => {
    const vhost = new FakeVhost({ queues: 100 })
    for (let i = 0; i < 100; i++) vhost.access(byte(i), 'read', { queue: i })
    expect(vhost.drain().map(({ page }) => page)).toEqual(Array.from({ length: 64 }, (_, i) => i))
    expect(vhost.drain()).toHaveLength(36)
    expect(vhost.drain()).toHaveLength(0)
  })

  it('K11: when INVALIDATE has returned, no access uses the old translation', () => {
    const vhost = new FakeVhost({ worker: 'manual' })
    vhost.updatePages(5, 5, 100, READ)
    const access = vhost.access(byte(5), 'read')
    vhost.invalidatePages(5, 5)
    vhost.work()
    expect([access.state, access.hva]).toEqual(['waiting', undefined])
  })

  it('K12: a ring part in one entry is looked up once, one in two entries at each pass', () => {
    const vhost = new FakeVhost({ queues: 2 })
    const long = { ...rings, desc: { at: byte(0), length: 8192 } }
    vhost.updatePages(16, 18, 100, READWRITE)
    vhost.updatePages(0, 0, 200, READ)
    vhost.updatePages(1, 1, 201, READ)
    vhost.setBackend(0, rings)
    vhost.setBackend(1, long)
    for (let i = 0; i < 10; i++) for (const queue of [0, 1]) vhost.kick(queue)
    expect(vhost.ringLookups(0)).toBe(3)
    expect(vhost.ringLookups(1)).toBe(2 * 10 + 2)
  })

  it('a queue has one hole at a time, and a buffer over two entries is one access', () => {
    const vhost = new FakeVhost()
    const access = vhost.access(byte(5, 4000), 'read', { length: 200 })
    expect(vhost.drain()).toMatchObject([{ page: 5, offset: 4000 }])
    vhost.updatePages(5, 5, 100, READ)
    expect(vhost.drain()).toMatchObject([{ page: 6, offset: 0 }])
    vhost.updatePages(6, 6, 300, READ)
    expect([access.state, access.hva]).toEqual(['done', byte(100, 4000)])
  })

  it('a listener is called in a later turn, and again as long as misses are unread', async () => {
    const vhost = new FakeVhost()
    let left = 3
    const listener = vi.fn(() => {
      if (--left === 0) vhost.drain()
    })
    const subscription = vhost.onReadable(listener)
    vhost.access(byte(5), 'read')
    expect(listener).not.toHaveBeenCalled()
    await vi.waitFor(() => {
      expect(listener).toHaveBeenCalledTimes(3)
    })
    subscription[Symbol.dispose]()
    vhost.kick()
    await new Promise((resolve) => setTimeout(resolve, 5))
    expect(listener).toHaveBeenCalledTimes(3)
  })

  it('takes bigint ranges of whole pages only', () => {
    const vhost = new FakeVhost()
    const range = { first: byte(1), last: byte(2) - 1n }
    vhost.update(range as never, byte(9) as never, 'readwrite')
    expect(vhost.entries).toEqual([{ iova: range, hva: byte(9), access: 'readwrite' }])
    const odd = { first: byte(1, 1), last: byte(2) - 1n }
    expect(() => {
      vhost.update(odd as never, byte(9) as never, 'read')
    }).toThrow(RangeError)
  })
})

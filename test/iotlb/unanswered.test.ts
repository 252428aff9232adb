/** R6: every miss that is read is answered, or in the hands of the fault policy. */
import { describe, expect, it } from 'vitest'
import { READ, READWRITE } from '../../lib/address'
import type { UnansweredMiss } from '../../lib/iotlb/unanswered'
import { byte, hostMemory, loop } from './support'

const missing = (page: number, more: Partial<UnansweredMiss> = {}): UnansweredMiss => ({
  iova: byte(page) as UnansweredMiss['iova'],
  wanted: 'read',
  cause: 'translation',
  code: 1,
  ...more,
})

describe('a miss that cannot be answered', () => {
  it('because nothing is mapped is a fault with the reason of the tables', () => {
    const { vhost, handler } = loop()
    vhost.access(byte(5, 100), 'read')
    vhost.settle()
    expect(handler.unanswered()).toEqual([missing(5)])
    expect(handler.stats()).toMatchObject({ faults: 1, unanswered: 1, updates: 0 })
  })

  it('because the permission is too small is a fault, and no smaller grant is sent', () => {
    const { vhost, space, handler } = loop()
    space.mapPages(5, 5, 100, READ)
    vhost.access(byte(5), 'write')
    vhost.settle()
    expect(handler.unanswered()).toEqual([missing(5, { wanted: 'write', code: 2 })])
    expect(vhost.entries).toEqual([])
  })

  it('because it wants to write is a fault beside an answered read of the same page', () => {
    const { vhost, space, handler } = loop()
    space.mapPages(5, 5, 100, READ)
    const read = vhost.access(byte(5), 'read', { queue: 0 })
    vhost.access(byte(5), 'write', { queue: 1 })
    vhost.settle()
    expect(read.state).toBe('done')
    expect(space.faults).toMatchObject([{ iova: byte(5), wanted: 'write' }])
    expect(handler.stats()).toMatchObject({ misses: 2, updates: 1, faults: 1 })
  })

  it('because the target is no memory is a fault: the kernel spins on a hole', () => {
    const { vhost, space, handler } = loop({ memory: hostMemory({ gpaPage: 0, pages: 16 }) })
    space.mapPages(5, 5, 16, READ)
    space.mapPages(6, 6, 2 ** 40 - 1, READ)
    vhost.access(byte(5), 'read', { queue: 0 })
    vhost.access(byte(6), 'read', { queue: 1 })
    vhost.settle()
    expect(handler.unanswered()).toEqual([
      missing(5, { cause: 'memory', code: 0 }),
      missing(6, { cause: 'memory', code: 0 }),
    ])
    expect([vhost.entries, space.faults]).toEqual([[], []])
  })

  it('is recorded once by the address space, though asked a hundred times in a turn', () => {
    const { vhost, space, handler } = loop()
    vhost.access(byte(5), 'read')
    for (let i = 0; i < 99; i++) vhost.kick()
    vhost.settle()
    expect(space.faults).toHaveLength(1)
    expect(handler.stats()).toMatchObject({ misses: 100, faults: 1, unanswered: 1 })
  })

  it('does not keep the others of the turn from their answers', () => {
    const { vhost, space } = loop({ vhost: { queues: 3 } })
    space.mapPages(4, 4, 100, READ)
    space.mapPages(6, 6, 101, READ)
    const accesses = [4, 5, 6].map((page, queue) => vhost.access(byte(page), 'read', { queue }))
    vhost.settle()
    expect(accesses.map(({ state }) => state)).toEqual(['done', 'waiting', 'done'])
  })

  it('R4: is not remembered as a fault: the next kick finds what is mapped since', () => {
    const { vhost, space, handler } = loop()
    const access = vhost.access(byte(5), 'read')
    vhost.settle()
    space.mapPages(5, 5, 100, READ)
    vhost.kick()
    vhost.settle()
    expect(access.state).toBe('done')
    expect(handler.unanswered()).toEqual([])
  })

  it('is answered by retry() once it is mapped, and not recorded again before', () => {
    const { vhost, space, handler } = loop()
    const accesses = [5, 6].map((page, queue) => vhost.access(byte(page), 'read', { queue }))
    vhost.settle()
    expect(handler.retry()).toBe(0)
    expect(space.faults).toHaveLength(2)
    space.mapPages(5, 5, 100, READ)
    expect(handler.retry()).toBe(1)
    expect(accesses.map(({ state }) => state)).toEqual(['done', 'waiting'])
    expect(handler.unanswered()).toEqual([missing(6)])
  })

  it('is answered by an invalidation of its page, when the tables grant it by then', () => {
    const { vhost, space, handler } = loop()
    const access = vhost.access(byte(5), 'read')
    vhost.settle()
    space.mapPages(5, 5, 100, READ)
    space.invalidatePages(6, 6)
    expect(access.state).toBe('waiting')
    space.invalidatePages(5, 5)
    expect(access.state).toBe('done')
    expect(handler.unanswered()).toEqual([])
  })

  it('leaves the list when another’s answer covers its page', () => {
    const { vhost, space, handler } = loop()
    vhost.access(byte(5), 'read')
    vhost.settle()
    space.mapPages(4, 7, 100, READ)
    vhost.access(byte(6), 'read', { queue: 1 })
    vhost.settle()
    expect([handler.unanswered(), vhost.pending]).toEqual([[], 0])
  })

  it('is kept in a bounded list, the latest 256', () => {
    const { vhost, handler } = loop({ vhost: { queues: 300 } })
    for (let queue = 0; queue < 300; queue++) vhost.access(byte(queue), 'read', { queue })
    vhost.settle()
    expect(handler.unanswered()).toHaveLength(256)
    expect(handler.unanswered()[0]).toEqual(missing(44))
    expect(handler.stats()).toMatchObject({ faults: 300, unanswered: 256, forgotten: 44 })
  })
})

describe('the fault policy', () => {
  it('stop calls once, until the device is reset', () => {
    const stops: UnansweredMiss[] = []
    const faults: UnansweredMiss[] = []
    const { vhost, handler } = loop({
      fault: 'stop',
      onStop: (miss) => stops.push(miss),
      onFault: (miss) => faults.push(miss),
    })
    for (const page of [5, 6, 7]) {
      vhost.access(byte(page), 'read', { queue: page % 2 })
      vhost.settle()
    }
    vhost.kick(1)
    vhost.settle()
    expect(stops).toEqual([missing(5)])
    expect(faults.length).toBeGreaterThan(1)
    handler.reset()
    vhost.kick(1)
    vhost.settle()
    expect(stops).toHaveLength(2)
  })

  it('drop calls for each miss, so that its descriptor can be discarded', () => {
    const drops: UnansweredMiss[] = []
    const { vhost } = loop({ fault: 'drop', onDrop: (miss) => drops.push(miss) })
    vhost.access(byte(5), 'read', { queue: 0 })
    vhost.access(byte(6), 'write', { queue: 1 })
    vhost.settle()
    expect(drops).toEqual([missing(5), missing(6, { wanted: 'write' })])
  })

  it('stop and drop need somebody to call', () => {
    expect(() => loop({ fault: 'stop' })).toThrow(TypeError)
    expect(() => loop({ fault: 'drop' })).toThrow(TypeError)
  })

  it('a callback may map, invalidate, preload and handle, and none of it is lost', () => {
    const made = loop({
      vhost: { queues: 3 },
      onFault: ({ iova }) => {
        const page = Number(iova >> 12n)
        made.space.mapPages(page, page, page, READWRITE)
        made.space.invalidatePages(page, page)
        made.handler.preload(40, 41, READ)
        made.handler.handle()
      },
    })
    made.space.mapPages(40, 41, 140, READ)
    const accesses = [5, 40, 6].map((page, queue) =>
      made.vhost.access(byte(page), 'read', { queue }),
    )
    made.vhost.settle()
    expect(accesses.map(({ state }) => state)).toEqual(['done', 'done', 'done'])
    expect(made.handler.shadow.snapshot()).toEqual(made.vhost.entries)
  })

  it('an error of a callback comes out when all misses have been dealt with', () => {
    const made = loop({
      onFault: () => {
        throw new TypeError('of the callback')
      },
    })
    made.space.mapPages(6, 6, 100, READ)
    made.vhost.access(byte(5), 'read', { queue: 0 })
    const answered = made.vhost.access(byte(6), 'read', { queue: 1 })
    expect(() => made.vhost.turn()).toThrow('of the callback')
    expect(answered.state).toBe('done')
    expect(made.handler.unanswered()).toEqual([missing(5)])
  })

  it('a handler closed by its callback stops there', () => {
    const made = loop({
      onFault: () => {
        made.handler.close()
      },
    })
    made.vhost.access(byte(5), 'read')
    made.vhost.turn()
    made.vhost.kick()
    made.vhost.turn()
    expect(made.vhost.unread).toBe(1)
  })
})

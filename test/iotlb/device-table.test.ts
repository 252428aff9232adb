/** What happens between shadow and device when a write fails, or something comes in between. */
import { describe, expect, it } from 'vitest'
import { READ, READWRITE } from '../../lib/address'
import { FakeVhost } from '../../lib/testing/fake-channel'
import { Refusing, byte, hvaOf, loop } from './support'
import type { Loop } from './support'

interface RefusingLoop extends Loop {
  readonly channel: Refusing
  readonly errors: Error[]
}

function refusing(limit = 2048): RefusingLoop {
  const vhost = new FakeVhost({ limit, queues: 4 })
  const channel = new Refusing(vhost)
  const errors: Error[] = []
  const made = loop({ channel, onError: (error) => errors.push(error) })
  return { ...made, vhost, channel, errors }
}

/** Refuses the next message of a kind, once. */
function refuseNext(
  { channel }: RefusingLoop,
  kind: 'update' | 'invalidate' | 'drain',
  how: 'lost' | 'done',
): void {
  let left = 1
  channel.refuse = (message) => (message === kind && left-- > 0 ? how : undefined)
}

function mapped(made: Loop, ...pages: readonly number[]): void {
  for (const page of pages) made.space.mapPages(page, page, 100 + page, READ)
}

describe.each(['lost', 'done'] as const)('a failed UPDATE that was %s', (how) => {
  it('leaves its miss unanswered and the others answered, and the error comes out', () => {
    const made = refusing()
    mapped(made, 5, 6)
    refuseNext(made, 'update', how)
    made.vhost.access(byte(5), 'read', { queue: 0 })
    const other = made.vhost.access(byte(6), 'read', { queue: 1 })
    made.vhost.settle()
    expect(other.state).toBe('done')
    expect(made.handler.unanswered()).toMatchObject([{ iova: byte(5), cause: 'refused' }])
    expect(made.errors).toMatchObject([{ name: 'SystemError', code: 'EFAULT' }])
    expect(made.handler.stats().refused).toBe(1)
  })

  it('leaves nothing in the device that the shadow does not hold', () => {
    const made = refusing(2)
    mapped(made, 1, 2, 3, 4)
    for (const page of [1, 2]) made.vhost.access(byte(page), 'read', { queue: page })
    made.vhost.settle()
    refuseNext(made, 'update', how)
    made.vhost.access(byte(3), 'read')
    made.vhost.settle()
    made.space.unmapPages(0, 10)
    made.space.invalidatePages(3, 3)
    expect(made.vhost.entries).toEqual([])
    expect(made.handler.shadow.snapshot()).toEqual(made.vhost.entries)
  })

  it('is made good by a retry', () => {
    const made = refusing()
    mapped(made, 5)
    refuseNext(made, 'update', how)
    const access = made.vhost.access(byte(5), 'read')
    made.vhost.settle()
    expect(made.handler.retry()).toBe(1)
    expect(access.state).toBe('done')
    expect(made.handler.shadow.snapshot()).toEqual(made.vhost.entries)
  })
})

describe.each(['lost', 'done'] as const)('a failed INVALIDATE that was %s', (how) => {
  it('R2: is thrown, so that the guest’s wait is not completed', () => {
    const made = refusing()
    mapped(made, 5)
    made.vhost.access(byte(5), 'read')
    made.vhost.settle()
    made.space.unmapPages(5, 5)
    refuseNext(made, 'invalidate', how)
    expect(() => {
      made.space.invalidatePages(5, 5)
    }).toThrow(/EFAULT/)
    expect(made.handler.covers(5, 5, READ)).toBe(false)
  })

  it('R3: takes everything back the next time, also for a page that seems to be nowhere', () => {
    const made = refusing()
    mapped(made, 5, 6)
    for (const queue of [0, 1]) made.vhost.access(byte(5 + queue), 'read', { queue })
    made.vhost.settle()
    made.space.unmapPages(5, 6)
    refuseNext(made, 'invalidate', how)
    expect(() => {
      made.space.invalidatePages(5, 5)
    }).toThrow()
    made.space.invalidatePages(900, 900)
    expect(made.vhost.entries).toEqual([])
    expect(made.handler.shadow.snapshot()).toEqual([])
  })

  it('keeps failing as long as the device refuses', () => {
    const made = refusing()
    mapped(made, 5)
    made.vhost.access(byte(5), 'read')
    made.vhost.settle()
    made.channel.refuse = (message) => (message === 'invalidate' ? how : undefined)
    for (let i = 0; i < 3; i++) {
      expect(() => {
        made.space.invalidatePages(5, 5)
      }).toThrow(/EFAULT/)
    }
    made.vhost.kick()
    const access = made.vhost.access(byte(5, 1), 'read', { queue: 1 })
    if (how === 'done') {
      made.vhost.settle()
      expect(access.state).toBe('waiting')
      expect(made.handler.unanswered()).toMatchObject([{ cause: 'refused' }])
    }
    made.channel.refuse = () => undefined
    made.space.invalidatePages(5, 5)
    expect(made.handler.shadow.snapshot()).toEqual(made.vhost.entries)
  })
})

describe('a channel that cannot be read', () => {
  it('has its error come out, and is read again the next time', () => {
    const made = refusing()
    mapped(made, 5)
    refuseNext(made, 'drain', 'lost')
    const access = made.vhost.access(byte(5), 'read')
    made.vhost.turn()
    expect([access.state, made.errors.length]).toEqual(['waiting', 1])
    made.vhost.settle()
    expect(access.state).toBe('done')
  })

  it('throws the error out of the turn where nobody takes it', () => {
    const channel = new Refusing(new FakeVhost())
    const { handler } = loop({ channel })
    channel.refuse = () => 'lost'
    expect(() => {
      handler.handle()
    }).toThrow(/EFAULT/)
  })
})

describe('R1: an invalidation that comes in', () => {
  it('while a miss is walked makes the walk count for nothing', () => {
    const made = loop()
    const { vhost, space } = made
    space.mapPages(5, 5, 100, READ)
    const walk = space.translatePage.bind(space)
    let once = true
    space.translatePage = (page, wanted, out) => {
      const granted = walk(page, wanted, out)
      if (once) {
        once = false
        space.mapPages(5, 5, 200, READ)
        space.invalidatePages(5, 5)
      }
      return granted
    }
    const access = vhost.access(byte(5), 'read')
    vhost.settle()
    expect([access.state, access.hva]).toEqual(['done', hvaOf(200)])
    expect(made.handler.shadow.snapshot()).toEqual(vhost.entries)
  })

  it('while the UPDATE is written takes it back again', () => {
    const channel = new Refusing(new FakeVhost())
    const made = loop({ channel })
    made.space.mapPages(5, 5, 100, READWRITE)
    let once = true
    channel.refuse = (message) => {
      if (message !== 'update' || !once) return undefined
      once = false
      made.space.mapPages(5, 5, 200, READ)
      made.space.invalidatePages(5, 5)
      return undefined
    }
    channel.inner.access(byte(5), 'read')
    channel.inner.settle()
    expect(channel.inner.entries).toMatchObject([{ hva: hvaOf(200), access: 'read' }])
    expect(made.handler.shadow.snapshot()).toEqual(channel.inner.entries)
  })

  it('before the UPDATE’s write has returned is complete when it returns itself (R2)', () => {
    const channel = new Refusing(new FakeVhost())
    const made = loop({ channel })
    made.space.mapPages(5, 5, 100, READ)
    const held: number[] = []
    channel.sent = (message) => {
      if (message !== 'update' || held.length > 0) return
      made.space.unmapPages(5, 5)
      made.space.invalidatePages(5, 5)
      held.push(channel.inner.entries.length)
    }
    channel.inner.access(byte(5), 'read')
    channel.inner.settle()
    expect(held).toEqual([0])
    expect(made.handler.shadow.snapshot()).toEqual([])
  })

  it('at each try leaves the miss unanswered, and the device without the entry', () => {
    const made = loop()
    const { vhost, space, handler } = made
    space.mapPages(5, 5, 100, READ)
    const walk = space.translatePage.bind(space)
    space.translatePage = (page, wanted, out) => {
      const granted = walk(page, wanted, out)
      space.invalidatePages(5, 5)
      return granted
    }
    vhost.access(byte(5), 'read')
    vhost.settle()
    expect(handler.unanswered()).toMatchObject([{ iova: byte(5), cause: 'unsettled' }])
    expect(vhost.entries).toEqual([])
    space.translatePage = walk
    expect(handler.retry()).toBe(1)
  })

  it('while a refused walk reports its fault lets the walk be made again', () => {
    const made = loop()
    const { vhost, space } = made
    const walk = space.translatePage.bind(space)
    space.translatePage = (page, wanted, out) => {
      const granted = walk(page, wanted, out)
      if (!granted) {
        space.mapPages(5, 5, 100, READ)
        space.invalidatePages(5, 5)
      }
      return granted
    }
    const access = vhost.access(byte(5), 'read')
    vhost.settle()
    expect([access.state, made.handler.stats().faults]).toEqual(['done', 0])
  })
})

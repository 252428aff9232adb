/** Two sides of one device table, in one thread: turns, what they tell, and what is lost. */
import fc from 'fast-check'
import { expect, test } from 'vitest'
import { SystemError } from '../../lib/errors'
import { MessageLog, TOLD } from '../../lib/iotlb/message-log'
import { MissHandler } from '../../lib/iotlb/miss-handler'
import { SharedTable } from '../../lib/iotlb/shared-table'
import { TURNSTILE_WORDS, Turnstile } from '../../lib/iotlb/turnstile'
import { FakeAddressSpace } from '../../lib/testing/fake-address-space'
import { FakeVhost } from '../../lib/testing/fake-channel'
import { Refusing, byte, hostMemory, hvaOf } from './support'

const ALL = 2 ** 52 - 1

/** The side that answers misses, and the side that hears of invalidations. */
function sides({ records = 64, limit = 16 } = {}) {
  const vhost = new FakeVhost({ worker: 'manual', limit })
  const channel = new Refusing(vhost)
  const words = new Int32Array(new SharedArrayBuffer(4 * TURNSTILE_WORDS))
  const log = new Float64Array(new SharedArrayBuffer(8 * MessageLog.words(records)))
  const space = new FakeAddressSpace()
  const memory = hostMemory({ gpaPage: 0, pages: 64 })
  const state = { serving: true }
  const [server, owner] = [true, false].map((answers) => {
    const table = new SharedTable({
      channel,
      turnstile: new Turnstile({ words }),
      log: new MessageLog(log),
      answers,
      serving: () => state.serving,
    })
    const quiet = { notify: () => ({ [Symbol.dispose]: () => undefined }) }
    const translatePage = space.translatePage.bind(space)
    const twin = Object.assign(Object.create(space) as FakeAddressSpace, quiet, { translatePage })
    const handler = new MissHandler({ channel: table, addressSpace: twin, memory })
    table.attach(handler)
    return { table, handler }
  })
  const invalidate = (first: number, last: number): void => {
    owner.table.turn(() => {
      owner.handler.invalidatePages(first, last, 'device-tlb')
    })
  }
  return { vhost, channel, space, state, server, owner, invalidate }
}

test('each shadow is the device’s table after each turn, whoever wrote', () => {
  const page = fc.integer({ min: 0, max: 30 })
  const step = fc.record({ what: fc.constantFrom('miss', 'take back', 'preload', 'map'), page })
  fc.assert(
    fc.property(
      fc.array(step, { maxLength: 60 }),
      fc.integer({ min: 1, max: 40 }),
      (steps, records) => {
        const { vhost, space, server, owner, invalidate } = sides({ records })
        space.mapPages(0, 31, 0, 3)
        for (const { what, page } of steps) {
          if (what === 'miss') {
            vhost.access(byte(page), 'read', { queue: page % 2 })
            vhost.work()
            vhost.turn()
          } else if (what === 'take back') {
            invalidate(page, page)
          } else if (what === 'preload') {
            owner.table.turn(() => owner.handler.preload(page, page, 1))
          } else {
            space.unmapPages(page, page)
            space.mapPages(page, page, (page * 7) % 64, 3)
            invalidate(page, page)
          }
          for (const { table, handler } of [server, owner]) {
            table.turn(() => undefined)
            expect(handler.shadow.snapshot()).toEqual(vhost.entries)
          }
        }
      },
    ),
    { numRuns: 300 },
  )
})

test('an invalidation takes back what the other side granted, though it has not asked', () => {
  const { vhost, space, invalidate } = sides()
  space.mapPages(5, 5, 9, 3)
  const before = vhost.access(byte(5), 'read')
  vhost.work()
  vhost.turn()
  vhost.work()
  expect(before).toMatchObject({ state: 'done', hva: hvaOf(9) })
  space.unmapPages(5, 5)
  invalidate(5, 5)
  const after = vhost.access(byte(5), 'read')
  vhost.work()
  vhost.turn()
  expect(after.state).toBe('waiting')
})

test('an invalidation of what neither side granted is filtered', () => {
  const { vhost, invalidate } = sides()
  invalidate(5, 5)
  expect(vhost.counters.invalidates).toBe(0)
})

test('who missed too much takes everything back', () => {
  const { vhost, space, server, owner } = sides({ records: 3 })
  space.mapPages(0, 31, 0, 3)
  for (let page = 0; page < 8; page += 2) {
    space.unmapPages(page + 1, page + 1)
    vhost.access(byte(page), 'read')
    vhost.work()
    vhost.turn()
    vhost.work()
  }
  expect(vhost.entries).toHaveLength(4)
  owner.table.turn(() => undefined)
  expect(vhost.entries).toEqual([])
  expect(owner.handler.shadow.entries).toBe(0)
  server.table.turn(() => undefined)
  expect(server.handler.shadow.entries).toBe(0)
})

test('a refused UPDATE is in doubt on both sides: each empties the table before it goes on', () => {
  const { vhost, channel, space, owner, server } = sides()
  space.mapPages(0, 3, 0, 3)
  channel.refuse = (message) => (message === 'update' ? 'done' : undefined)
  expect(() => owner.table.turn(() => owner.handler.preload(0, 0, 1))).toThrow(SystemError)
  channel.refuse = () => undefined
  expect(vhost.entries).toHaveLength(1)
  server.table.turn(() => undefined)
  expect(vhost.entries).toEqual([])
})

test('a refused flush is thrown to who enters, who has no turn then', () => {
  const { channel, space, owner, server } = sides()
  space.mapPages(0, 3, 0, 3)
  channel.refuse = () => 'lost'
  expect(() => owner.table.turn(() => owner.handler.preload(0, 0, 1))).toThrow(SystemError)
  expect(() => server.table.turn(() => 1)).toThrow(SystemError)
  channel.refuse = () => undefined
  expect(server.table.turn(() => 2)).toBe(2)
  expect(owner.table.turn(() => 3)).toBe(3)
})

test('what is read while nothing is served is dropped', () => {
  const { vhost, space, state } = sides()
  space.mapPages(0, 3, 0, 3)
  state.serving = false
  vhost.access(byte(0), 'read')
  vhost.work()
  vhost.turn()
  expect(vhost.unread).toBe(0)
  expect(vhost.entries).toEqual([])
})

test('a miss that waits is answered when the other side says that its pages changed', () => {
  const { vhost, space, server, owner } = sides()
  const access = vhost.access(byte(5), 'read')
  vhost.work()
  vhost.turn()
  expect(server.handler.unanswered()).toHaveLength(1)
  space.mapPages(5, 5, 9, 3)
  owner.table.turn(() => {
    owner.table.tell(TOLD.retry, 5, 5)
  })
  server.table.turn(() => undefined)
  vhost.work()
  expect(access.state).toBe('done')
})

test('told that the misses are forgotten, or the table emptied, the other side follows', () => {
  const { vhost, space, server, owner } = sides()
  vhost.access(byte(5), 'read')
  space.mapPages(0, 0, 9, 3)
  owner.table.turn(() => owner.handler.preload(0, 0, 1))
  vhost.work()
  vhost.turn()
  vhost.setFeatures()
  owner.table.look(() => {
    owner.handler.reset()
    owner.table.emptied()
    owner.table.tell(TOLD.forget)
  })
  server.table.turn(() => undefined)
  expect(server.handler.unanswered()).toEqual([])
  expect(server.handler.shadow.entries).toBe(0)
  expect(vhost.counters.invalidates).toBe(0)
})

test('who takes over empties the table first, and answers from then on', () => {
  const { vhost, space, server, owner } = sides()
  space.mapPages(5, 5, 9, 3)
  vhost.access(byte(5), 'read')
  vhost.work()
  vhost.turn()
  server.handler.close()
  owner.table.takeOver()
  owner.table.turn(() => undefined)
  expect(vhost.entries).toEqual([])
  const access = vhost.access(byte(5), 'read')
  vhost.work()
  vhost.turn()
  vhost.work()
  expect(access.state).toBe('done')
  expect(owner.handler.shadow.touches(0, ALL)).toBe(true)
})

test('a log without room for a record is none', () => {
  expect(() => new MessageLog(new Float64Array(3))).toThrow(RangeError)
})

test('the other side does not come in between a question and its answer', () => {
  const order: string[] = []
  const vhost = new FakeVhost({ worker: 'manual' })
  const channel = new Refusing(vhost)
  channel.sent = (message) => order.push(message)
  const space = new FakeAddressSpace()
  space.mapPages(5, 5, 9, 3)
  const turnstile = {
    ...{ wanted: true, alone: false, depth: 1 },
    enter: () => order.push('enter'),
    leave: () => order.push('leave'),
  } as unknown as Turnstile
  const log = new MessageLog(new Float64Array(MessageLog.words(8)))
  const table = new SharedTable({ channel, turnstile, log, answers: true })
  const memory = hostMemory({ gpaPage: 0, pages: 64 })
  table.attach(new MissHandler({ channel: table, addressSpace: space, memory }))
  vhost.access(byte(5), 'read')
  vhost.work()
  vhost.turn()
  const answered = order.indexOf('update')
  expect(answered).toBeGreaterThan(0)
  const entered = order.lastIndexOf('enter', answered)
  expect(order.slice(entered + 1, answered)).toEqual(['drain', 'drain'])
  expect(order.slice(answered)).toContain('leave')
})

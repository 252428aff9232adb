import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { MiB } from '../../lib/address'
import { MissHandler } from '../../lib/iotlb/miss-handler'
import { GuestMemory } from '../../lib/memory/guest-memory'
import { FakeAddressSpace } from '../../lib/testing/fake-address-space'
import { FakeVhost } from '../../lib/testing/fake-channel'
import { examine, headsUpTo } from '../../lib/vhost/stall'
import type { Finding, Standing } from '../../lib/vhost/stall'
import { Vring } from '../../lib/vhost/vring'
import { translatedView } from '../../lib/virtio/dma-view'
import type { DmaView } from '../../lib/virtio/dma-view'
import { DriverQueue } from '../../lib/virtio/driver-queue'

/** The ring is mapped at its gpa; buffers are at gpa 0x10000 and up, and at the same iova. */
const RING = { size: 16, desc: 0x1000n, avail: 0x2000n, used: 0x3000n }
const BUFFER = 0x10

let memory: GuestMemory
let space: FakeAddressSpace
let channel: FakeVhost
let handler: MissHandler
let vring: Vring
let queue: DriverQueue
let view: DmaView

beforeEach(() => {
  memory = GuestMemory.allocate(1 * MiB)
  space = new FakeAddressSpace()
  channel = new FakeVhost()
  handler = new MissHandler({ channel, addressSpace: space, memory })
  space.mapPages(1, 2, 1, 1)
  space.mapPages(3, 3, 3, 3)
  handler.preload(1, 2, 1)
  handler.preload(3, 3, 3)
  vring = new Vring(0)
  vring.configure(RING)
  queue = new DriverQueue(memory, RING)
  view = translatedView(memory, space)
})

afterEach(() => {
  vring.close()
  handler.close()
  memory.close()
})

/** What the device holds of a buffer page, and what the tables grant after that. */
function buffer(page: number, held: 1 | 2 | 3, granted: 0 | 1 | 2 | 3): void {
  const at = BUFFER + page
  space.mapPages(at, at, at, held)
  handler.preload(at, at, held)
  if (granted === 0) space.unmapPages(at, at)
  else space.mapPages(at, at, at, granted)
}

function offer(...pages: readonly (readonly [page: number, writable: boolean])[]): void {
  const segments = pages.map(([page, writable]) => ({
    address: BigInt(BUFFER + page) << 12n,
    length: 4096,
    writable,
  }))
  queue.add(segments, 0)
  queue.publish()
}

/** As the ring with this index of its pair; 1 sends. */
function ringOf(index: 0 | 1): void {
  vring.close()
  vring = new Vring(index)
  vring.configure(RING)
}

function found(how: Partial<Standing> = {}): Finding | undefined {
  return examine({
    vring,
    queue: 6,
    availIndex: 0,
    view,
    handler,
    noticed: 'error',
    baffled: 0,
    ...how,
  })
}

describe('a ring that ticked its error eventfd', () => {
  test('with nothing wrong: what it stopped for is in place by now, so it is kicked', () => {
    buffer(0, 1, 1)
    offer([0, false])
    expect(found()).toEqual({
      queue: 6,
      reason: 'lost-kick',
      noticed: 'error',
      availIndex: 0,
      head: 0,
      repaired: 0,
      healed: true,
      refused: [],
    })
  })

  test('permission: repairs what the tables grant by now, in every chain that is offered', () => {
    buffer(0, 1, 1)
    buffer(1, 1, 3)
    buffer(2, 2, 3)
    offer([0, false], [1, true])
    offer([2, false])
    expect(found()).toMatchObject({ reason: 'permission', repaired: 2, healed: true, refused: [] })
    expect([1, 2].map((page) => handler.shadow.granted(BUFFER + page))).toEqual([3, 3])
    expect(found()).toMatchObject({ repaired: 0 })
  })

  test('fault: reports what they refuse', () => {
    buffer(0, 1, 1)
    buffer(1, 1, 0)
    offer([0, true], [1, true])
    expect(found()).toMatchObject({
      reason: 'fault',
      repaired: 0,
      healed: false,
      refused: [0x10000n, 0x11000n],
    })
  })

  test('stale-entry: ticks again although all is granted, so what it holds is replaced, once', () => {
    buffer(0, 1, 1)
    offer([0, false])
    // What somebody else put there before: the older entry wins (K3).
    channel.invalidatePages(BUFFER, BUFFER)
    channel.updatePages(BUFFER, BUFFER, 0x99, 2)
    const before = handler.stats().updates
    expect(found({ baffled: 1 })).toMatchObject({ reason: 'stale-entry', healed: true })
    expect(handler.stats().updates - before).toBe(4)
    const held = channel.entries.filter(({ iova }) => iova.first === 0x10000n)
    expect(held).toMatchObject([{ access: 'read', hva: memory.hva(0x10000) }])
    expect(found({ baffled: 2 })).toMatchObject({ reason: 'lost-kick', healed: false })
  })

  test('leaves alone what the device does not hold: it asks for that itself', () => {
    offer([5, false])
    expect(found()).toMatchObject({ repaired: 0, refused: [] })
    expect(space.faults).toEqual([])
  })

  test('repairs the ring itself', () => {
    space.mapPages(3, 3, 3, 1)
    space.invalidatePages(3, 3)
    handler.preload(3, 3, 1)
    space.mapPages(3, 3, 3, 3)
    expect(found()).toMatchObject({ reason: 'permission', repaired: 1 })
    expect(handler.shadow.granted(3)).toBe(3)
  })

  test('begins where the device stands', () => {
    buffer(0, 1, 3)
    offer([0, true])
    offer([1, false])
    expect(found({ availIndex: 1 })).toMatchObject({ availIndex: 1, repaired: 0 })
  })

  test('bad-descriptor: names what is wrong with the first chain', () => {
    buffer(0, 1, 1)
    offer([0, false])
    memory.setU16(0x2004, 99)
    expect(found()).toMatchObject({ reason: 'bad-descriptor', chain: 'head', healed: false })
  })

  test('bad-descriptor: believes no ring that offers more than it holds', () => {
    memory.setU16(0x2002, 5000)
    expect(found()).toMatchObject({ reason: 'bad-descriptor', repaired: 0, refused: [] })
  })

  test('fault: an indirect table that is not mapped', () => {
    memory.setU64(0x1000, 0x50000n)
    memory.setU32(0x1008, 16)
    memory.setU16(0x100c, 4)
    memory.setU16(0x2002, 1)
    expect(found()).toMatchObject({ reason: 'fault', chain: 'unmapped', refused: [0x50000n] })
  })

  test('permission: every page of an indirect table, and none of a chain that has none', () => {
    buffer(0, 2, 3)
    buffer(1, 2, 3)
    memory.setU64(0x1000, 0x10ff0n)
    memory.setU32(0x1008, 32)
    memory.setU16(0x100c, 4)
    memory.setU16(0x2002, 1)
    for (const at of [0x10ff0, 0x11000]) {
      memory.setU64(at, 0x10000n)
      memory.setU32(at + 8, 16)
    }
    expect(found()).toMatchObject({ reason: 'permission', repaired: 2 })
  })

  test('looks at no more pages than it has to, whatever a chain says', () => {
    buffer(0, 1, 0)
    for (let i = 0; i < 16; i++) {
      memory.setU64(0x1000 + 16 * i, 0x10000n)
      memory.setU32(0x1000 + 16 * i + 8, 0xffff_ffff)
      memory.setU32(0x1000 + 16 * i + 12, 2)
      memory.setU16(0x2004 + 2 * i, i)
    }
    memory.setU16(0x2002, 16)
    expect(found()?.refused.length).toBeLessThanOrEqual(16)
  })

  test('without an IOTLB there is nothing to repair', () => {
    offer([0, false])
    expect(found({ handler: undefined })).toMatchObject({ repaired: 0, refused: [] })
  })

  test('a ring without addresses is empty', () => {
    vring.forget()
    expect(found()).toBeUndefined()
  })
})

describe('a ring that stands still, and says nothing', () => {
  const silent = (): Finding | undefined => found({ noticed: 'watchdog' })

  test('unanswered-miss: a page of a ring that sends is granted, asked for or not', () => {
    ringOf(1)
    space.mapPages(BUFFER, BUFFER, BUFFER, 1)
    offer([0, false])
    expect(silent()).toMatchObject({ reason: 'unanswered-miss', repaired: 1, healed: true })
    expect(handler.shadow.granted(BUFFER)).toBe(1)
  })

  test('fault: a page that the tables refuse, and none of it is recorded again', () => {
    ringOf(1)
    offer([0, false])
    expect(silent()).toMatchObject({ reason: 'fault', healed: false, refused: [0x10000n] })
    expect(space.faults).toEqual([])
  })

  test('lost-kick: all is in place, and it does not move', () => {
    ringOf(1)
    buffer(0, 1, 1)
    offer([0, false])
    expect(silent()).toMatchObject({ reason: 'lost-kick', healed: true })
  })

  test('bad-descriptor: everything was taken, and something never completed', () => {
    ringOf(1)
    offer([0, false])
    expect(found({ noticed: 'watchdog', availIndex: 1 })).toMatchObject({
      reason: 'bad-descriptor',
      healed: false,
    })
  })

  test('a ring that receives may be idle: buffers that nobody asked for are no stall', () => {
    space.mapPages(BUFFER, BUFFER, BUFFER, 2)
    offer([0, true])
    expect(silent()).toBeUndefined()
    expect(handler.shadow.granted(BUFFER)).toBe(0)
  })

  test('unanswered-miss: it receives, asked, and the page was mapped since without a word', () => {
    offer([0, true])
    channel.access(0x10000n, 'write')
    channel.settle()
    expect(handler.waits(BUFFER)).toBe(true)
    expect(silent()).toMatchObject({ reason: 'fault', refused: [0x10000n] })
    space.mapPages(BUFFER, BUFFER, BUFFER, 2)
    expect(silent()).toMatchObject({ reason: 'unanswered-miss', repaired: 1 })
    expect([handler.waits(BUFFER), channel.pending]).toEqual([false, 0])
  })
})

describe('headsUpTo', () => {
  const heads = (page: number, from = 0): readonly number[] =>
    headsUpTo(BUFFER + page, vring, from, view)

  beforeEach(() => {
    offer([0, false])
    offer([1, false], [2, false])
    offer([3, false])
  })

  test('ends with the first chain that uses the page', () => {
    expect(heads(0)).toEqual([0])
    expect(heads(2)).toEqual([0, 1])
    expect(heads(3)).toEqual([0, 1, 3])
    expect(heads(2, 1)).toEqual([1])
  })

  test('is empty where no chain does', () => {
    expect(heads(9)).toEqual([])
    expect(heads(0, 1)).toEqual([])
  })

  test('is empty where the ring cannot be read', () => {
    space.unmapPages(2, 2)
    space.invalidatePages(2, 2)
    expect(heads(0)).toEqual([])
  })
})

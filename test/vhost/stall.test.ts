import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { MiB } from '../../lib/address'
import { MissHandler } from '../../lib/iotlb/miss-handler'
import { GuestMemory } from '../../lib/memory/guest-memory'
import { FakeAddressSpace } from '../../lib/testing/fake-address-space'
import { FakeVhost } from '../../lib/testing/fake-channel'
import { examine, headsUpTo } from '../../lib/vhost/stall'
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

describe('examine', () => {
  const found = (): ReturnType<typeof examine> => examine(vring, 6, 0, view, handler)

  test('a ring with nothing wrong', () => {
    buffer(0, 1, 1)
    offer([0, false])
    expect(found()).toEqual({ queue: 6, availIndex: 0, head: 0, repaired: 0, refused: [] })
  })

  test('repairs what the tables grant by now, in every chain that is offered', () => {
    buffer(0, 1, 1)
    buffer(1, 1, 3)
    buffer(2, 2, 3)
    offer([0, false], [1, true])
    offer([2, false])
    expect(found()).toMatchObject({ repaired: 2, refused: [] })
    expect([1, 2].map((page) => handler.shadow.granted(BUFFER + page))).toEqual([3, 3])
    expect(found()).toMatchObject({ repaired: 0 })
  })

  test('reports what they refuse', () => {
    buffer(0, 1, 1)
    buffer(1, 1, 0)
    offer([0, true], [1, true])
    expect(found()).toMatchObject({ repaired: 0, refused: [0x10000n, 0x11000n] })
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
    expect(found()).toMatchObject({ repaired: 1 })
    expect(handler.shadow.granted(3)).toBe(3)
  })

  test('begins where the device stands', () => {
    buffer(0, 1, 3)
    offer([0, true])
    offer([1, false])
    expect(examine(vring, 0, 1, view, handler)).toMatchObject({ availIndex: 1, repaired: 0 })
  })

  test('names what is wrong with the first chain', () => {
    buffer(0, 1, 1)
    offer([0, false])
    memory.setU16(0x2004, 99)
    expect(found()).toMatchObject({ chain: 'head', repaired: 0 })
  })

  test('believes no ring that offers more than it holds', () => {
    memory.setU16(0x2002, 5000)
    expect(found()).toMatchObject({ repaired: 0, refused: [] })
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
    expect(found().refused.length).toBeLessThanOrEqual(16)
  })

  test('without an IOTLB there is nothing to repair', () => {
    offer([0, false])
    expect(examine(vring, 0, 0, view, undefined)).toMatchObject({ repaired: 0, refused: [] })
  })

  test('a ring without addresses is empty', () => {
    vring.forget()
    expect(found()).toEqual({ queue: 6, availIndex: 0, repaired: 0, refused: [] })
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

import fc from 'fast-check'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { LAST_PAGE, PAGE_SIZE, READ, WRITE } from '../../lib/address'
import { LookAhead } from '../../lib/iotlb/look-ahead'
import { MissHandler } from '../../lib/iotlb/miss-handler'
import type { LookAheadMode } from '../../lib/iotlb/look-ahead'
import { merged } from '../../lib/iotlb/reply-policy'
import type { ReplyPolicy } from '../../lib/iotlb/reply-policy'
import { GuestMemory } from '../../lib/memory/guest-memory'
import { FakeAddressSpace } from '../../lib/testing/fake-address-space'
import { FakeVhost } from '../../lib/testing/fake-channel'
import { physicalView } from '../../lib/virtio/dma-view'
import { DriverQueue } from '../../lib/virtio/driver-queue'
import { byte } from './support'

const PAGES = 512
const SIZE = 64
/** Where a driver has its buffers in gpas; their iovas are the same plus `IOVA`. */
const BUFFERS = 64
const IOVA = 0x10000

let memory: GuestMemory
beforeEach(() => {
  memory = GuestMemory.allocate(PAGES * PAGE_SIZE)
})
afterEach(() => {
  memory.close()
})

interface Rig {
  readonly vhost: FakeVhost
  readonly space: FakeAddressSpace
  readonly handler: MissHandler
  readonly driver: DriverQueue
  readonly outlook: ReturnType<MissHandler['lookInto']>
}

/** A ring at gpa 0, which its device reaches without an IOMMU; only buffers are behind one. */
function rig(lookAhead: LookAheadMode, reply?: ReplyPolicy, limit?: number): Rig {
  const ring = { size: SIZE, desc: 0n, avail: 0x1000n, used: 0x2000n }
  const vhost = new FakeVhost(limit === undefined ? {} : { limit })
  const space = new FakeAddressSpace()
  const handler = new MissHandler({ channel: vhost, addressSpace: space, memory, lookAhead, reply })
  const driver = new DriverQueue(memory, ring, {
    indirect: { gpa: 0x4000n, address: 0x4000n, segments: 4 },
  })
  return { vhost, space, handler, driver, outlook: handler.lookInto(physicalView(memory), ring, 0) }
}

/** Maps and places one buffer of a page for each number. */
function offer({ space, driver }: Rig, first: number, count: number): void {
  for (let i = first; i < first + count; i++) {
    space.mapPages(IOVA + i, IOVA + i, BUFFERS + i, READ)
    driver.begin()
    driver.segment(IOVA + i, 0, 100, false)
    driver.end(i)
  }
}

describe('looking ahead on a miss', () => {
  it('grants all that is offered, so that the rest of a burst is not asked for', () => {
    const made = rig('on-miss')
    offer(made, 0, 32)
    made.driver.publish()
    made.vhost.access(byte(IOVA), 'read')
    made.vhost.settle()
    const rest = Array.from({ length: 31 }, (_, i) => made.vhost.access(byte(IOVA + 1 + i), 'read'))
    expect(rest.every(({ state }) => state === 'done')).toBe(true)
    expect(made.handler.stats()).toMatchObject({ misses: 1, updates: 32, ahead: 32, faults: 0 })
  })

  it('grants what the device waits for last', () => {
    const made = rig('on-miss')
    offer(made, 0, 8)
    made.driver.publish()
    made.vhost.access(byte(IOVA), 'read')
    made.vhost.settle()
    const granted = made.vhost.entries.map(({ iova }) => Number(iova.first >> 12n) - IOVA)
    expect(granted).toEqual([7, 6, 5, 4, 3, 2, 1, 0])
  })

  it('with merged replies grants a burst in one message', () => {
    const made = rig('on-miss', merged(32 * PAGE_SIZE))
    offer(made, 0, 32)
    made.driver.publish()
    made.vhost.access(byte(IOVA), 'read')
    made.vhost.settle()
    expect(made.handler.stats()).toMatchObject({ misses: 1, updates: 1 })
    expect(made.handler.covers(IOVA, IOVA + 31, READ)).toBe(true)
  })

  it('follows an indirect table, and grants every page that a buffer reaches into', () => {
    const made = rig('on-miss')
    made.space.mapPages(4, 4, 4, READ)
    made.space.mapPages(IOVA, IOVA + 1, BUFFERS, READ)
    made.space.mapPages(IOVA + 2, IOVA + 2, BUFFERS + 7, READ)
    made.driver.begin()
    made.driver.segment(IOVA, 4000, 200, false)
    made.driver.segment(IOVA + 2, 0, 100, false)
    made.driver.end(0)
    made.driver.publish()
    made.vhost.access(byte(4), 'read')
    made.vhost.settle()
    expect(made.handler.covers(IOVA, IOVA + 2, READ)).toBe(true)
    expect(made.handler.stats().misses).toBe(1)
  })

  it('grants again what an invalidation of everything took back', () => {
    for (const mode of ['on-miss', 'on-kick'] as const) {
      const made = rig(mode)
      offer(made, 0, 16)
      made.outlook.offering(made.driver.availIndex)
      made.driver.publish()
      made.vhost.access(byte(IOVA), 'read')
      made.vhost.settle()
      made.space.invalidatePages(0, LAST_PAGE)
      const before = made.handler.stats().misses
      made.vhost.access(byte(IOVA + 1), 'read')
      made.vhost.settle()
      expect(made.handler.stats().misses - before).toBe(1)
      for (let i = 0; i < 16; i++) expect(made.handler.covers(IOVA + i, IOVA + i, READ)).toBe(true)
    }
  })

  it('grants no more than what the tables still map', () => {
    const made = rig('on-miss')
    offer(made, 0, 4)
    made.driver.publish()
    made.vhost.access(byte(IOVA), 'read')
    made.vhost.settle()
    made.space.unmapPages(IOVA, IOVA + 3)
    made.space.invalidatePages(IOVA, IOVA + 3)
    made.space.mapPages(IOVA + 9, IOVA + 9, BUFFERS, READ)
    made.vhost.access(byte(IOVA + 9), 'read')
    made.vhost.settle()
    expect(made.handler.stats()).toMatchObject({ misses: 2, updates: 5 })
  })

  it('records no fault for what a guest names and has not mapped', () => {
    const made = rig('on-miss')
    offer(made, 0, 2)
    made.driver.begin()
    made.driver.segment(IOVA + 77, 0, 100, false)
    made.driver.end(2)
    made.driver.publish()
    made.vhost.access(byte(IOVA), 'read')
    made.vhost.settle()
    expect(made.space.faults).toEqual([])
    expect(made.handler.stats()).toMatchObject({ faults: 0, updates: 2 })
  })

  it('is not done when it is off', () => {
    const made = rig('off')
    offer(made, 0, 4)
    made.driver.publish()
    made.vhost.access(byte(IOVA), 'read')
    made.vhost.settle()
    expect(made.handler.stats()).toMatchObject({ misses: 1, updates: 1, ahead: 0 })
  })
})

describe('looking ahead on a kick', () => {
  it('grants before the chains are visible, so that nothing is ever asked for', () => {
    const made = rig('on-kick')
    offer(made, 0, 16)
    made.outlook.offering(made.driver.availIndex)
    made.driver.publish()
    for (let i = 0; i < 16; i++) made.vhost.access(byte(IOVA + i), 'read')
    made.vhost.settle()
    expect(made.handler.stats()).toMatchObject({ misses: 0, updates: 16 })
  })

  it('grants what a kick tells of', () => {
    const made = rig('on-kick')
    offer(made, 0, 16)
    made.driver.publish()
    made.outlook.kicked()
    expect(made.handler.stats()).toMatchObject({ misses: 0, updates: 16, ahead: 16 })
  })

  it('does nothing for a kick in the other modes', () => {
    for (const mode of ['off', 'on-miss'] as const) {
      const made = rig(mode)
      offer(made, 0, 4)
      made.driver.publish()
      made.outlook.kicked()
      made.outlook.offering(made.driver.availIndex)
      expect(made.handler.stats().updates).toBe(0)
    }
  })

  it('ends with the outlook', () => {
    const made = rig('on-miss')
    made.outlook[Symbol.dispose]()
    offer(made, 0, 4)
    made.driver.publish()
    made.vhost.access(byte(IOVA), 'read')
    made.vhost.settle()
    expect(made.handler.stats()).toMatchObject({ updates: 1, ahead: 0 })
  })
})

describe('a hostile ring', () => {
  it('costs a bounded number of lookups, and nothing is thrown', () => {
    const lookups = { count: 0 }
    const granter = {
      prefetchedFrom: 0,
      prefetch: (page: number) => {
        lookups.count++
        granter.prefetchedFrom = page
        return page % 3 === 0 ? -1 : page
      },
    }
    const ring = { size: SIZE, desc: 0n, avail: 0x1000n, used: 0x2000n }
    fc.assert(
      fc.property(
        fc.uint8Array({ minLength: 0x1000, maxLength: 0x1000 }),
        fc.uint8Array({ minLength: 256, maxLength: 256 }),
        fc.nat(0xffff),
        (descriptors, available, index) => {
          memory.view(0, 0x1000).set(descriptors)
          memory.view(0x1000, 256).set(available)
          lookups.count = 0
          const ahead = new LookAhead(granter, physicalView(memory), ring, index)
          ahead.offered()
          ahead.upTo((index + 0x7fff) & 0xffff)
          expect(lookups.count).toBeLessThanOrEqual(2 * 1024)
        },
      ),
      { numRuns: 200 },
    )
  })

  it('is bounded also where one descriptor names 4 GiB', () => {
    const made = rig('on-kick')
    made.space.mapPages(IOVA, IOVA + 0xfffff, 0, WRITE)
    made.driver.begin()
    made.driver.segment(IOVA, 0, 2 ** 32 - 1, true)
    made.driver.end(0)
    made.outlook.offering(made.driver.availIndex)
    expect(made.handler.stats().translations).toBeLessThanOrEqual(1024)
  })

  it('is bounded where nothing is granted, and at the end of the address space', () => {
    const made = rig('on-kick')
    for (let i = 0; i < 8; i++) {
      made.driver.begin()
      made.driver.segment(2 ** 52 - 1, 0, 4096, true)
      for (let page = 0; page < 3; page++) made.driver.segment(page * 2, 0, 1, true)
      made.driver.end(i)
    }
    made.outlook.offering(made.driver.availIndex)
    // Four buffers and the indirect table of each chain.
    expect(made.handler.stats()).toMatchObject({ translations: 40, updates: 0, unanswered: 0 })
    expect(made.space.faults).toEqual([])
  })
})

describe('a small table', () => {
  it('is not filled over what was granted since the last miss', () => {
    const made = rig('on-miss', undefined, 4)
    offer(made, 0, 8)
    made.driver.publish()
    const access = made.vhost.access(byte(IOVA + 7), 'read')
    made.vhost.settle()
    expect(access.state).toBe('done')
    expect(made.handler.stats()).toMatchObject({ evictions: 0, entries: 4 })
  })
})

describe('a question that is read late', () => {
  /** The device asked for a page that its guest has taken back by now. */
  function asked(made: Rig, page: number): void {
    made.vhost.access(byte(page), 'read')
    made.vhost.settle()
  }

  it.each(['off', 'on-miss'] as const)(
    'is obsolete once its chain was completed: no fault, looking ahead %s',
    (lookAhead) => {
      const made = rig(lookAhead)
      asked(made, IOVA)
      expect(made.space.faults).toEqual([])
      expect(made.handler.stats()).toMatchObject({ obsolete: 1, faults: 0, unanswered: 0 })
    },
  )

  it('is a fault as long as a chain with that page is not completed', () => {
    const made = rig('off')
    offer(made, 0, 2)
    made.driver.publish()
    made.space.unmapPages(IOVA, IOVA + 1)
    asked(made, IOVA + 1)
    expect(made.handler.stats()).toMatchObject({ obsolete: 0, faults: 1, unanswered: 1 })
    memory.setU16(0x2002, 2)
    asked(made, IOVA + 1)
    expect(made.handler.stats()).toMatchObject({ obsolete: 1, faults: 1 })
  })

  it.each([
    [4, true, 'of an indirect table'],
    [5, false, 'after an indirect table'],
    [IOVA + 19, false, 'before a buffer'],
    [IOVA + 20, true, 'where a buffer begins'],
    [IOVA + 22, true, 'where a buffer ends'],
    [IOVA + 23, false, 'after a buffer'],
  ])('of page %i is a fault: %s, it is that %s', (page, fault) => {
    const made = rig('off')
    const { driver } = made
    driver.begin()
    driver.segment(IOVA + 7, 0, 100, false)
    driver.segment(IOVA + 20, 4000, 2 * PAGE_SIZE, false)
    driver.end(0)
    driver.publish()
    asked(made, page)
    expect(made.handler.stats().faults).toBe(fault ? 1 : 0)
  })

  it('is a fault where the page is in a ring', () => {
    const made = rig('off')
    made.handler.preload(IOVA + 50, IOVA + 50, READ)
    asked(made, IOVA + 50)
    expect(made.handler.stats()).toMatchObject({ obsolete: 0, faults: 1 })
  })

  it('is a fault where a chain can not be read', () => {
    const made = rig('off')
    offer(made, 0, 1)
    made.driver.publish()
    memory.setU16(0x1004, 0xffff)
    asked(made, IOVA + 9)
    expect(made.handler.stats()).toMatchObject({ obsolete: 0, faults: 1 })
  })

  it('is a fault where no ring is known any more', () => {
    const made = rig('off')
    made.outlook[Symbol.dispose]()
    asked(made, IOVA)
    expect(made.handler.stats()).toMatchObject({ obsolete: 0, faults: 1 })
  })
})

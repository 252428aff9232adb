import fc from 'fast-check'
import { afterAll, beforeEach, describe, expect, it } from 'vitest'
import { MiB } from '../../lib/address'
import type { AccessBits } from '../../lib/address'
import type { AddressSpace, PageTranslation } from '../../lib/memory/address-space'
import { GuestMemory } from '../../lib/memory/guest-memory'
import { physicalView, translatedView } from '../../lib/virtio/dma-view'
import { DriverQueue } from '../../lib/virtio/driver-queue'
import { ringLayout } from '../../lib/virtio/ring-layout'
import type { RingAddresses } from '../../lib/virtio/ring-layout'
import { Chain, SplitQueue } from '../../lib/virtio/split-queue'

const memory = GuestMemory.allocate(1 * MiB)
afterAll(() => {
  memory.close()
})
beforeEach(() => {
  memory.view(0, 1 * MiB).fill(0)
})

const SIZE = 8
const NEXT = 1
const WRITE = 2
const INDIRECT = 4
const { desc, avail, used } = ringLayout(SIZE)
const RING: RingAddresses = {
  size: SIZE,
  desc: 0x1000n + BigInt(desc),
  avail: 0x1000n + BigInt(avail),
  used: 0x1000n + BigInt(used),
}
const TABLE = 0x4000

interface Descriptor {
  readonly address?: bigint
  readonly length?: number
  readonly flags?: number
  readonly next?: number
}

function descriptor(table: number, index: number, what: Descriptor): void {
  const at = table + 16 * index
  memory.setU64(at, what.address ?? 0x8000n)
  memory.setU32(at + 8, what.length ?? 64)
  memory.setU16(at + 12, what.flags ?? 0)
  memory.setU16(at + 14, what.next ?? 0)
}

function ringDescriptor(index: number, what: Descriptor): void {
  descriptor(Number(RING.desc), index, what)
}

function offer(...heads: readonly number[]): void {
  const at = Number(RING.avail)
  const index = memory.u16(at + 2)
  heads.forEach((head, i) => {
    memory.setU16(at + 4 + 2 * ((index + i) % SIZE), head)
  })
  memory.storeReleaseU16(at + 2, (index + heads.length) & 0xffff)
}

function device(options: ConstructorParameters<typeof SplitQueue>[2] = {}): SplitQueue {
  return new SplitQueue(physicalView(memory), RING, options)
}

/** The refusal of the chain that starts at descriptor 0. */
function refusal(queue = device()): string | undefined {
  offer(0)
  expect(queue.next()).toBe(true)
  return queue.chain.refusal
}

describe('SplitQueue, what it takes', () => {
  it('direct descriptors followed by one indirect table (2.7.5.3.2)', () => {
    ringDescriptor(0, { address: 0x9000n, length: 12, flags: NEXT, next: 3 })
    ringDescriptor(3, { address: BigInt(TABLE), length: 32, flags: INDIRECT | WRITE })
    descriptor(TABLE, 0, { address: 0xa000n, length: 100, flags: NEXT, next: 1 })
    descriptor(TABLE, 1, { address: 2n ** 64n - 4096n, length: 4096, flags: WRITE })
    const queue = device()
    expect(refusal(queue)).toBeUndefined()
    const { chain } = queue
    expect([...chain.page.subarray(0, chain.count)]).toEqual([9, 10, 2 ** 52 - 1])
    expect([...chain.length.subarray(0, chain.count)]).toEqual([12, 100, 4096])
    expect([chain.readableBytes, chain.writableBytes]).toEqual([112, 4096])
    expect([chain.indirectPage, chain.indirectBytes]).toEqual([4, 32])
  })

  it('an indirect table whose entries lie over a page boundary', () => {
    const table = 0x5000 - 24
    ringDescriptor(0, { address: BigInt(table), length: 32, flags: INDIRECT })
    descriptor(table, 0, { address: 0xa000n, length: 1, flags: NEXT, next: 1 })
    descriptor(table, 1, { address: 0xb000n, length: 2 })
    const queue = device()
    expect(refusal(queue)).toBeUndefined()
    expect([...queue.chain.length.subarray(0, 2)]).toEqual([1, 2])
  })

  it('a chain of all descriptors of the ring', () => {
    for (let i = 0; i < SIZE; i++)
      ringDescriptor(i, { flags: i < SIZE - 1 ? NEXT : 0, next: i + 1 })
    const queue = device()
    expect(refusal(queue)).toBeUndefined()
    expect(queue.chain.count).toBe(SIZE)
  })

  it('a chain again that was put back, and a look at one that is not taken', () => {
    ringDescriptor(2, { length: 5 })
    offer(2)
    const queue = device()
    const peeked = new Chain(4)
    expect(queue.pending()).toBe(1)
    expect(queue.peek(0, peeked)).toBe(true)
    expect(peeked.head).toBe(2)
    expect(queue.availIndex).toBe(0)
    expect(queue.next()).toBe(true)
    queue.putBack()
    expect(queue.next()).toBe(true)
    expect(queue.chain.head).toBe(2)
    expect(queue.next()).toBe(false)
    expect(queue.chain.refusal).toBeUndefined()
  })
})

describe('SplitQueue, kicks', () => {
  for (const eventIndex of [true, false]) {
    it(`can be had for more chains than are left alone (event index ${eventIndex})`, () => {
      const driver = new DriverQueue(memory, RING, { eventIndex })
      const queue = device({ eventIndex })
      const one = [{ address: 0x8000n, length: 1, writable: true }]
      driver.add(one, 0)
      driver.publish()
      queue.disableKicks()
      expect(queue.next()).toBe(true)
      queue.putBack()
      expect(queue.left).toBe(1)
      expect(queue.enableKicks()).toBe(false)
      expect(queue.enableKicks(queue.left)).toBe(true)
      driver.add(one, 1)
      expect(driver.publish()).toBe(true)
      expect(queue.enableKicks(queue.left)).toBe(false)
      expect([queue.next(), queue.next(), queue.next()]).toEqual([true, true, false])
      expect(queue.left).toBe(0)
    })
  }
})

describe('SplitQueue, what it refuses', () => {
  it('a head past the table', () => {
    offer(SIZE)
    const queue = device()
    expect(queue.next()).toBe(true)
    expect(queue.chain.refusal).toBe('head')
  })

  it('a next past the table, in the ring and in an indirect table', () => {
    ringDescriptor(0, { flags: NEXT, next: SIZE })
    expect(refusal()).toBe('next')
    ringDescriptor(0, { address: BigInt(TABLE), length: 32, flags: INDIRECT })
    descriptor(TABLE, 0, { flags: NEXT, next: 2 })
    expect(refusal()).toBe('next')
  })

  it('a loop (2.7.5.2: no loops in the chain), in the ring and in an indirect table', () => {
    ringDescriptor(0, { flags: NEXT, next: 1 })
    ringDescriptor(1, { flags: NEXT, next: 0 })
    expect(refusal()).toBe('loop')
    ringDescriptor(0, { address: BigInt(TABLE), length: 32, flags: INDIRECT })
    descriptor(TABLE, 0, { flags: NEXT, next: 0 })
    expect(refusal()).toBe('loop')
  })

  it('a chain that is longer than its reader wants', () => {
    ringDescriptor(0, { address: BigInt(TABLE), length: 16 * 40, flags: INDIRECT })
    for (let i = 0; i < 40; i++) descriptor(TABLE, i, { flags: i < 39 ? NEXT : 0, next: i + 1 })
    expect(refusal(device({ segments: 39 }))).toBe('loop')
    expect(refusal(device({ segments: 40 }))).toBeUndefined()
  })

  it('an empty buffer, and more than 2^32 bytes in all (2.7.5.2)', () => {
    ringDescriptor(0, { length: 0 })
    expect(refusal()).toBe('length')
    ringDescriptor(0, { length: 0xffffffff, flags: NEXT, next: 1 })
    ringDescriptor(1, { length: 2 })
    expect(refusal()).toBe('length')
    ringDescriptor(1, { length: 1 })
    expect(refusal()).toBeUndefined()
  })

  it('a buffer that reaches over the end of the address space', () => {
    ringDescriptor(0, { address: 2n ** 64n - 16n, length: 17 })
    expect(refusal()).toBe('wrap')
    ringDescriptor(0, { address: 2n ** 64n - 16n, length: 16 })
    expect(refusal()).toBeUndefined()
  })

  it('a readable buffer after a writable one (2.7.4.2)', () => {
    ringDescriptor(0, { flags: NEXT | WRITE, next: 1 })
    ringDescriptor(1, {})
    expect(refusal()).toBe('order')
  })

  it('indirect where it may not be (2.7.5.3.1)', () => {
    ringDescriptor(0, { address: BigInt(TABLE), length: 16, flags: INDIRECT })
    descriptor(TABLE, 0, {})
    expect(refusal()).toBeUndefined()
    expect(refusal(device({ indirect: false }))).toBe('indirect')
    ringDescriptor(0, { address: BigInt(TABLE), length: 16, flags: INDIRECT | NEXT })
    expect(refusal()).toBe('indirect')
    for (const length of [0, 8, 24]) {
      ringDescriptor(0, { address: BigInt(TABLE), length, flags: INDIRECT })
      expect(refusal()).toBe('indirect')
    }
    ringDescriptor(0, { address: BigInt(TABLE), length: 16, flags: INDIRECT })
    descriptor(TABLE, 0, { address: BigInt(TABLE), length: 16, flags: INDIRECT })
    expect(refusal()).toBe('indirect')
  })

  it('an indirect table that is misaligned or nowhere', () => {
    ringDescriptor(0, { address: BigInt(TABLE + 2), length: 16, flags: INDIRECT })
    expect(refusal()).toBe('misaligned')
    ringDescriptor(0, { address: 2n ** 63n, length: 16, flags: INDIRECT })
    const queue = device()
    offer(0)
    expect(queue.next()).toBe(false)
    expect(queue.chain.refusal).toBe('unmapped')
    expect(queue.chain.refusedPage).toBe(2 ** 51)
    expect(queue.chain.refusedAccess).toBe(1)
  })

  it('more chains than the ring has (2.7.13.3), and everything after it', () => {
    memory.setU16(Number(RING.avail) + 2, SIZE + 1)
    const queue = device()
    expect(queue.next()).toBe(false)
    expect(queue.chain.refusal).toBe('avail-index')
    memory.setU16(Number(RING.avail) + 2, 1)
    expect(queue.next()).toBe(false)
    expect(queue.chain.refusal).toBe('avail-index')
  })

  it('ring parts that are misaligned or nowhere, with no exception', () => {
    const wrong: [Partial<RingAddresses>, string][] = [
      [{ desc: 0x1008n }, 'misaligned'],
      [{ avail: 0x1001n }, 'misaligned'],
      [{ used: 0x1002n }, 'misaligned'],
      [{ desc: 2n ** 64n - 16n }, 'unmapped'],
      [{ avail: 2n ** 64n - 2n }, 'unmapped'],
    ]
    ringDescriptor(0, {})
    offer(0)
    for (const [part, reason] of wrong) {
      const queue = new SplitQueue(physicalView(memory), { ...RING, ...part })
      expect(queue.next()).toBe(false)
      expect(queue.chain.refusal).toBe(reason)
      expect(queue.publish()).toBe(false)
    }
    const queue = new SplitQueue(physicalView(memory), { ...RING, used: 2n ** 40n })
    expect(queue.complete(0, 0)).toBe(false)
  })

  it('reads a bounded number of descriptors of any garbage, and never throws', () => {
    const word = fc.nat(0xffff)
    const garbage = fc.array(
      fc.tuple(fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }), fc.nat(), fc.nat(15), word),
      { minLength: SIZE, maxLength: SIZE },
    )
    fc.assert(
      fc.property(garbage, fc.array(word, { minLength: 1, maxLength: 12 }), (table, heads) => {
        table.forEach(([address, length, flags, next], index) => {
          const inside = flags >= 8
          ringDescriptor(index, {
            address: inside ? BigInt(TABLE) + (address % 512n) : address,
            length: inside ? length % 256 : length,
            flags,
            next: inside ? next % (SIZE + 1) : next,
          })
        })
        offer(...heads.map((head) => head % (SIZE + 2)))
        const queue = device({ segments: 32 })
        for (let taken = 0; taken < heads.length && queue.next(); taken++) {
          expect(queue.chain.count).toBeLessThanOrEqual(32)
          queue.complete(queue.chain.head, 0)
        }
        memory.setU16(Number(RING.avail) + 2, 0)
      }),
      { numRuns: 300 },
    )
  })
})

/** A table of pages that counts how often it is asked. */
class Pages implements AddressSpace {
  readonly state = 'translating'
  generation = 0
  asked = 0
  readonly table = new Map<number, { gpaPage: number; access: AccessBits }>()

  translate(): never {
    throw new Error('the hot path only')
  }

  translatePage(page: number, wanted: AccessBits, out: PageTranslation): boolean {
    this.asked++
    const found = this.table.get(page)
    if (found === undefined || (found.access & wanted) !== wanted) return false
    out.firstPage = page
    out.lastPage = page
    out.gpaPage = found.gpaPage
    out.access = found.access
    return true
  }

  notify(): Disposable {
    return { [Symbol.dispose]: () => undefined }
  }
}

describe('SplitQueue through an address space', () => {
  const RING_IOVA = 0xfffff000n

  function translated(): { pages: Pages; driver: DriverQueue; queue: SplitQueue } {
    const pages = new Pages()
    pages.table.set(0xfffff, { gpaPage: 1, access: 3 })
    const at = (gpa: bigint): bigint => gpa - 0x1000n + RING_IOVA
    const iovas = { size: SIZE, desc: at(RING.desc), avail: at(RING.avail), used: at(RING.used) }
    const driver = new DriverQueue(memory, RING, { eventIndex: true })
    const view = translatedView(memory, pages)
    return { pages, driver, queue: new SplitQueue(view, iovas, { eventIndex: true }) }
  }

  it('finds rings by iova, and asks once for each part', () => {
    const { pages, driver, queue } = translated()
    for (let i = 0; i < 100; i++) {
      expect(driver.add([{ address: 0x7777n, length: 3, writable: false }], i)).toBe(true)
      driver.publish()
      expect(queue.next()).toBe(true)
      expect(queue.complete(queue.chain.head, 0)).toBe(true)
      queue.publish()
      expect(driver.collect()).toBe(true)
    }
    expect(pages.asked).toBe(3)
  })

  it('uses no translation beyond an invalidation', () => {
    const { pages, driver, queue } = translated()
    driver.add([{ address: 0x7777n, length: 3, writable: false }], 0)
    driver.publish()
    expect(queue.next()).toBe(true)
    pages.table.clear()
    expect(queue.complete(0, 0)).toBe(false)
    pages.generation++
    expect(queue.pending()).toBe(-1)
    expect(queue.next()).toBe(false)
    expect(queue.chain.refusal).toBe('unmapped')
    expect(queue.chain.refusedPage).toBe(0xfffff)
  })

  it('does not write where only reading is granted', () => {
    const { pages, driver, queue } = translated()
    driver.add([{ address: 0x7777n, length: 3, writable: false }], 0)
    driver.publish()
    pages.table.set(0xfffff, { gpaPage: 1, access: 1 })
    pages.generation++
    expect(queue.next()).toBe(true)
    expect(queue.complete(queue.chain.head, 0)).toBe(false)
    expect(queue.publish()).toBe(false)
    expect(driver.collect()).toBe(false)
  })
})

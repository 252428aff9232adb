import fc from 'fast-check'
import { afterAll, describe, expect, it } from 'vitest'
import { MiB } from '../../lib/address'
import { GuestMemory } from '../../lib/memory/guest-memory'
import { physicalView } from '../../lib/virtio/dma-view'
import { DriverQueue } from '../../lib/virtio/driver-queue'
import type { Segment } from '../../lib/virtio/driver-queue'
import { ringLayout } from '../../lib/virtio/ring-layout'
import type { RingAddresses } from '../../lib/virtio/ring-layout'
import { SplitQueue } from '../../lib/virtio/split-queue'

const memory = GuestMemory.allocate(2 * MiB)
afterAll(() => {
  memory.close()
})

const INDIRECT = { gpa: 0x80000n, address: 0x80000n, segments: 4 }

function ringAt(size: number, at = 0x1000n): RingAddresses {
  const { desc, avail, used } = ringLayout(size)
  return { size, desc: at + BigInt(desc), avail: at + BigInt(avail), used: at + BigInt(used) }
}

interface Sides {
  readonly ring: RingAddresses
  readonly driver: DriverQueue
  readonly device: SplitQueue
}

function bothSides(
  size: number,
  options: { eventIndex?: boolean; indirect?: boolean; start?: number } = {},
): Sides {
  const ring = ringAt(size)
  const driver = new DriverQueue(memory, ring, {
    index: options.start ?? 0,
    eventIndex: options.eventIndex ?? true,
    ...(options.indirect === true ? { indirect: INDIRECT } : {}),
  })
  const device = new SplitQueue(physicalView(memory), ring, {
    eventIndex: options.eventIndex ?? true,
    availIndex: options.start ?? 0,
  })
  return { ring, driver, device }
}

function one(driver: DriverQueue, token: number, length = 64, writable = false): boolean {
  driver.begin()
  driver.segment(0x40, 0, length, writable)
  return driver.end(token)
}

const segment = fc.record({
  address: fc.bigInt({ min: 0n, max: 2n ** 64n - 2n ** 16n }),
  length: fc.integer({ min: 1, max: 65535 }),
})
const chain = fc
  .tuple(fc.array(segment, { maxLength: 5 }), fc.array(segment, { maxLength: 5 }))
  .filter(([readable, writable]) => readable.length + writable.length > 0)
  .map(([readable, writable]): Segment[] => [
    ...readable.map((each) => ({ ...each, writable: false })),
    ...writable.map((each) => ({ ...each, writable: true })),
  ])

function read(device: SplitQueue): Segment[] {
  const { chain: found } = device
  return Array.from({ length: found.count }, (_, i) => ({
    address: (BigInt(found.page[i]) << 12n) | BigInt(found.offset[i]),
    length: found.length[i],
    writable: found.writable[i] === 1,
  }))
}

describe('DriverQueue and SplitQueue', () => {
  it('what the driver offers is what the device takes, for any chains in any order', () => {
    fc.assert(
      fc.property(
        fc.array(fc.tuple(chain, fc.nat(3), fc.nat(7)), { maxLength: 60 }),
        fc.boolean(),
        fc.boolean(),
        (steps, indirect, eventIndex) => {
          const { driver, device } = bothSides(16, { indirect, eventIndex })
          const offered: Segment[][] = []
          const taken: { head: number; token: number; length: number }[] = []
          let next = 0
          const finish = (which: number): void => {
            if (taken.length === 0) return
            const [{ head, token, length }] = taken.splice(which % taken.length, 1)
            expect(device.complete(head, length)).toBe(true)
            device.publish()
            expect(driver.collect()).toBe(true)
            expect(driver.completion).toMatchObject({ token, length })
          }
          for (const [segments, completions, which] of steps) {
            const fits = driver.fits(segments.length)
            expect(driver.add(segments, offered.length)).toBe(fits)
            if (fits) offered.push(segments)
            driver.publish()
            while (device.next()) {
              expect(device.chain.refusal).toBeUndefined()
              expect(read(device)).toEqual(offered[next])
              const length = device.chain.writableBytes
              taken.push({ head: device.chain.head, token: next, length })
              next++
            }
            for (let i = 0; i < completions; i++) finish(which + i)
          }
          while (taken.length > 0) finish(0)
          expect(next).toBe(offered.length)
          expect(driver.collect()).toBe(false)
          expect(driver.refusal).toBeUndefined()
          expect(driver.inFlight).toBe(0)
          expect(driver.free).toBe(16)
        },
      ),
      { numRuns: 150 },
    )
  })

  it('goes on over the wrap of the 16-bit indices', () => {
    const { driver, device } = bothSides(8, { start: 65530 })
    for (let token = 0; token < 20; token++) {
      expect(one(driver, token)).toBe(true)
      driver.publish()
      expect(device.next()).toBe(true)
      device.complete(device.chain.head, 0)
      device.publish()
      expect(driver.collect()).toBe(true)
      expect(driver.completion.token).toBe(token)
    }
    expect(driver.availIndex).toBe((65530 + 20) & 0xffff)
  })

  for (const eventIndex of [true, false]) {
    const how = eventIndex ? 'event indices' : 'flags'

    it(`loses no kick: a device that sleeps has been kicked for what is offered (${how})`, () => {
      const step = fc.constantFrom('offer', 'offer', 'publish', 'take', 'sleep')
      fc.assert(
        fc.property(fc.array(step, { maxLength: 200 }), (steps) => {
          const { driver, device } = bothSides(4, { eventIndex, start: 65530 })
          let asleep = false
          let kicked = false
          for (const what of steps) {
            if (what === 'offer') one(driver, 0)
            if (what === 'publish' && driver.publish()) kicked = true
            if (what === 'take' && (!asleep || kicked)) {
              if (asleep) device.disableKicks()
              asleep = false
              kicked = false
              if (device.next()) {
                device.complete(device.chain.head, 0)
                device.publish()
                driver.collect()
              }
            }
            if (what === 'sleep' && !asleep) asleep = device.enableKicks()
            if (asleep && !kicked) expect(device.pending()).toBe(0)
          }
        }),
        { numRuns: 200 },
      )
    })

    it(`loses no call: a driver that sleeps is called for what is completed (${how})`, () => {
      const step = fc.constantFrom('complete', 'complete', 'publish', 'collect', 'sleep', 'later')
      fc.assert(
        fc.property(fc.array(step, { maxLength: 200 }), (steps) => {
          const { driver, device } = bothSides(8, { eventIndex, start: 65530 })
          let asleep: number | undefined
          let called = false
          for (const what of steps) {
            while (one(driver, 0));
            driver.publish()
            if (what === 'complete' && device.next()) device.complete(device.chain.head, 0)
            if (what === 'publish' && device.publish()) called = true
            if (what === 'collect' && (asleep === undefined || called)) {
              asleep = undefined
              called = false
              driver.disableCalls()
              driver.collect()
            }
            if (what === 'sleep' && asleep === undefined && driver.enableCalls()) asleep = 0
            if (what === 'later' && asleep === undefined && driver.enableCalls(3)) {
              asleep = eventIndex ? 3 : 0
            }
            const unseen = (memory.u16(Number(driverUsed) + 2) - collected(driver)) & 0xffff
            if (asleep !== undefined && !called) expect(unseen).toBeLessThanOrEqual(asleep)
          }
        }),
        { numRuns: 200 },
      )
    })
  }
})

const driverUsed = ringAt(8).used

/** Free-running index of the next completion: what was offered less what is in flight. */
function collected(driver: DriverQueue): number {
  return (driver.availIndex - driver.inFlight) & 0xffff
}

describe('DriverQueue', () => {
  it('asks for one kick for many chains', () => {
    const { driver, device } = bothSides(8)
    for (let i = 0; i < 5; i++) one(driver, i)
    expect(device.pending()).toBe(0)
    expect(driver.publish()).toBe(true)
    expect(device.pending()).toBe(5)
    expect(driver.publish()).toBe(false)
  })

  it('does not kick while the device has not asked for it (2.7.10.1)', () => {
    const { driver, device } = bothSides(8)
    one(driver, 0)
    expect(driver.publish()).toBe(true)
    one(driver, 1)
    expect(driver.publish()).toBe(false)
    expect(device.next()).toBe(true)
    expect(device.next()).toBe(true)
    expect(device.enableKicks()).toBe(true)
    one(driver, 2)
    expect(driver.publish()).toBe(true)
  })

  it('has no room for a chain that is longer than what is free', () => {
    const { driver } = bothSides(4)
    const segments = [1n, 2n, 3n].map((address) => ({ address, length: 1, writable: false }))
    expect(driver.add(segments, 0)).toBe(true)
    expect(driver.free).toBe(1)
    expect(driver.add(segments, 1)).toBe(false)
    expect(one(driver, 2)).toBe(true)
    expect(one(driver, 3)).toBe(false)
    expect(driver.inFlight).toBe(2)
  })

  it('needs one descriptor for a chain in an indirect table', () => {
    const { driver } = bothSides(4, { indirect: true })
    const segments = [1n, 2n, 3n, 4n].map((address) => ({ address, length: 1, writable: false }))
    for (let i = 0; i < 4; i++) expect(driver.add(segments, i)).toBe(true)
    expect(driver.add(segments, 4)).toBe(false)
  })

  it('breaks on completions that can not be', () => {
    const lie: [string, (ring: RingAddresses) => void][] = [
      [
        'used-index',
        ({ used }) => {
          memory.setU16(Number(used) + 2, 2)
        },
      ],
      [
        'used-id',
        ({ used }) => {
          complete(used, 9, 0)
        },
      ],
      [
        'used-id',
        ({ used }) => {
          complete(used, 0xffffffff, 0)
        },
      ],
      [
        'used-id',
        ({ used }) => {
          complete(used, 1, 0)
        },
      ],
      [
        'used-length',
        ({ used }) => {
          complete(used, 0, 65)
        },
      ],
    ]
    for (const [refusal, write] of lie) {
      const { ring, driver } = bothSides(8)
      one(driver, 7, 64, true)
      driver.publish()
      write(ring)
      expect(driver.collect()).toBe(false)
      expect(driver.refusal).toBe(refusal)
      complete(ring.used, 0, 64)
      expect(driver.collect()).toBe(false)
    }
  })

  it('takes a chain back once only', () => {
    const { ring, driver } = bothSides(8)
    one(driver, 7)
    one(driver, 8)
    driver.publish()
    const used = Number(ring.used)
    memory.setU32(used + 4, 0)
    memory.setU32(used + 12, 0)
    memory.setU16(used + 2, 2)
    expect(driver.collect()).toBe(true)
    expect(driver.collect()).toBe(false)
    expect(driver.refusal).toBe('used-id')
  })

  it('survives whatever a device writes into the used ring', () => {
    const entry = fc.tuple(fc.nat(20), fc.nat(20), fc.nat(200))
    fc.assert(
      fc.property(fc.array(entry, { maxLength: 30 }), (lies) => {
        const { ring, driver } = bothSides(8)
        let offered = 0
        let collected = 0
        for (const [index, id, length] of lies) {
          if (one(driver, offered, 100, true)) offered++
          driver.publish()
          const slot = Number(ring.used) + 4 + 8 * (collected & 7)
          memory.setU32(slot, id)
          memory.setU32(slot + 4, length)
          memory.setU16(Number(ring.used) + 2, index)
          while (driver.collect()) {
            expect(driver.completion.length).toBeLessThanOrEqual(100)
            expect(driver.completion.token).toBeLessThan(offered)
            collected++
          }
          expect(collected + driver.inFlight).toBe(offered)
        }
      }),
      { numRuns: 200 },
    )
  })

  it('offers a chain again that it kept, with its buffers and its token', () => {
    const { driver, device } = bothSides(4)
    const buffers = [writable(0x10000n, 100), writable(0x20000n, 200)]
    expect(driver.add(buffers, 7)).toBe(true)
    for (let round = 0; round < 9; round++) {
      driver.publish()
      expect(device.next()).toBe(true)
      expect([...device.chain.length.subarray(0, device.chain.count)]).toEqual([100, 200])
      device.complete(device.chain.head, 150)
      device.publish()
      expect(driver.collect(true)).toBe(true)
      expect([driver.free, driver.inFlight]).toEqual([2, 0])
      expect(driver.completion).toMatchObject({ token: 7, length: 150 })
      driver.offerAgain(driver.completion.head)
      expect([driver.free, driver.inFlight]).toEqual([2, 1])
    }
    expect(() => {
      driver.offerAgain(driver.completion.head)
    }).toThrow(RangeError)
    expect(() => {
      driver.offerAgain(3)
    }).toThrow(RangeError)
  })

  it('offers a chain of one buffer again with another length, or lets it go', () => {
    const { driver, device } = bothSides(2)
    driver.add([{ address: 0x10000n, length: 100, writable: false }], 7)
    for (const length of [60, 4000, 61]) {
      driver.publish()
      expect(device.next()).toBe(true)
      device.complete(device.chain.head, 0)
      device.publish()
      expect(driver.collect(true)).toBe(true)
      driver.offerAgainWith(driver.completion.head, length)
      driver.publish()
      expect(device.next()).toBe(true)
      expect([device.chain.page[0], device.chain.length[0]]).toEqual([0x10, length])
      device.putBack()
    }
    device.next()
    device.complete(device.chain.head, 0)
    device.publish()
    driver.collect(true)
    expect(driver.free).toBe(1)
    const { head } = driver.completion
    driver.letGo(head)
    expect([driver.free, driver.inFlight]).toEqual([2, 0])
    expect(() => {
      driver.letGo(head)
    }).toThrow(RangeError)
    expect(() => {
      driver.offerAgainWith(head, 9)
    }).toThrow(RangeError)
  })

  it('takes a chain that is kept for none in flight', () => {
    const { driver, device, ring } = bothSides(4)
    driver.add([writable(0x10000n, 100)], 1)
    driver.add([writable(0x20000n, 100)], 2)
    driver.publish()
    device.next()
    const { head } = device.chain
    device.complete(head, 0)
    device.publish()
    expect(driver.collect(true)).toBe(true)
    memory.setU32(Number(ring.used) + 12, head)
    memory.setU16(Number(ring.used) + 2, 2)
    expect(driver.collect(true)).toBe(false)
    expect(driver.refusal).toBe('used-id')
  })

  it('refuses rings that are misaligned or not in memory', () => {
    const ring = ringAt(4)
    for (const wrong of [
      { ...ring, desc: 0x1008n },
      { ...ring, avail: 0x2001n },
      { ...ring, used: 0x3002n },
      { ...ring, desc: BigInt(2 * MiB) },
      { ...ring, used: BigInt(2 * MiB - 16) },
      { ...ring, size: 6 },
    ]) {
      expect(() => new DriverQueue(memory, wrong)).toThrow(RangeError)
    }
  })

  it('refuses chains that no ring can hold', () => {
    const { driver } = bothSides(2)
    driver.begin()
    expect(() => driver.end(0)).toThrow(RangeError)
    for (const length of [0, -1, 2 ** 32, NaN]) {
      expect(() => {
        driver.segment(0, 0, length, false)
      }).toThrow(RangeError)
    }
    driver.segment(0, 0, 1, false)
    driver.segment(0, 0, 1, false)
    expect(() => {
      driver.segment(0, 0, 1, false)
    }).toThrow(RangeError)
  })
})

function writable(address: bigint, length: number): Segment {
  return { address, length, writable: true }
}

function complete(used: bigint, id: number, length: number): void {
  memory.setU32(Number(used) + 4, id)
  memory.setU32(Number(used) + 8, length)
  memory.setU16(Number(used) + 2, 1)
}

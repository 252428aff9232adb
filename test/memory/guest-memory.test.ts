import { Worker } from 'node:worker_threads'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { GiB, MiB, gpa } from '../../lib/address'
import type { Gpa } from '../../lib/address'
import { InvalidState, SystemError } from '../../lib/errors'
import { GuestMemory } from '../../lib/memory/guest-memory'
import { native } from '../../lib/native'
import { eventfd, isMapped, mappings, until } from '../native/support'

const PAGE = 4096

/** Two regions with a hole between: [0, 2 pages) and [16 pages, 17 pages). */
function withHole(): GuestMemory {
  return GuestMemory.fromRegions([
    { gpa: 16 * PAGE, bytes: PAGE },
    { gpa: 0, bytes: 2 * PAGE },
  ])
}

function range(first: number | bigint, last: number | bigint): { first: Gpa; last: Gpa } {
  return { first: gpa(first), last: gpa(last) }
}

describe('regions', () => {
  it('are one at 0 by default, or one where it was asked for', () => {
    using low = GuestMemory.allocate(2 * PAGE)
    expect(low.regions.map((region) => region.range)).toEqual([range(0, 2 * PAGE - 1)])
    using high = GuestMemory.allocate(PAGE, { at: 5n * BigInt(GiB) })
    expect(high.regions.map((region) => region.range)).toEqual([range(5 * GiB, 5 * GiB + PAGE - 1)])
    expect(high.bytes).toBe(PAGE)
  })

  it('leave out the hole from 3 to 4 GiB where memory would grow into it', () => {
    using below = GuestMemory.allocate(3 * GiB)
    expect(below.regions.map(({ range: { last } }) => last)).toEqual([BigInt(3 * GiB) - 1n])
    using memory = GuestMemory.allocate(3 * GiB + 64 * MiB)
    expect(memory.regions.map((region) => region.range)).toEqual([
      range(0, 3 * GiB - 1),
      range(4 * GiB, 4 * GiB + 64 * MiB - 1),
    ])
    expect(memory.bytes).toBe(3 * GiB + 64 * MiB)
    memory.setU32(4 * GiB, 7)
    expect(memory.u32(4 * GiB)).toBe(7)
    expect(memory.find(3 * GiB)).toBeUndefined()
    expect(memory.find(4 * GiB - 1)).toBeUndefined()
  })

  it('come in ascending order, each with its host address', () => {
    using memory = withHole()
    expect(memory.regions.map(({ range: { first }, bytes }) => [first, bytes])).toEqual([
      [0n, 2 * PAGE],
      [BigInt(16 * PAGE), PAGE],
    ])
    for (const region of memory.regions) {
      expect(memory.hva(region.range.first)).toBe(region.hva)
      expect(isMapped(region.hva)).toBe(true)
    }
  })

  const wrong: readonly [string, () => GuestMemory][] = [
    ['no region', () => GuestMemory.fromRegions([])],
    ['no bytes', () => GuestMemory.allocate(0)],
    ['half a page', () => GuestMemory.allocate(PAGE / 2)],
    ['no number', () => GuestMemory.allocate(Number.NaN)],
    ['half a page above 3 GiB', () => GuestMemory.allocate(3 * GiB + PAGE / 2)],
    ['a start within a page', () => GuestMemory.allocate(PAGE, { at: 1 })],
    ['a start beyond 2^52', () => GuestMemory.allocate(PAGE, { at: 2n ** 52n })],
    ['an end beyond 2^52', () => GuestMemory.allocate(2 * PAGE, { at: 2 ** 52 - PAGE })],
    ['half a huge page', () => GuestMemory.allocate(MiB, { hugePages: '2M' })],
    [
      'a start within a huge page',
      () => GuestMemory.allocate(2 * MiB, { at: MiB, hugePages: '2M' }),
    ],
    [
      'regions that overlap',
      () =>
        GuestMemory.fromRegions([
          { gpa: 0, bytes: 2 * PAGE },
          { gpa: PAGE, bytes: PAGE },
        ]),
    ],
    ['no shared region', () => GuestMemory.fromShared({ regions: [] })],
  ]
  it.each(wrong)('%s is a RangeError', (_, make) => {
    expect(make).toThrow(RangeError)
  })

  it('are all or nothing: what was mapped is given back when a later one is refused', async () => {
    const before = mappings()
    const make = (): GuestMemory =>
      GuestMemory.fromRegions([
        { gpa: 0, bytes: PAGE },
        { gpa: 2 ** 30, bytes: 2 ** 30 * 1024, hugePages: '1G' },
      ])
    expect(make).toThrow(SystemError)
    expect(make).toThrow(/ENOMEM.*no 1048576 KiB pages free: raise nr_hugepages/)
    await until(() => mappings() <= before)
  })
})

describe('accessors', () => {
  it('read and write little-endian words of 2, 4 and 8 bytes', () => {
    using memory = GuestMemory.allocate(PAGE)
    memory.setU16(2, 0x1234)
    memory.setU32(4, 0x89abcdef)
    memory.setU64(8, 0xfedcba9876543210n)
    expect([...memory.view(2, 6)]).toEqual([0x34, 0x12, 0xef, 0xcd, 0xab, 0x89])
    expect([...memory.view(8, 8)]).toEqual([0x10, 0x32, 0x54, 0x76, 0x98, 0xba, 0xdc, 0xfe])
    expect(memory.u16(2)).toBe(0x1234)
    expect(memory.u32(4)).toBe(0x89abcdef)
    expect(memory.u64(8)).toBe(0xfedcba9876543210n)
  })

  it('agree with a DataView on any words', () => {
    using memory = GuestMemory.allocate(PAGE)
    const model = new DataView(new ArrayBuffer(PAGE))
    fc.assert(
      fc.property(
        fc.nat(PAGE / 8 - 1),
        fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }),
        (slot, word) => {
          memory.setU64(slot * 8, word)
          model.setBigUint64(slot * 8, word, true)
          expect(memory.u64(slot * 8)).toBe(word)
          expect(memory.u32(slot * 8 + 4)).toBe(model.getUint32(slot * 8 + 4, true))
          expect(memory.u16(slot * 8 + 6)).toBe(model.getUint16(slot * 8 + 6, true))
        },
      ),
    )
    expect(Buffer.compare(memory.view(0, PAGE), Buffer.from(model.buffer))).toBe(0)
  })

  it('take bigints and numbers alike', () => {
    using memory = GuestMemory.allocate(PAGE)
    memory.setU32(gpa(64n), 5)
    expect(memory.u32(64)).toBe(5)
    expect(memory.hva(gpa(64n)) - memory.hva(0)).toBe(64n)
  })

  it('acquire and release indices that wrap at 2^16', () => {
    using memory = GuestMemory.allocate(PAGE)
    memory.storeReleaseU16(2, 0xffff)
    expect(memory.loadAcquireU16(2)).toBe(0xffff)
    memory.storeReleaseU16(2, 0x10000)
    expect(memory.loadAcquireU16(2)).toBe(0)
    expect(memory.u16(4)).toBe(0)
  })

  const accessors: readonly [string, number, (memory: GuestMemory, at: number) => unknown][] = [
    ['u16', 2, (memory, at) => memory.u16(at)],
    ['u32', 4, (memory, at) => memory.u32(at)],
    ['u64', 8, (memory, at) => memory.u64(at)],
    [
      'setU16',
      2,
      (memory, at) => {
        memory.setU16(at, 1)
      },
    ],
    [
      'setU32',
      4,
      (memory, at) => {
        memory.setU32(at, 1)
      },
    ],
    [
      'setU64',
      8,
      (memory, at) => {
        memory.setU64(at, 1n)
      },
    ],
    ['loadAcquireU16', 2, (memory, at) => memory.loadAcquireU16(at)],
    ['awaitChangeU32', 4, (memory, at) => memory.awaitChangeU32(at, 0, 0)],
    [
      'storeReleaseU16',
      2,
      (memory, at) => {
        memory.storeReleaseU16(at, 1)
      },
    ],
  ]
  it.each(accessors)(
    '%s refuses what is not memory, or not a multiple of %i',
    (_, size, access) => {
      using memory = withHole()
      const end = 2 * PAGE
      expect(() => access(memory, end - size)).not.toThrow()
      expect(() => access(memory, 17 * PAGE - size)).not.toThrow()
      const outside = [end, end - size / 2, 8 * PAGE, 17 * PAGE, -size, 2 ** 52, Infinity, NaN]
      for (const at of outside) expect(() => access(memory, at)).toThrow(RangeError)
      for (const at of [size / 2, 0.5]) expect(() => access(memory, at)).toThrow(RangeError)
      expect(() => access(memory, 16 * PAGE + 1)).toThrow(/not a multiple of/)
    },
  )
})

describe('windows', () => {
  it('view shows the memory itself', () => {
    using memory = GuestMemory.allocate(PAGE)
    const window = memory.view(100, 4)
    window.set([1, 2, 3, 4])
    expect(memory.u32(100)).toBe(0x04030201)
    expect(memory.view(0, PAGE)).toHaveLength(PAGE)
    expect(memory.view(PAGE - 1, 0)).toHaveLength(0)
  })

  it('view refuses what is not memory as a whole', () => {
    using memory = withHole()
    const outside = [
      [0, 2 * PAGE + 1],
      [2 * PAGE, 1],
      [2 * PAGE - 1, 2],
      [0, 17 * PAGE],
      [0, -1],
      [0, 0.5],
      [0, NaN],
      [0.5, 1],
      [-1, 1],
    ] as const
    for (const [at, length] of outside) expect(() => memory.view(at, length)).toThrow(RangeError)
  })

  it('span is the whole region around a range, or undefined', () => {
    using memory = withHole()
    expect(memory.span(range(5, 6))).toEqual(range(0, 2 * PAGE - 1))
    expect(memory.span(range(2 * PAGE - 1, 2 * PAGE - 1))).toEqual(range(0, 2 * PAGE - 1))
    expect(memory.span(range(16 * PAGE, 17 * PAGE - 1))).toEqual(range(16 * PAGE, 17 * PAGE - 1))
    expect(memory.span(range(0, 2 * PAGE))).toBeUndefined()
    expect(memory.span(range(2 * PAGE, 2 * PAGE))).toBeUndefined()
    expect(memory.span(range(0, 16 * PAGE))).toBeUndefined()
    expect(memory.span(range(6, 5))).toBeUndefined()
  })

  it('span does not join regions that touch in guest memory but not in the host', () => {
    using memory = GuestMemory.fromRegions([
      { gpa: 0, bytes: PAGE },
      { gpa: PAGE, bytes: PAGE },
    ])
    expect(memory.span(range(0, PAGE))).toBeUndefined()
    expect(memory.span(range(PAGE, PAGE))).toEqual(range(PAGE, 2 * PAGE - 1))
    expect(() => memory.view(PAGE - 4, 8)).toThrow(RangeError)
  })

  it('hva counts within the region', () => {
    using memory = withHole()
    expect(memory.hva(16 * PAGE + 5)).toBe(memory.regions[1].hva + 5n)
    expect(() => memory.hva(8 * PAGE)).toThrow(RangeError)
  })

  it('find answers the region, whatever was asked before', () => {
    using memory = withHole()
    const [low, high] = [memory.find(0), memory.find(16 * PAGE)]
    fc.assert(
      fc.property(fc.integer({ min: -PAGE, max: 20 * PAGE }), (at) => {
        const inLow = at >= 0 && at < 2 * PAGE
        const inHigh = at >= 16 * PAGE && at < 17 * PAGE
        expect(memory.find(at)).toBe(inLow ? low : inHigh ? high : undefined)
      }),
    )
  })
})

describe('the end', () => {
  it('close unmaps; nothing is memory any more, and views are empty', async () => {
    const memory = withHole()
    const view = memory.view(0, 16)
    const addresses = memory.regions.map((region) => region.hva)
    memory.close()
    memory.close()
    expect(memory.closed).toBe(true)
    expect(view).toHaveLength(0)
    expect(memory.find(0)).toBeUndefined()
    expect(memory.span(range(0, 0))).toBeUndefined()
    const uses = [
      () => memory.u16(0),
      () => memory.view(0, 1),
      () => memory.hva(0),
      () => memory.share(),
      () => memory.pin({}),
    ]
    for (const use of uses) {
      expect(use).toThrow(InvalidState)
      expect(use).toThrow('closed')
    }
    await until(() => addresses.every((address) => !isMapped(address)))
  })

  it('close is refused while anybody has a pin', () => {
    const memory = GuestMemory.allocate(PAGE)
    const device = {}
    const pins = [memory.pin(device), memory.pin(device)]
    const close = (): void => {
      memory.close()
    }
    for (const pin of pins) {
      expect(close).toThrow(expect.objectContaining({ code: 'ERR_IN_USE' }) as Error)
      expect(memory.closed).toBe(false)
      expect(memory.u16(0)).toBe(0)
      pin[Symbol.dispose]()
      pin[Symbol.dispose]()
    }
    expect(close).not.toThrow()
  })

  it('a pin with a descriptor keeps the memory in place until that is closed', async () => {
    const memory = GuestMemory.allocate(PAGE)
    const device = eventfd()
    const { hva } = memory.regions[0]
    memory.pin(device, device)[Symbol.dispose]()
    memory.close()
    for (let i = 0; i < 10; i++) await new Promise((resolve) => setImmediate(resolve))
    expect(isMapped(hva)).toBe(true)
    const message = new BigUint64Array([hva])
    expect(native().writeMany(device, message, 8, 1, [0, -PAGE])).toBe(1)
    device.close()
    await until(() => !isMapped(hva))
  })

  it('a pin with a closed descriptor is refused, and pins nothing', () => {
    const memory = GuestMemory.allocate(PAGE)
    const device = eventfd()
    device.close()
    expect(() => memory.pin(device, device)).toThrow(
      expect.objectContaining({ code: 'EBADF' }) as Error,
    )
    memory.close()
    expect(memory.closed).toBe(true)
  })
})

describe('sharing', () => {
  it('opens the same memory again, which stays until all have closed it', async () => {
    const first = withHole()
    const second = GuestMemory.fromShared(structuredClone(first.share()))
    expect(second.regions.map((region) => region.range)).toEqual(
      first.regions.map((region) => region.range),
    )
    first.setU32(16 * PAGE, 77)
    first.close()
    expect(second.u32(16 * PAGE)).toBe(77)
    const shared = second.share()
    second.close()
    await until(() => !isMapped(second.regions[0].hva))
    expect(() => GuestMemory.fromShared(shared)).toThrow(
      expect.objectContaining({ code: 'ENOENT' }) as Error,
    )
  })

  it('a Worker sees what the main thread stores, by its id, and the other way round', async () => {
    using memory = GuestMemory.allocate(PAGE)
    const worker = new Worker(
      `const { workerData } = require('node:worker_threads')
       const mapping = require(workerData.addon).openMapping(workerData.shared.regions[0].id)
       const words = new Uint16Array(mapping.buffer)
       while (Atomics.load(words, 0) !== 1);
       Atomics.store(words, 1, words[8] + 1)`,
      {
        eval: true,
        workerData: {
          addon: (native() as unknown as { path: string }).path,
          shared: memory.share(),
        },
      },
    )
    const ended = new Promise((resolve) => worker.once('exit', resolve))
    memory.setU16(16, 41)
    memory.storeReleaseU16(0, 1)
    await until(() => memory.loadAcquireU16(2) === 42)
    expect(await ended).toBe(0)
  })

  it('never sees half of what setU64 stores', async () => {
    using memory = GuestMemory.allocate(PAGE)
    // Each value is stored once, so that two equal low words are of one store.
    const worker = new Worker(
      `const { workerData } = require('node:worker_threads')
       const mapping = require(workerData.addon).openMapping(workerData.shared.regions[0].id)
       const words = new Uint32Array(mapping.buffer)
       let [halves, whole] = [0, 0]
       while (whole < 1000) {
         const [low, high, again] = [words[0], words[1], words[0]]
         if (low !== again || low === 0) continue
         whole++
         if (high !== low) halves++
       }
       words[4] = halves`,
      {
        eval: true,
        workerData: {
          addon: (native() as unknown as { path: string }).path,
          shared: memory.share(),
        },
      },
    )
    let status: number | undefined
    worker.once('exit', (code) => (status = code))
    for (let value = 1; status === undefined; value++) {
      memory.setU64(0, (BigInt(value) << 32n) | BigInt(value))
      memory.setU64(0, 0n)
      if (value % 1000 === 0) await new Promise((resolve) => setImmediate(resolve))
    }
    expect({ status, halves: memory.u32(16) }).toEqual({ status: 0, halves: 0 })
  })
})

describe('plugging', () => {
  it('adds a region that is found from then on, in its place among the others', () => {
    using memory = withHole()
    const before = memory.generation
    const region = memory.add({ gpa: 4 * PAGE, bytes: 2 * PAGE })
    expect(memory.generation).toBeGreaterThan(before)
    expect(region.range).toEqual(range(4 * PAGE, 6 * PAGE - 1))
    expect(memory.regions.map(({ range: { first } }) => Number(first) / PAGE)).toEqual([0, 4, 16])
    memory.setU32(5 * PAGE, 9)
    expect(memory.u32(5 * PAGE)).toBe(9)
    expect(memory.bytes).toBe(5 * PAGE)
  })

  it('removes a region: its views are empty, its memory goes back to the host', async () => {
    using memory = withHole()
    const { hva } = memory.regions[1]
    const view = memory.view(16 * PAGE, PAGE)
    expect(memory.find(16 * PAGE)).toBeDefined()
    memory.remove(16 * PAGE)
    expect(memory.find(16 * PAGE)).toBeUndefined()
    expect(() => memory.u16(16 * PAGE)).toThrow(RangeError)
    expect(view.length).toBe(0)
    expect(memory.regions).toHaveLength(1)
    await until(() => !isMapped(hva))
  })

  it('tells each holder with the region out of reach, and keeps it mapped until all were told', () => {
    using memory = withHole()
    const { hva } = memory.regions[1]
    const event = eventfd()
    const seen: unknown[] = []
    const look = (): void => {
      seen.push([memory.find(16 * PAGE) === undefined, isMapped(hva)])
    }
    using first = memory.pin({}, event, look)
    using second = memory.pin({}, undefined, look)
    memory.remove(16 * PAGE)
    expect(seen).toEqual([
      [true, true],
      [true, true],
    ])
    expect(first).not.toBe(second)
    event.close()
  })

  it('lets the descriptors of its holders name an added region, and a removed one no more', () => {
    using memory = withHole()
    const event = eventfd()
    using pin = memory.pin({}, event)
    const names = (address: bigint): number =>
      native().writeMany(event, new BigUint64Array([address]), 8, 1, [0, -PAGE])
    const { hva } = memory.add({ gpa: 4 * PAGE, bytes: PAGE })
    expect(names(hva)).toBe(1)
    memory.remove(4 * PAGE)
    expect(names(hva)).toBe(-14)
    expect(pin).toBeDefined()
    event.close()
  })

  it('is taken back where a holder refuses, and those told before hear of it again', () => {
    using memory = withHole()
    const told: number[] = []
    using one = memory.pin({}, undefined, () => told.push(memory.regions.length))
    using two = memory.pin({}, undefined, () => {
      if (memory.regions.length !== 2) throw new InvalidState('ERR_IN_USE', 'needed')
    })
    expect(() => {
      memory.remove(16 * PAGE)
    }).toThrow('needed')
    expect(() => memory.add({ gpa: 4 * PAGE, bytes: PAGE })).toThrow('needed')
    expect(told).toEqual([1, 2, 3, 2])
    expect(memory.regions).toHaveLength(2)
    memory.setU16(16 * PAGE, 5)
    expect(memory.find(4 * PAGE)).toBeUndefined()
    expect([one, two]).toHaveLength(2)
  })

  it('refuses an overlap, what is no region, the only region, and memory of two threads', () => {
    using memory = withHole()
    expect(() => memory.add({ gpa: PAGE, bytes: PAGE })).toThrow(RangeError)
    expect(() => memory.add({ gpa: 3 * PAGE, bytes: 14 * PAGE })).toThrow(RangeError)
    expect(() => memory.add({ gpa: 3 * PAGE, bytes: 1 })).toThrow(RangeError)
    expect(() => {
      memory.remove(PAGE)
    }).toThrow(RangeError)
    memory.remove(0)
    expect(() => {
      memory.remove(16 * PAGE)
    }).toThrow('at least one region')
    using twin = GuestMemory.fromShared(memory.share())
    for (const shared of [memory, twin]) {
      expect(() => shared.add({ gpa: 0, bytes: PAGE })).toThrow(
        expect.objectContaining({ code: 'ERR_UNSUPPORTED' }) as Error,
      )
    }
  })
})

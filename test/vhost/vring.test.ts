import fc from 'fast-check'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { MiB } from '../../lib/address'
import { GuestMemory } from '../../lib/memory/guest-memory'
import { Vring, checkRing } from '../../lib/vhost/vring'
import { physicalView } from '../../lib/virtio/dma-view'
import { RING_ALIGNMENT, ringLayout } from '../../lib/virtio/ring-layout'
import { setImmediate as turn } from 'node:timers/promises'

const RING = { size: 8, desc: 0x1000n, avail: 0x2000n, used: 0x3000n }

let memory: GuestMemory
let vring: Vring
beforeEach(() => {
  memory = GuestMemory.fromRegions([
    { gpa: 0, bytes: 1 * MiB },
    { gpa: 1 * MiB, bytes: 1 * MiB },
  ])
  vring = new Vring(1)
})
afterEach(() => {
  vring.close()
  memory.close()
})

describe('where a ring may be', () => {
  const size = fc.integer({ min: 0, max: 15 }).map((bits) => 2 ** bits)
  const address = fc.bigInt({ min: 0n, max: (1n << 64n) - 1n })

  // virtio 1.3, 2.7: alignments of 16, 2 and 4 bytes; a ring part does not wrap.
  test('wherever its parts are aligned and fit', () => {
    fc.assert(
      fc.property(size, address, address, address, (size, desc, avail, used) => {
        const { descBytes, availBytes, usedBytes } = ringLayout(size)
        const fits = [
          { at: desc, bytes: descBytes, alignment: RING_ALIGNMENT.desc },
          { at: avail, bytes: availBytes, alignment: RING_ALIGNMENT.avail },
          { at: used, bytes: usedBytes, alignment: RING_ALIGNMENT.used },
        ].every(
          ({ at, bytes, alignment }) =>
            at % BigInt(alignment) === 0n && at + BigInt(bytes) <= 1n << 64n,
        )
        const check = (): void => {
          checkRing({ size, desc, avail, used })
        }
        if (fits) check()
        else expect(check).toThrow(RangeError)
      }),
    )
  })

  test('up to the last byte of the address space', () => {
    const { usedBytes } = ringLayout(8)
    const used = (1n << 64n) - BigInt(usedBytes)
    expect(used % 4n).toBe(2n)
    const last = used - 2n
    checkRing({ ...RING, used: last })
    expect(() => {
      checkRing({ ...RING, used: last + 4n })
    }).toThrow(/outside the address space/)
  })

  test('not at a number: an address is a bigint', () => {
    expect(() => {
      vring.configure({ ...RING, desc: 0x1000 as unknown as bigint })
    }).toThrow(TypeError)
  })
})

describe('the parts', () => {
  test('as pages, with what the device does to them: the used ring is also read (K8)', () => {
    vring.configure({ size: 512, desc: 0x1ff0n, avail: 0x5000n, used: 0x6ffcn })
    expect(vring.parts()).toEqual([
      { name: 'desc', firstPage: 1, lastPage: 3, wanted: 1 },
      { name: 'avail', firstPage: 5, lastPage: 5, wanted: 1 },
      { name: 'used', firstPage: 6, lastPage: 8, wanted: 3 },
    ])
  })

  test('as host addresses, where each is in memory as a whole', () => {
    vring.configure(RING)
    expect(vring.inHostMemory(memory)).toEqual({
      size: 8,
      desc: memory.hva(0x1000),
      avail: memory.hva(0x2000),
      used: memory.hva(0x3000),
    })
  })

  test.each([
    ['outside memory', 4n * BigInt(MiB)],
    ['over the end of a region, although the next begins there', BigInt(MiB) - 64n],
  ])('not as host addresses %s', (_, desc) => {
    vring.configure({ ...RING, desc })
    expect(() => vring.inHostMemory(memory)).toThrow(/desc at gpa .* is not in guest memory/)
  })

  test('not before there are any', () => {
    expect(() => vring.parts()).toThrow(/setQueue/)
    vring.configure(RING)
    vring.forget()
    expect(() => vring.inHostMemory(memory)).toThrow(/setQueue/)
  })
})

describe('what the ring says', () => {
  beforeEach(() => {
    vring.configure(RING)
  })

  const used = (index: number): void => {
    memory.setU16(0x3002, index)
  }

  test('counts chains from where it stood, over the end of the index', () => {
    used(65534)
    vring.observe(physicalView(memory))
    used(65535)
    vring.sample()
    used(4)
    vring.sample()
    vring.sample()
    expect(vring.chains).toBe(6)
  })

  test('completes a chain in the place that is next, with nothing written', () => {
    used(13)
    memory.setU32(0x3004 + 8 * 5 + 4, 0xffff)
    vring.observe(physicalView(memory))
    expect(vring.complete(3)).toBe(true)
    expect([memory.u16(0x3002), memory.u32(0x3004 + 8 * 5), memory.u32(0x3008 + 8 * 5)]).toEqual([
      14, 3, 0,
    ])
  })

  test('says nothing where it cannot be read', () => {
    vring.configure({ ...RING, used: 8n * BigInt(MiB) })
    vring.observe(physicalView(memory))
    vring.sample()
    expect([vring.usedIndex(), vring.chains, vring.complete(0)]).toEqual([-1, 0, false])
  })
})

test('a call reaches its listener, an error another, until nobody watches', async () => {
  const seen: string[] = []
  vring.configure(RING)
  vring.observe(physicalView(memory))
  vring.watch(
    () => seen.push('call'),
    () => seen.push('error'),
    true,
  )
  // Completing a chain calls the driver, as the kernel would.
  expect(vring.complete(0)).toBe(true)
  for (let i = 0; i < 3; i++) await turn()
  expect([seen, vring.calls]).toEqual([['call'], 1])
  vring.unwatch()
  vring.complete(0)
  for (let i = 0; i < 3; i++) await turn()
  expect(seen).toEqual(['call'])
})

test('a kick counts', () => {
  vring.kick()
  vring.kick()
  expect(vring.kicks).toBe(2)
})

test.each([-1, 65536, 1.5])('no ring goes on at %d', (availIndex) => {
  expect(() => {
    vring.configure(RING, { availIndex })
  }).toThrow(RangeError)
})

test('a running ring stays where it is', () => {
  vring.running = true
  expect(() => {
    vring.configure(RING)
  }).toThrow(/running/)
})

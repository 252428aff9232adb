/** K8: NET_SET_BACKEND needs the used ring, asks to read it, and writes it. */
import { describe, expect, test } from 'vitest'
import { FakeVhost } from '../../lib/testing/fake-channel'
import { Bench, TX, outcome } from '../support/bench'
import { frame } from '../support/frames'

describe('with nothing mapped', () => {
  test('EFAULT, and one question: the used ring, to be read', () => {
    using bench = new Bench()
    const ring = bench.ring(TX)
    expect(ring.tryStart()).toBe('EFAULT')
    expect(bench.questions()).toEqual([{ iova: ring.used, access: 1 }])
  })

  test('the fake says the same', () => {
    const fake = new FakeVhost()
    const part = (at: bigint): { at: bigint; length: number } => ({ at, length: 4096 })
    const rings = { desc: part(0x1000n), avail: part(0x2000n), used: part(0x3000n) }
    expect(
      outcome(() => {
        fake.setBackend(0, rings)
      }),
    ).toBe('EFAULT')
    expect(fake.drain().map(({ iova, access }) => [iova, access])).toEqual([[0x3000n, 1]])
  })
})

test('with all three parts mapped it starts, and asks nothing', () => {
  using bench = new Bench()
  const ring = bench.runningRing(TX)
  bench.flush()
  expect(bench.questions()).toEqual([])
  expect(ring.errors()).toBe(0)
})

test('with the used ring alone it starts, and asks for the rest before any kick', () => {
  using bench = new Bench()
  const ring = bench.ring(TX)
  ring.mapPart('used')
  ring.start()
  bench.flush()
  expect(bench.questions()).toEqual([{ iova: ring.desc, access: 1 }])
  ring.mapPart('desc')
  bench.flush()
  expect(bench.questions()).toEqual([{ iova: ring.avail, access: 1 }])
})

describe('a used ring with less than both permissions', () => {
  test.each(['none', 'write'] as const)('%s: EFAULT, and no question', (access) => {
    using bench = new Bench()
    const ring = bench.ring(TX)
    ring.map()
    bench.invalidate(ring.used, 1)
    ring.mapPart('used', access)
    expect(ring.tryStart()).toBe('EFAULT')
    expect(bench.questions()).toEqual([])
  })

  // Why our answer is what the tables grant, and why a used ring that is read-only is refused.
  test('read: it starts, writes there all the same, and then stops in silence', () => {
    using bench = new Bench()
    const ring = bench.ring(TX)
    ring.map()
    bench.invalidate(ring.used, 1)
    ring.mapPart('used', 'read')
    ring.usedFlags = 0x55aa
    expect(ring.tryStart()).toBe('ok')
    bench.flush()
    expect(ring.usedFlags).not.toBe(0x55aa)
    bench.mapBuffers(0, 1, 'read')
    ring.send(0, frame(1, 60))
    ring.kick()
    expect([ring.completed, bench.questions(), ring.errors()]).toEqual([0, [], 0])
  })
})

test('the same backend again changes nothing', () => {
  using bench = new Bench()
  const ring = bench.runningRing(TX)
  bench.invalidate(ring.used, 1)
  expect(ring.tryStart()).toBe('ok')
})

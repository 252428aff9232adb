/** K12: a ring part that one entry covers is looked up once; a part in pieces costs a walk each. */
import { describe, expect, test } from 'vitest'
import { MissHandler } from '../../lib/iotlb/miss-handler'
import { FakeAddressSpace } from '../../lib/testing/fake-address-space'
import { BUFFERS, Bench, PAGE, TX } from '../support/bench'
import { frame } from '../support/frames'

/** Descriptor table 4 pages, available ring 1, used ring 3 (its end holds avail_event). */
const SIZE = 1024

describe('a ring of 1024 descriptors that is answered page by page', () => {
  test('asks once for each page, one after the other, before it does anything', () => {
    using bench = new Bench()
    const ring = bench.ring(TX, SIZE)
    const gpaOf = (iova: bigint): number => ring.gpa + Number(iova - ring.desc)
    bench.update(ring.used, PAGE, gpaOf(ring.used), 'readwrite')
    ring.start()
    bench.flush()
    const asked: bigint[] = []
    for (let round = 0; round < 20; round++) {
      const questions = bench.questions()
      if (questions.length === 0) break
      // Kicks and answers can meet: the same question twice is one question.
      expect(new Set(questions.map(({ iova }) => iova)).size).toBe(1)
      const at = questions[0].iova & ~0xfffn
      asked.push(at)
      bench.update(at, PAGE, gpaOf(at), 'readwrite')
      bench.flush()
    }
    const pages = (at: bigint, from: number, to: number): bigint[] =>
      Array.from({ length: to - from }, (_, i) => at + BigInt((from + i) * PAGE))
    expect(asked).toEqual([
      ...pages(ring.desc, 0, 4),
      ...pages(ring.avail, 0, 1),
      ...pages(ring.used, 1, 3),
    ])
    bench.mapBuffers(0, 1, 'read')
    ring.send(0, frame(1, 60))
    ring.kick()
    expect(ring.completed).toBe(1)
  })
})

test('preload() answers each part with one entry where the tables allow it', () => {
  using bench = new Bench()
  const ring = bench.ring(TX, SIZE)
  const addressSpace = new FakeAddressSpace()
  const first = Number(ring.desc >> 12n)
  addressSpace.mapPages(first, first + 47, ring.gpa / PAGE, 3)
  const { channel, memory } = bench
  using handler = new MissHandler({ channel, memory, addressSpace })
  expect(handler.preload(first, first + 3, 1)).toBe(true)
  expect(handler.preload(first + 16, first + 16, 1)).toBe(true)
  expect(handler.preload(first + 32, first + 34, 3)).toBe(true)
  expect(handler.shadow.entries).toBe(1)
  expect(ring.tryStart()).toBe('ok')
  bench.flush()
  expect(bench.questions()).toEqual([])
})

test('a two-byte field in two entries is an error of the ring, and asks nothing', () => {
  using bench = new Bench()
  const ring = bench.ring(TX)
  ring.mapPart('desc')
  ring.mapPart('used')
  const hva = bench.memory.hva(ring.gpa + 0x10000)
  const half = { type: 2, perm: 1 }
  expect(bench.write({ ...half, iova: ring.avail, size: 3n, uaddr: hva })).toBe(72)
  expect(bench.write({ ...half, iova: ring.avail + 3n, size: 4096n, uaddr: hva + 3n })).toBe(72)
  ring.start()
  bench.mapBuffers(0, 1, 'read')
  ring.push(BUFFERS, 72)
  ring.kick()
  expect([ring.completed, bench.questions()]).toEqual([0, []])
  expect(ring.errors()).toBeGreaterThan(0)
})

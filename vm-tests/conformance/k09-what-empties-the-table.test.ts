/** K9: SET_FEATURES and RESET_OWNER drop the whole IOTLB; SET_BACKEND -1 drops all questions. */
import { describe, expect, test } from 'vitest'
import { MissHandler } from '../../lib/iotlb/miss-handler'
import { FakeAddressSpace } from '../../lib/testing/fake-address-space'
import { BUFFERS, Bench, FEATURES, RX, TX, WITHOUT_IOTLB } from '../support/bench'
import type { BenchRing } from '../support/bench'
import { frame } from '../support/frames'

function warm(bench: Bench): BenchRing {
  const ring = bench.runningRing(TX)
  bench.mapBuffers(0, 1, 'read')
  ring.send(0, frame(1, 60))
  ring.kick()
  expect([ring.completed, bench.questions()]).toEqual([1, []])
  return ring
}

describe('SET_FEATURES', () => {
  test('with the same bits, on a running device: the table is empty', () => {
    using bench = new Bench()
    const ring = warm(bench)
    bench.device.setFeatures(FEATURES)
    ring.send(0, frame(2, 60))
    ring.kick()
    expect(bench.questions()).toEqual([{ iova: ring.desc, access: 1 }])
    ring.mapAgain()
    expect(bench.questions()).toEqual([{ iova: BUFFERS, access: 1 }])
  })

  test('keeps the questions: one that was read before it is answered after it', () => {
    using bench = new Bench()
    const ring = bench.runningRing(TX)
    ring.send(0, frame(1, 60))
    ring.kick()
    expect(bench.questions()).toHaveLength(1)
    bench.device.setFeatures(FEATURES)
    ring.map()
    expect(ring.completed).toBe(0)
    bench.mapBuffers(0, 1, 'read')
    bench.flush()
    expect(ring.completed).toBe(1)
  })

  test('before the addresses: an order that works on every kernel', () => {
    using bench = new Bench()
    const ring = bench.ring(TX)
    bench.device.setFeatures(FEATURES)
    ring.place()
    ring.map()
    expect(ring.tryStart()).toBe('ok')
  })

  // Kernels from 6.12.114 on forget addresses when ACCESS_PLATFORM changes (CVE-2026-97988).
  test('after the addresses, with ACCESS_PLATFORM new: kept, or forgotten as a whole', () => {
    using bench = new Bench(WITHOUT_IOTLB)
    const ring = bench.ring(TX)
    bench.device.setFeatures(FEATURES)
    ring.map()
    if (ring.tryStart() === 'EFAULT') {
      expect(bench.questions()).toEqual([{ iova: 0n, access: 1 }])
      ring.place()
    }
    expect(ring.tryStart()).toBe('ok')
  })
})

test('RESET_OWNER empties table, questions and rings', () => {
  using bench = new Bench()
  const ring = warm(bench)
  ring.push(BUFFERS + 0x8000n, 72)
  ring.kick()
  bench.device.reset()
  expect(bench.questions()).toEqual([])
  bench.device.setFeatures(FEATURES)
  bench.device.setMemory(undefined)
  ring.place(ring.completed)
  expect(ring.tryStart()).toBe('EFAULT')
  expect(bench.questions()).toEqual([{ iova: ring.used, access: 1 }])
})

describe('SET_BACKEND -1', () => {
  test('on one queue forgets what the other asked; a kick asks again', () => {
    using bench = new Bench()
    const ring = bench.runningRing(TX)
    ring.send(0, frame(1, 60))
    ring.kick()
    expect(bench.questions()).toHaveLength(1)
    bench.device.setBackend(RX, undefined)
    bench.mapBuffers(0, 1, 'read')
    bench.flush()
    expect(ring.completed).toBe(0)
    ring.kick()
    expect(ring.completed).toBe(1)
  })

  test('drops questions that nobody read, and keeps the table', () => {
    using bench = new Bench()
    const ring = warm(bench)
    ring.push(BUFFERS + 0x8000n, 72)
    ring.kick()
    ring.stop()
    expect(bench.questions()).toEqual([])
    ring.place(1)
    expect(ring.tryStart()).toBe('ok')
    bench.flush()
    expect(bench.questions()).toEqual([{ iova: BUFFERS + 0x8000n, access: 1 }])
  })
})

test('the shadow follows: after reset() nothing is taken back that is not there', () => {
  using bench = new Bench()
  const ring = bench.ring(TX)
  const addressSpace = new FakeAddressSpace()
  const page = Number(ring.desc >> 12n)
  addressSpace.mapPages(page, page + 47, ring.gpa / 4096, 3)
  const { channel, memory } = bench
  using handler = new MissHandler({ channel, memory, addressSpace })
  expect(handler.preload(page, page + 47, 3)).toBe(true)
  expect(handler.shadow.entries).toBe(1)
  bench.device.setFeatures(FEATURES)
  handler.reset()
  addressSpace.invalidatePages(page, page)
  expect(handler.stats()).toMatchObject({ entries: 0, invalidates: 0, filtered: 1 })
  expect(handler.preload(page, page + 47, 3)).toBe(true)
  expect(ring.tryStart()).toBe('ok')
})

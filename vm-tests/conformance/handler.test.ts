/** What the miss handler makes of K7, K9 and K12, on the kernel's own device. */
import { expect, test } from 'vitest'
import { MissHandler } from '../../lib/iotlb/miss-handler'
import { BUFFERS, BUFFERS_GPA, FEATURES, PAGE, TX } from '../../lib/testing/conformance/bench'
import { testFrame } from '../../lib/testing/conformance/frames'
import { FakeAddressSpace } from '../../lib/testing/fake-address-space'
import { LoopBench } from '../support/loop-bench'

test('K7: ten questions for a page are answered with one UPDATE', () => {
  using bench = new LoopBench()
  const { channel, memory } = bench
  const ring = bench.runningRing(TX)
  const addressSpace = new FakeAddressSpace()
  const page = Number(BUFFERS >> 12n)
  addressSpace.mapPages(page, page, BUFFERS_GPA / PAGE, 1)
  using handler = new MissHandler({ channel, addressSpace, memory })
  ring.send(0, testFrame(1))
  for (let i = 0; i < 10; i++) ring.kick()
  handler.handle()
  bench.flush()
  expect(ring.completed).toBe(1)
  const { misses, updates } = handler.stats()
  expect(misses).toBeGreaterThanOrEqual(1)
  expect(updates).toBe(1)
})

test('K9: after reset() nothing is taken back that is not there', () => {
  using bench = new LoopBench()
  const { channel, memory } = bench
  const ring = bench.ring(TX)
  const addressSpace = new FakeAddressSpace()
  const page = Number(ring.desc >> 12n)
  addressSpace.mapPages(page, page + 47, ring.gpa / PAGE, 3)
  using handler = new MissHandler({ channel, memory, addressSpace })
  expect(handler.preload(page, page + 47, 3)).toBe(true)
  expect(handler.shadow.entries).toBe(1)
  bench.kernel.setFeatures(FEATURES)
  handler.reset()
  addressSpace.invalidatePages(page, page)
  expect(handler.stats()).toMatchObject({ entries: 0, invalidates: 0, filtered: 1 })
  expect(handler.preload(page, page + 47, 3)).toBe(true)
  expect(ring.tryStart()).toBe('ok')
})

test('K12: preload() answers each part with one entry where the tables allow it', () => {
  using bench = new LoopBench()
  const { channel, memory } = bench
  /** Descriptor table 4 pages, available ring 1, used ring 3. */
  const ring = bench.ring(TX, 1024)
  const addressSpace = new FakeAddressSpace()
  const first = Number(ring.desc >> 12n)
  addressSpace.mapPages(first, first + 47, ring.gpa / PAGE, 3)
  using handler = new MissHandler({ channel, memory, addressSpace })
  expect(handler.preload(first, first + 3, 1)).toBe(true)
  expect(handler.preload(first + 16, first + 16, 1)).toBe(true)
  expect(handler.preload(first + 32, first + 34, 3)).toBe(true)
  expect(handler.shadow.entries).toBe(1)
  expect(ring.tryStart()).toBe('ok')
  bench.flush()
  expect(bench.questions()).toEqual([])
})

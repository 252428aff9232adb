/** K7: the same MISS is queued several times: drain, coalesce by page, then answer. */
import { expect, test } from 'vitest'
import { FakeAddressSpace } from '../../lib/testing/fake-address-space'
import { MissHandler } from '../../lib/iotlb/miss-handler'
import { BUFFERS, BUFFERS_GPA, Bench, PAGE, TX } from '../support/bench'
import { frame } from '../support/frames'
import { FakeDevice, KernelDevice, tell } from '../support/operations'
import type { Operation } from '../support/operations'

const SCRIPT: readonly Operation[] = [
  { do: 'read', page: 0 },
  { do: 'kick', queue: 'read' },
  { do: 'kick', queue: 'read' },
  { do: 'drain' },
  { do: 'update', first: 0, last: 0, access: 'read' },
  { do: 'drain' },
]

test('three passes, three questions; one answer serves them all', async () => {
  const kernel = await KernelDevice.open()
  try {
    const told = tell(kernel, SCRIPT)
    expect(tell(new FakeDevice(), SCRIPT)).toEqual(told)
    expect(told).toMatchSnapshot()
  } finally {
    kernel.close()
  }
})

test('the handler answers ten questions for a page with one UPDATE', () => {
  using bench = new Bench()
  const ring = bench.runningRing(TX)
  const addressSpace = new FakeAddressSpace()
  const page = Number(BUFFERS >> 12n)
  addressSpace.mapPages(page, page, BUFFERS_GPA / PAGE, 1)
  using handler = new MissHandler({
    channel: bench.channel,
    addressSpace,
    memory: bench.memory,
  })
  ring.send(0, frame(1, 60))
  for (let i = 0; i < 10; i++) ring.kick()
  handler.handle()
  bench.flush()
  expect(ring.completed).toBe(1)
  const { misses, updates } = handler.stats()
  expect(misses).toBeGreaterThanOrEqual(1)
  expect(updates).toBe(1)
})

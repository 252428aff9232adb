/** K1: an UPDATE wakes only misses that were already read. */
import { expect, test } from 'vitest'
import { frame } from '../support/frames'
import { BUFFERS, Bench, TX } from '../support/bench'
import { FakeDevice, KernelDevice, tell } from '../support/operations'
import type { Operation } from '../support/operations'

const PAGE_0 = { first: 0, last: 0, access: 'read' } as const

const SCRIPTS: readonly (readonly [string, readonly Operation[]])[] = [
  [
    'read first: the UPDATE wakes the queue',
    [{ do: 'read', page: 0 }, { do: 'drain' }, { do: 'update', ...PAGE_0 }],
  ],
  [
    'unread: the queue sleeps although its page is there, until the same UPDATE comes again',
    [
      { do: 'read', page: 0 },
      { do: 'update', ...PAGE_0 },
      { do: 'drain' },
      { do: 'update', ...PAGE_0 },
    ],
  ],
  [
    'an UPDATE of another page wakes nobody',
    [
      { do: 'read', page: 0 },
      { do: 'drain' },
      { do: 'update', first: 1, last: 1, access: 'read' },
      { do: 'update', ...PAGE_0 },
    ],
  ],
  [
    'an INVALIDATE wakes nobody, and takes no question back',
    [
      { do: 'read', page: 0 },
      { do: 'drain' },
      { do: 'invalidate', first: 0, last: 0 },
      { do: 'update', ...PAGE_0 },
    ],
  ],
  [
    'a larger UPDATE that covers the page wakes the queue',
    [
      { do: 'read', page: 5 },
      { do: 'drain' },
      { do: 'update', first: 0, last: 15, access: 'read' },
    ],
  ],
  [
    'an answer without permission wakes, and the queue asks nothing',
    [
      { do: 'read', page: 0 },
      { do: 'drain' },
      { do: 'update', first: 0, last: 0, access: 'none' },
      { do: 'drain' },
    ],
  ],
]

test.each(SCRIPTS)('%s', async (_, script) => {
  const kernel = await KernelDevice.open()
  try {
    const told = tell(kernel, script)
    expect(tell(new FakeDevice(), script)).toEqual(told)
    expect(told).toMatchSnapshot()
  } finally {
    kernel.close()
  }
})

test('what is left unread is not lost: read late, it can still be answered', () => {
  using bench = new Bench()
  const ring = bench.runningRing(TX)
  ring.send(0, frame(1, 60))
  ring.kick()
  bench.mapBuffers(0, 1, 'read')
  bench.flush()
  expect(ring.completed).toBe(0)
  expect(bench.questions()).toEqual([{ iova: BUFFERS, access: 1 }])
  bench.mapBuffers(0, 1, 'read')
  bench.flush()
  expect(ring.completed).toBe(1)
})

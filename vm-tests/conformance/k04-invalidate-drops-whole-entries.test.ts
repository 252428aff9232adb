/** K4: an INVALIDATE drops every entry that it touches, whole. */
import { expect, test } from 'vitest'
import { BUFFERS, Bench, PAGE, TX } from '../support/bench'
import { frame } from '../support/frames'
import { FakeDevice, KernelDevice, tell } from '../support/operations'
import type { Operation } from '../support/operations'

const WIDE = { do: 'update', first: 0, last: 15, access: 'readwrite' } as const

const SCRIPTS: readonly (readonly [string, readonly Operation[]])[] = [
  [
    'one page of sixteen: all sixteen go',
    [WIDE, { do: 'invalidate', first: 5, last: 5 }, { do: 'read', page: 0 }, { do: 'drain' }],
  ],
  [
    'what is beside it stays',
    [
      { do: 'update', first: 0, last: 3, access: 'read' },
      { do: 'update', first: 4, last: 7, access: 'read' },
      { do: 'invalidate', first: 4, last: 4 },
      { do: 'read', page: 3 },
      { do: 'read', page: 5 },
      { do: 'drain' },
    ],
  ],
  [
    'nothing there, nothing happens',
    [{ do: 'invalidate', first: 20, last: 30 }, WIDE, { do: 'read', page: 15 }, { do: 'drain' }],
  ],
  [
    'a range that reaches over several',
    [
      { do: 'update', first: 0, last: 3, access: 'read' },
      { do: 'update', first: 4, last: 7, access: 'read' },
      { do: 'update', first: 8, last: 11, access: 'read' },
      { do: 'invalidate', first: 3, last: 8 },
      { do: 'read', page: 11 },
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

test('a single byte is enough to drop an entry', () => {
  using bench = new Bench()
  const ring = bench.runningRing(TX)
  bench.mapBuffers(0, 16, 'read')
  expect(bench.invalidate(BUFFERS + BigInt(9 * PAGE + 7), 1)).toBe(72)
  ring.send(0, frame(1, 60))
  ring.kick()
  expect(bench.questions()).toEqual([{ iova: BUFFERS, access: 1 }])
})

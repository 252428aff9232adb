/** K3: of overlapping entries the one with the lower start counts, of equal starts the older. */
import { expect, test } from 'vitest'
import { BUFFERS, BUFFERS_GPA, Bench, PAGE, TX } from '../support/bench'
import { frame, ours } from '../support/frames'
import { FakeDevice, KernelDevice, tell } from '../support/operations'
import type { Operation } from '../support/operations'
import { PacketSocket } from '../support/packet-socket'

const SCRIPTS: readonly (readonly [string, readonly Operation[]])[] = [
  [
    'an upgrade by UPDATE alone does nothing',
    [
      { do: 'update', first: 1, last: 1, access: 'read' },
      { do: 'update', first: 1, last: 1, access: 'readwrite' },
      { do: 'write', page: 1 },
      { do: 'kick', queue: 'write' },
    ],
  ],
  [
    'a wider entry that starts lower is found first',
    [
      { do: 'update', first: 1, last: 1, access: 'read' },
      { do: 'write', page: 1 },
      { do: 'update', first: 0, last: 2, access: 'readwrite' },
      { do: 'kick', queue: 'write' },
    ],
  ],
  [
    'one that starts at the same page is found second',
    [
      { do: 'update', first: 1, last: 1, access: 'read' },
      { do: 'update', first: 1, last: 3, access: 'readwrite' },
      { do: 'write', page: 1 },
      { do: 'write', page: 2 },
    ],
  ],
  [
    'an INVALIDATE drops all that overlap',
    [
      { do: 'update', first: 1, last: 1, access: 'read' },
      { do: 'update', first: 0, last: 2, access: 'readwrite' },
      { do: 'invalidate', first: 1, last: 1 },
      { do: 'write', page: 0 },
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

test('the older of two equal entries is where bytes come from', async () => {
  using bench = new Bench()
  await using packets = await PacketSocket.open(bench.tap.name)
  const ring = bench.runningRing(TX)
  bench.update(BUFFERS, PAGE, BUFFERS_GPA, 'read')
  bench.update(BUFFERS, PAGE, BUFFERS_GPA + PAGE, 'read')
  ring.send(1, frame(2, 60))
  ring.send(0, frame(1, 60))
  ring.push(BUFFERS, 72)
  // Page 1 of the iovas is not mapped: its chain would be asked for.
  expect(bench.questions()).toEqual([])
  ring.kick()
  expect(bench.questions()).toEqual([{ iova: BUFFERS + BigInt(PAGE), access: 1 }])
  bench.mapBuffers(1, 1, 'read')
  bench.flush()
  expect(ring.completed).toBe(3)
  expect(ours(await packets.sync())).toEqual([frame(2, 60), frame(1, 60), frame(1, 60)])
})

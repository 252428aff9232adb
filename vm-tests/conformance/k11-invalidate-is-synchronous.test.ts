/** K11: when the write of an INVALIDATE returns, no worker still uses the old translation. */
import { setImmediate as turn } from 'node:timers/promises'
import { expect, test } from 'vitest'
import { BUFFERS, BUFFERS_GPA, Bench, HEADER, PAGE, TX } from '../support/bench'
import { frame, ours } from '../support/frames'
import { PacketSocket } from '../support/packet-socket'

const ROUNDS = 40
const FRAMES = 128
const CLEAN = 0x11
const POISON = 0xee
const LENGTH = 600
/** Looks at the ring while the worker begins, at most. */
const SPINS = 4000

/**
 * Two pages take turns behind one iova. While the worker is busy with frames of it, the translation
 * is taken back, and in the same breath the old page is poisoned. A frame that was read after that
 * would carry the poison.
 */
test('no frame carries what was written to its page after the INVALIDATE returned', async () => {
  using bench = new Bench()
  await using packets = await PacketSocket.open(bench.tap.name)
  const ring = bench.runningRing(TX)
  const page = Number(BUFFERS >> 12n)
  let seen = 0
  let poisoned = 0
  let atWork = 0

  const kernelTakes = (gpa: number): void => {
    const bytes = bench.memory.view(gpa, HEADER + LENGTH)
    bytes.fill(0, 0, HEADER)
    bytes.set(frame(1, LENGTH).fill(CLEAN, 18), HEADER)
    bench.channel.drain()
    bench.channel.updatePages(page, page, Number(bench.memory.hva(gpa) >> 12n), 1)
  }

  let current = BUFFERS_GPA
  kernelTakes(current)
  for (let round = 0; round < ROUNDS; round++) {
    while (ring.queue.collect());
    while (ring.queue.free > 0 && ring.queue.inFlight < FRAMES) ring.push(BUFFERS, HEADER + LENGTH)
    ring.kickOnly()
    // In every second round the worker is in the middle of its frames, else before the first.
    const start = ring.completed
    for (let i = 0; round % 2 === 1 && i < SPINS && ring.completed === start; i++);
    const before = ring.completed
    bench.channel.invalidatePages(page, page)
    const old = current
    bench.memory.view(old, PAGE).fill(POISON)
    if (ring.completed !== before) atWork++
    current = old === BUFFERS_GPA ? BUFFERS_GPA + PAGE : BUFFERS_GPA
    kernelTakes(current)
    ring.kickOnly()
    await turn()
  }
  bench.flush()
  for (let i = 0; i < 100 && ring.queue.inFlight > 0; i++) {
    kernelTakes(current)
    ring.kick()
    while (ring.queue.collect());
  }
  const frames = ours([...(await packets.sync())])
  for (const bytes of frames) {
    seen++
    if (bytes.includes(POISON)) poisoned++
  }
  expect({ poisoned, inFlight: ring.queue.inFlight }).toEqual({ poisoned: 0, inFlight: 0 })
  expect(seen).toBeGreaterThan(ROUNDS)
  // Frames were completed during the INVALIDATE: without such rounds the test would say nothing.
  expect(atWork).toBeGreaterThan(0)
})

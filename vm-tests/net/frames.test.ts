/** Frames through the kernel's vhost-net, both ways, with every way to map. */
import { describe, expect, test } from 'vitest'
import type { Mapping } from '../../lib/guest/net-driver'
import { compared, frame, identical, ours } from '../support/frames'
import { Station } from '../support/station'

const MAPPINGS: readonly Mapping[] = ['off', 'passthrough', 'static', 'strict', 'lazy']
const SIZES = [60, 61, 64, 127, 128, 576, 1500, 1513, 1514]

describe.each(MAPPINGS)('mapping %s', (mapping) => {
  test('carries frames of every size both ways, byte for byte', async () => {
    await using station = await Station.open({ mapping })
    const out = SIZES.map((size, i) => frame(i, size))
    await station.send(out)
    expect(compared(ours(await station.packets.receive(out.length)), out)).toEqual(
      identical(out.length),
    )

    const back = SIZES.map((size, i) => frame(100 + i, size, 'host'))
    await station.packets.send(...back)
    expect(compared(await station.receive(back.length), back)).toEqual(identical(back.length))
    expect(station.driver.stats()).toMatchObject({ malformed: 0, dropped: 0 })
    expect(station.nic.stats()).toMatchObject({ faults: 0, stalls: 0, refused: 0, dropped: 0 })
  })

  test('goes around its rings: 150 frames each way', async () => {
    await using station = await Station.open({ mapping, driver: { queueSize: 64 } })
    const out = Array.from({ length: 150 }, (_, i) => frame(i, 60 + (i % 200)))
    await station.send(out)
    expect(compared(ours(await station.packets.receive(out.length)), out)).toEqual(
      identical(out.length),
    )
    for (let from = 0; from < out.length; from += 50) {
      const some = out.slice(from, from + 50)
      await station.packets.send(...some)
      expect(compared(await station.receive(some.length), some)).toEqual(identical(some.length))
    }
    await station.driver.flush()
    const stats = station.nic.stats()
    expect(stats).toMatchObject({ faults: 0, stalls: 0, refused: 0 })
    expect(stats.chains).toBeGreaterThanOrEqual(300)
    if (mapping === 'off') expect(stats.misses).toBe(0)
    if (mapping === 'static') expect(stats.hitRate).toBeGreaterThan(0.9)
    if (mapping === 'strict') expect(stats.invalidates).toBeGreaterThan(0)
  })
})

test('without mergeable buffers', async () => {
  await using station = await Station.open({ mapping: 'strict', driver: { mergeable: false } })
  const frames = SIZES.map((size, i) => frame(i, size))
  await station.send(frames)
  expect(compared(ours(await station.packets.receive(frames.length)), frames)).toEqual(
    identical(frames.length),
  )
  await station.packets.send(...frames)
  expect(compared(await station.receive(frames.length), frames)).toEqual(identical(frames.length))
})

test('without event indices and indirect descriptors', async () => {
  const driver = { eventIndex: false, indirect: false }
  await using station = await Station.open({ mapping: 'strict', driver })
  const frames = Array.from({ length: 50 }, (_, i) => frame(i, 100 + i))
  await station.send(frames)
  expect(compared(ours(await station.packets.receive(frames.length)), frames)).toEqual(
    identical(frames.length),
  )
  await station.packets.send(...frames)
  expect(compared(await station.receive(frames.length), frames)).toEqual(identical(frames.length))
})

test('two pairs of queues, each with a table of its own in the kernel', async () => {
  await using station = await Station.open({ mapping: 'strict', pairs: 2 })
  expect(station.nic.queues).toBe(4)
  const frames = Array.from({ length: 40 }, (_, i) => frame(i, 100 + i))
  for (const [i, bytes] of frames.entries()) station.driver.send(bytes, { pair: i & 1 })
  const seen = ours(await station.packets.receive(frames.length))
  const number = (bytes: Uint8Array): number => bytes[17]
  const sorted = (all: Uint8Array[]): Uint8Array[] => all.sort((a, b) => number(a) - number(b))
  expect(compared(sorted(seen), frames)).toEqual(identical(frames.length))
  await station.packets.send(...frames)
  const back = await station.receive(frames.length)
  expect(compared(sorted(back), frames)).toEqual(identical(frames.length))
})

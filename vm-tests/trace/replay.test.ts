/** What the kernel was asked and told, run again from a trace of it. */
import { subscribe, unsubscribe } from 'node:diagnostics_channel'
import { describe, expect, test } from 'vitest'
import { MiB } from '../../lib/address'
import { NetDriver } from '../../lib/guest/net-driver'
import type { LookAheadMode } from '../../lib/iotlb/look-ahead'
import { IntelIommu } from '../../lib/iommu/intel/intel-iommu'
import { GuestMemory } from '../../lib/memory/guest-memory'
import type { TraceEvent } from '../../lib/trace/event'
import { Recorder } from '../../lib/trace/recorder'
import { replay } from '../../lib/trace/replayer'
import { VhostNet } from '../../lib/vhost/net'
import { frame, ours } from '../support/frames'
import { PacketSocket } from '../support/packet-socket'
import { quietTap } from '../support/quiet-tap'
import { REQUESTER } from '../support/station'

const FRAMES = 24
const NAMES = ['miss', 'update', 'invalidate'] as const

/** Frames out of and into a recorded device. */
async function run(mapping: 'strict' | 'lazy', lookAhead: LookAheadMode): Promise<TraceEvent[]> {
  const events: TraceEvent[] = []
  const published = { miss: 0, update: 0, invalidate: 0 }
  const count = (_message: unknown, name: string | symbol): void => {
    published[String(name).replace('vhost-iotlb:', '') as keyof typeof published]++
  }
  for (const name of NAMES) subscribe(`vhost-iotlb:${name}`, count)
  const recorder = new Recorder((event) => events.push(event))
  const port = recorder.port()
  using tap = quietTap()
  await using packets = await PacketSocket.open(tap.name)
  using memory = GuestMemory.allocate(32 * MiB)
  const iommu = new IntelIommu(recorder.tables(memory))
  const addressSpace = iommu.addressSpace(REQUESTER)
  using nic = VhostNet.open({ memory, addressSpace, backend: tap, lookAhead, ...port.options })
  using driver = NetDriver.attach(port.device(nic, { memory, addressSpace, frameBytes: 2048 }), {
    ...{ memory, iommu: recorder.iommu(iommu), mapping, queueSize: 64 },
  })
  await driver.start()
  const frames = Array.from({ length: FRAMES }, (_, i) => frame(i, 60 + i))
  for (const bytes of frames) while (!driver.send(bytes)) await driver.ready()
  const sent = ours(await packets.receive(FRAMES))
  await packets.send(...Array.from({ length: FRAMES }, (_, i) => frame(i, 60 + i, 'host')))
  let came = 0
  for await (const bytes of driver.frames()) if (bytes.length > 0 && ++came === FRAMES) break
  await driver.flush()
  for (const name of NAMES) unsubscribe(`vhost-iotlb:${name}`, count)
  const { misses, updates, invalidates } = nic.stats()
  expect(published).toEqual({ miss: misses, update: updates, invalidate: invalidates })
  const seen = events.filter((event) => event.kind === 'frame' && event.queue === 1)
  expect(
    seen.map((event) => (event.kind === 'frame' ? Buffer.from(event.bytes) : undefined)),
  ).toEqual(sent.map((bytes) => Buffer.from(bytes)))
  return events
}

describe.each([
  ['strict', 'on-miss'],
  ['lazy', 'on-kick'],
] as const)('mapping %s, look-ahead %s', (mapping, lookAhead) => {
  test('every message of a run comes out again, in the same order', async () => {
    const events = await run(mapping, lookAhead)
    const written = events.filter(({ kind }) => kind === 'update' || kind === 'invalidate').length
    expect(replay(events)).toMatchObject({
      ...{ divergence: undefined, compared: written, events: events.length },
    })
    expect(written).toBeGreaterThan(8)
    expect(events.some(({ kind }) => kind === 'entry')).toBe(true)
  })
})

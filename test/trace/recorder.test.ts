import { describe, expect, it } from 'vitest'
import { MiB } from '../../lib/address'
import { IntelIommu } from '../../lib/iommu/intel/intel-iommu'
import { NetDriver } from '../../lib/guest/net-driver'
import { MissHandler } from '../../lib/iotlb/miss-handler'
import { GuestMemory } from '../../lib/memory/guest-memory'
import { LoopbackDevice } from '../../lib/testing/loopback-device'
import { FakeVhost } from '../../lib/testing/fake-channel'
import type { EventKind, EventOf, TraceEvent } from '../../lib/trace/event'
import { Recorder, recorded } from '../../lib/trace/recorder'
import { expectFrames } from '../guest/net-guest'
import { byte } from '../iotlb/support'
import { recording, stored, ticks } from './support'

const REQUESTER = '00:03.0'
/** More than a ring has, and the last ones over several buffers. */
const FRAMES = 18

function only<Kind extends EventKind>(events: readonly TraceEvent[], kind: Kind): EventOf<Kind>[] {
  return events.filter((event): event is EventOf<Kind> => event.kind === kind)
}

describe('recorded()', () => {
  it('writes down messages both ways, and changes nothing', () => {
    const events: TraceEvent[] = []
    const vhost = new FakeVhost()
    const channel = recorded(vhost, (event) => events.push(event), { clock: ticks(), device: 3 })
    vhost.access(byte(5, 0x123), 'write')
    expect(channel.drain()).toMatchObject([{ page: 5, offset: 0x123, access: 2 }])
    channel.updatePages(5, 6, 0x7000, 3)
    channel.invalidatePages(5, 5)
    expect(() => {
      channel.invalidatePages(0, 2 ** 52 - 1)
    }).toThrow('EINVAL')
    expect(events).toEqual([
      { kind: 'drain', at: 1000, device: 3, count: 1, error: 0 },
      { kind: 'miss', at: 2000, device: 3, page: 5, offset: 0x123, access: 2 },
      {
        ...{ kind: 'update', at: 3000, device: 3, firstPage: 5, lastPage: 6, hvaPage: 0x7000 },
        ...{ access: 3, error: 0 },
      },
      { kind: 'invalidate', at: 4000, device: 3, firstPage: 5, lastPage: 5, error: 0 },
      { kind: 'invalidate', at: 5000, device: 3, firstPage: 0, lastPage: 2 ** 52 - 1, error: 22 },
    ])
    expect(channel.limit).toBe(vhost.limit)
    expect(stored(events)).toEqual(events)
  })

  it('writes down the ranges of the callers in pages too', () => {
    const events: TraceEvent[] = []
    const channel = recorded(new FakeVhost(), (event) => events.push(event))
    const range = { first: byte(5), last: byte(6) - 1n } as Parameters<typeof channel.update>[0]
    channel.update(range, byte(9) as Parameters<typeof channel.update>[1], 'read')
    channel.invalidate(range)
    expect(events).toMatchObject([
      { kind: 'update', firstPage: 5, lastPage: 5, hvaPage: 9, access: 1 },
      { kind: 'invalidate', firstPage: 5, lastPage: 5 },
    ])
  })
})

interface Looped {
  readonly events: TraceEvent[]
  readonly sent: readonly Uint8Array[]
}

/** Frames through a loopback device, everything recorded; and a handler that asks for some pages. */
async function looped(frameBytes: number): Promise<Looped> {
  const events: TraceEvent[] = []
  const recorder = new Recorder((event) => events.push(event), { clock: ticks() })
  using memory = GuestMemory.allocate(8 * MiB)
  const iommu = new IntelIommu(recorder.tables(memory))
  const addressSpace = iommu.addressSpace(REQUESTER)
  const port = recorder.port()
  const vhost = new FakeVhost()
  using handler = port.handler({ channel: vhost, addressSpace, memory })
  using loopback = new LoopbackDevice({ memory, addressSpace, requester: 0x18 })
  using driver = NetDriver.attach(port.device(loopback, { memory, addressSpace, frameBytes }), {
    ...{ memory, iommu: recorder.iommu(iommu), mapping: 'strict', queueSize: 16 },
  })
  await driver.start()
  const page = only(events, 'offer')[0].buffers[0]
  vhost.access(byte(page), 'write')
  handler.handle()
  const sent = Array.from({ length: FRAMES }, (_, i) =>
    Uint8Array.from({ length: 60 + 250 * i }, (_, at) => (at + i) & 255),
  )
  let came = 0
  for (const frame of sent) {
    while (!driver.send(frame)) await driver.ready(frame.length)
    for await (const back of driver.frames()) {
      expect(Buffer.compare(back, frame)).toBe(0)
      if (++came > 0) break
    }
  }
  await driver.flush()
  return { events, sent }
}

describe('a recorded handler', () => {
  it('writes down every call that can change anything', () => {
    const { handler } = recording()
    const mine = Object.getOwnPropertyNames(Object.getPrototypeOf(handler))
    const all = Object.getOwnPropertyNames(MissHandler.prototype)
    // `invalidate` is `invalidatePages`; what a look into a ring leads to is `prefetch`.
    const others = ['invalidate', 'lookInto', 'shadow', 'covers', 'unanswered', 'stats']
    others.push('waits', 'asked', 'waiting', 'prefetchedFrom')
    expect(all.filter((name) => !mine.includes(name)).sort()).toEqual(others.sort())
  })
})

describe('a recorder', () => {
  it('writes down rings, kicks, calls and every chain, offered and complete', async () => {
    const { events } = await looped(0)
    expect(only(events, 'ring').map(({ queue, size }) => [queue, size])).toEqual([
      [0, 16],
      [1, 16],
    ])
    const sent = only(events, 'offer').filter(({ queue }) => queue === 1)
    expect(sent.map(({ index }) => index)).toEqual(Array.from({ length: FRAMES }, (_, i) => i))
    const done = only(events, 'complete').filter(({ queue }) => queue === 1)
    expect(done.length).toBeGreaterThan(10)
    expect(done.map(({ index }) => index)).toEqual(done.map((_, i) => i))
    expect(only(events, 'kick').length).toBeGreaterThan(0)
    expect(only(events, 'call').length).toBeGreaterThan(0)
    expect(only(events, 'frame')).toEqual([])
    const known = new Set(only(events, 'mapped').map(({ firstPage }) => firstPage))
    expect(sent.every(({ buffers }) => known.has(buffers[0]))).toBe(true)
  })

  it('keeps frames of both ways, whole or cut', async () => {
    const { events, sent } = await looped(65536)
    for (const queue of [0, 1]) {
      const frames = only(events, 'frame').filter((event) => event.queue === queue)
      expectFrames(
        frames.map(({ bytes }) => bytes),
        sent,
      )
    }
    const cut = only((await looped(100)).events, 'frame').filter(({ queue }) => queue === 0)
    expect(cut.map(({ length }) => length)).toEqual(sent.map(({ length }) => length))
    expect(cut.map(({ bytes }) => bytes.length)).toEqual(
      sent.map(({ length }) => Math.min(length, 100)),
    )
  })

  it('writes down register writes, and the table entries of the walks for a device', async () => {
    const { events } = await looped(0)
    const registers = only(events, 'register')
    expect(registers.some(({ offset, size }) => offset === 0x18 && size === 4)).toBe(true)
    expect(registers.some(({ offset }) => offset === 0x88)).toBe(true)
    const walked = only(events, 'walk')
    expect(walked).toMatchObject([{ ok: 1, wanted: 2 }])
    const at = events.indexOf(walked[0])
    // The four levels of the table; its root and context entries are the same as before.
    expect(events.slice(at - 4, at).map(({ kind }) => kind)).toEqual(Array(4).fill('entry'))
    const leaf = events[at - 1] as EventOf<'entry'>
    expect(Number((leaf.value >> 12n) & 0xffffffffffn)).toBe(walked[0].gpaPage)
    const rtaddr = registers.find(({ offset }) => offset === 0x20)!
    const root = only(events, 'entry').find(({ gpa }) => gpa === Number(rtaddr.value))!
    const context = Number(root.value & ~0xfffn) + 0x18 * 16
    expect(root.value & 1n).toBe(1n)
    expect(only(events, 'entry').some(({ gpa, value }) => gpa === context && value !== 0n)).toBe(
      true,
    )
  })
})

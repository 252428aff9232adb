/** The bench's contestants that are this library: frames out, in, and through, by `NetDriver`. */
import { setTimeout as sleep } from 'node:timers/promises'
import { KiB, MiB, PAGE_SIZE } from '../../address'
import { PageAllocator } from '../../guest/page-allocator'
import { IntelIommu } from '../../iommu/intel/intel-iommu'
import { NET_HEADER_BYTES } from '../../virtio/net'
import { counters, frameOf, moved, warmedUp } from './contestant'
import type { Contestant, Mover } from './contestant'
import type { Sample } from './figures'
import { HeapWatch } from './heap'
import { Forwarder, Port, difference, hitRate, memoryFor } from '../l2fwd'
import type { PortOptions } from '../l2fwd'
import { Pktgen } from '../pktgen'

const OFF: PortOptions = {
  ...{ mapping: 'off', pageSize: '2M', lookAhead: 'off', merge: 0, queues: 1 },
}
const MAPPINGS: readonly (readonly [string, Partial<PortOptions>])[] = [
  ['off', { mapping: 'off' }],
  ['pass-through', { mapping: 'passthrough' }],
  ['static 4K', { mapping: 'static', pageSize: '4K' }],
  ['static 2M', { mapping: 'static', pageSize: '2M' }],
  ['static 1G', { mapping: 'static', pageSize: '1G' }],
  ['lazy', { mapping: 'lazy' }],
  ['strict', { mapping: 'strict' }],
]
/** `exact` asks for each page, as QEMU does; each of the next adds to the one before. */
const POLICIES: readonly (readonly [string, Partial<PortOptions>])[] = [
  ['exact', { lookAhead: 'off', merge: 0 }],
  ['merged', { lookAhead: 'off', merge: 128 * KiB }],
  ['on-miss', { lookAhead: 'on-miss', merge: 128 * KiB }],
  ['on-kick', { lookAhead: 'on-kick', merge: 128 * KiB }],
]
const FRAME_BYTES = 64
const MODE_BURST = 32
const OUT_BURST = 64
/** What such a frame has room in, and the frame: as long as a header of IPv4 can say. */
const SEGMENTS_BYTES = 64 * KiB
const SEGMENT_FRAME_BYTES = SEGMENTS_BYTES - 256
const SEGMENTS_BURST = 4
/** For the generator to begin. */
const TRAFFIC_MS = 10_000

export function modeContestants(): readonly Contestant[] {
  return MAPPINGS.flatMap(([mapping, mapped]) =>
    POLICIES.map(([policy, answered]) => ({
      section: 'modes' as const,
      name: `${mapping}, ${policy}`,
      run: (ms: number, warmMs: number) =>
        out({ ...OFF, ...mapped, ...answered }, ms, warmMs, MODE_BURST),
    })),
  )
}

export function growthContestants(): readonly Contestant[] {
  const strict: PortOptions = {
    ...OFF,
    ...{ mapping: 'strict', lookAhead: 'on-kick', merge: 128 * KiB },
  }
  const rings = [64, 128, 256, 512, 1024].map((queueSize) => ({
    section: 'rings' as const,
    name: `ring ${queueSize}`,
    run: (ms: number, warmMs: number) => out({ ...strict, queueSize }, ms, warmMs, MODE_BURST),
  }))
  const pairs = [1, 2, 4].map((queues) => ({
    section: 'pairs' as const,
    name: queues === 1 ? '1 pair' : `${queues} pairs`,
    run: (ms: number, warmMs: number) => out({ ...strict, queues }, ms, warmMs, MODE_BURST),
  }))
  return [...rings, ...pairs]
}

export const ours = {
  out: {
    section: 'out',
    name: 'vhost-iotlb',
    run: (ms, warmMs) => out(OFF, ms, warmMs, OUT_BURST),
  },
  in: { section: 'in', name: 'vhost-iotlb', run: received },
  forward: { section: 'forward', name: 'vhost-iotlb', run: forwarded },
  bytes: { section: 'bytes', name: 'vhost-iotlb, 64 KiB segments', run: segments },
} as const satisfies Record<string, Contestant>

/** Frames to the host for so long, in bursts; what the kernel had to ask on the way. */
async function out(
  options: PortOptions,
  ms: number,
  warmMs: number,
  burst: number,
): Promise<Sample> {
  using memory = memoryFor(options)
  using port = new Port(memory, new IntelIommu(memory), '00:03.0', options)
  await port.driver.start()
  const frames = Array.from({ length: burst }, () => frameOf(FRAME_BYTES))
  const pairs = Array.from({ length: options.queues }, (_, pair) => ({ pair }))
  const sender = sending(port, async () => {
    for (const each of pairs) {
      const sent = port.driver.sendBatch(frames, each)
      if (sent < burst) await port.driver.ready(FRAME_BYTES, each.pair)
    }
  })
  await warmedUp(sender, warmMs)
  const before = port.nic.stats()
  const sample = await sentIn(port, sender, ms)
  const now = port.nic.stats()
  const count = Math.max(1, sample.packets)
  const chains = now.chains - before.chains
  const misses = now.misses - before.misses
  return {
    ...sample,
    misses1000: (1000 * misses) / count,
    updates1000: (1000 * (now.updates - before.updates)) / count,
    invalidates1000: (1000 * (now.invalidates - before.invalidates)) / count,
    hitRate: hitRate({ misses, chains }),
  }
}

/** Sends by `burst`, again and again, and ends when all of it has arrived. */
function sending({ tap, driver }: Port, burst: () => Promise<void>): Mover {
  return {
    move: async (ms) => {
      const end = performance.now() + ms
      while (performance.now() < end) await burst()
      await driver.flush()
    },
    frames: () => counters(tap.name).out,
  }
}

async function sentIn(
  { tap }: Port,
  sender: Mover,
  ms: number,
): Promise<Record<'packets' | 'pps' | 'cpuUsPerPacket' | 'mbytesPerSecond', number>> {
  const bytes = counters(tap.name).outBytes
  const cpu = process.cpuUsage()
  const { frames, seconds } = await moved(sender, ms)
  const { user, system } = process.cpuUsage(cpu)
  return {
    packets: frames,
    pps: frames / seconds,
    cpuUsPerPacket: (user + system) / Math.max(1, frames),
    mbytesPerSecond: (counters(tap.name).outBytes - bytes) / MiB / seconds,
  }
}

async function received(ms: number, warmMs: number): Promise<Sample> {
  using memory = memoryFor(OFF)
  using port = new Port(memory, new IntelIommu(memory), '00:03.0', OFF)
  await port.driver.start()
  let frames = 0
  port.driver.onFrames({
    frame: () => {
      frames += 1
    },
  })
  return await withTraffic(port.tap.name, () => passive(() => frames, ms, warmMs))
}

async function forwarded(ms: number, warmMs: number): Promise<Sample> {
  using forwarder = new Forwarder(OFF)
  await forwarder.start()
  const [from, to] = forwarder.ports
  const count = (): number => counters(to.tap.name).out
  return await withTraffic(from.tap.name, () => passive(count, ms, warmMs))
}

/** What comes by itself. */
async function passive(frames: () => number, ms: number, warmMs: number): Promise<Sample> {
  const mover: Mover = { move: (each) => sleep(each), frames }
  await warmedUp(mover, warmMs)
  const cpu = process.cpuUsage()
  const { frames: count, seconds } = await moved(mover, ms)
  const { user, system } = process.cpuUsage(cpu)
  return { pps: count / seconds, cpuUsPerPacket: (user + system) / Math.max(1, count) }
}

/** As many frames as the kernel can make on its first CPU, for as long as `during` takes. */
export async function withTraffic<T>(tap: string, during: () => Promise<T>): Promise<T> {
  await using traffic = new Pktgen([{ name: tap }], { bytes: FRAME_BYTES, rate: 0 })
  const before = counters(tap).offered
  traffic.start()
  const end = performance.now() + TRAFFIC_MS
  // Whoever waits for frames in a system call would keep the generator from being started.
  while (counters(tap).offered === before) {
    if (performance.now() > end) throw new Error('the generator made no frames')
    await sleep(5)
  }
  return await during()
}

/**
 * Frames of TCP that the kernel would cut into pieces of 1448 bytes, if it had to; sent from where
 * they lie in guest memory, as `write` sends what lies in a process.
 */
async function segments(ms: number, warmMs: number): Promise<Sample> {
  using memory = memoryFor(OFF)
  using port = new Port(memory, new IntelIommu(memory), '00:03.0', OFF)
  await port.driver.start()
  const gpa = PageAllocator.of(memory).allocate(SEGMENTS_BYTES / PAGE_SIZE) * PAGE_SIZE
  const at = gpa + NET_HEADER_BYTES
  memory.view(at, SEGMENT_FRAME_BYTES).set(tcpFrame(SEGMENT_FRAME_BYTES))
  const options = {
    headroom: true,
    checksum: { start: 34, offset: 16 },
    gso: { type: 'tcp4', size: 1448, headerLength: 54 },
  } as const
  const sender = sending(port, async () => {
    for (let i = 0; i < SEGMENTS_BURST; i++) {
      if (port.driver.sendInPlace(at, SEGMENT_FRAME_BYTES, options)) continue
      await port.driver.ready()
    }
    port.driver.publish()
  })
  await warmedUp(sender, warmMs)
  const { mbytesPerSecond, cpuUsPerPacket } = await sentIn(port, sender, ms)
  return { mbytesPerSecond, cpuUsPerPacket }
}

/** Ethernet, IPv4 and TCP to nobody, with headers that a kernel takes for whole. */
function tcpFrame(bytes: number): Uint8Array {
  const frame = frameOf(bytes)
  const view = new DataView(frame.buffer)
  view.setUint16(12, 0x0800)
  frame.set([0x45, 0], 14)
  view.setUint16(16, bytes - 14)
  frame.set([64, 6], 22)
  frame.set([192, 0, 2, 8, 192, 0, 2, 9], 26)
  view.setUint16(34, 9)
  view.setUint16(36, 9)
  frame[46] = 0x50
  frame[47] = 0x10
  return frame
}

/** A million frames through two ports, after a warm-up: misses, heap and major collections. */
export async function longForward(
  pageSize: '1G' | '2M',
  packets: number,
  limitMs: number,
): Promise<{ readonly hits: Sample; readonly heap: Sample }> {
  using forwarder = new Forwarder({ ...OFF, mapping: 'static', pageSize, lookAhead: 'on-miss' })
  await forwarder.start()
  const [first] = forwarder.ports
  return await withTraffic(first.tap.name, async () => {
    const done = (): number => forwarder.figures().forwarded[0]
    const warm = performance.now() + limitMs / 4
    while (done() < packets / 10 && performance.now() < warm) await sleep(50)
    using heap = new HeapWatch()
    const before = forwarder.figures()
    const started = performance.now()
    const end = started + limitMs
    while (done() - before.forwarded[0] < packets && performance.now() < end) await sleep(50)
    const seconds = (performance.now() - started) / 1000
    const { forwarded, misses, chains } = difference(forwarder.figures(), before)
    const count = forwarded[0]
    if (count === 0) throw new Error('no frame was forwarded in time')
    const hits = {
      pps: count / seconds,
      packets: count,
      misses,
      hitRate: hitRate({ misses, chains }),
    }
    return { hits, heap: await heap.sample(count) }
  })
}

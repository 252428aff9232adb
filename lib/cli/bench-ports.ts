/** The bench's contestants that are this library: frames out, in, and through, by `NetDriver`. */
import { setTimeout as sleep } from 'node:timers/promises'
import { KiB, MiB } from '../address'
import type { SendOptions } from '../guest/net-driver'
import { IntelIommu } from '../iommu/intel/intel-iommu'
import { counters, frameOf } from './bench-contestant'
import type { Contestant } from './bench-contestant'
import type { Sample } from './bench-figures'
import { HeapWatch } from './bench-heap'
import { Forwarder, Port, difference, hitRate, memoryFor } from './l2fwd'
import type { PortOptions } from './l2fwd'
import { Pktgen } from './pktgen'

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
const SEGMENTS_BYTES = 64 * KiB - 256

export function modeContestants(): readonly Contestant[] {
  return MAPPINGS.flatMap(([mapping, mapped]) =>
    POLICIES.map(([policy, answered]) => ({
      section: 'modes' as const,
      name: `${mapping}, ${policy}`,
      run: (ms: number) => out({ ...OFF, ...mapped, ...answered }, ms, MODE_BURST),
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
    run: (ms: number) => out({ ...strict, queueSize }, ms, MODE_BURST),
  }))
  const pairs = [1, 2, 4].map((queues) => ({
    section: 'pairs' as const,
    name: queues === 1 ? '1 pair' : `${queues} pairs`,
    run: (ms: number) => out({ ...strict, queues }, ms, MODE_BURST),
  }))
  return [...rings, ...pairs]
}

export const ours = {
  out: {
    section: 'out',
    name: 'vhost-iotlb',
    run: (ms) => out(OFF, ms, OUT_BURST),
  },
  in: { section: 'in', name: 'vhost-iotlb', run: (ms) => received(OFF, ms) },
  forward: {
    section: 'forward',
    name: 'vhost-iotlb',
    run: (ms) => forwarded(OFF, ms),
  },
  bytes: {
    section: 'bytes',
    name: 'vhost-iotlb, 64 KiB segments',
    run: (ms) => segments(ms),
  },
} as const satisfies Record<string, Contestant>

/** Frames to the host for so long, in bursts; what the kernel had to ask on the way. */
async function out(
  options: PortOptions,
  ms: number,
  burst: number,
  frame = frameOf(FRAME_BYTES),
  send?: SendOptions,
): Promise<Sample> {
  using memory = memoryFor(options)
  const iommu = new IntelIommu(memory)
  using port = new Port(memory, iommu, '00:03.0', options)
  await port.driver.start()
  const frames = Array.from({ length: burst }, () => frame)
  const pairs = Array.from({ length: options.queues }, (_, pair) => ({ ...send, pair }))
  await sendUntil(port, frames, pairs, performance.now() + ms / 2)
  const [stats, before, cpu] = [port.nic.stats(), counters(port.tap.name), process.cpuUsage()]
  const started = performance.now()
  await sendUntil(port, frames, pairs, started + ms)
  const seconds = (performance.now() - started) / 1000
  const used = process.cpuUsage(cpu)
  const after = counters(port.tap.name)
  const now = port.nic.stats()
  const count = Math.max(1, after.out - before.out)
  const chains = now.chains - stats.chains
  const misses = now.misses - stats.misses
  return {
    packets: after.out - before.out,
    pps: (after.out - before.out) / seconds,
    misses1000: (1000 * misses) / count,
    updates1000: (1000 * (now.updates - stats.updates)) / count,
    invalidates1000: (1000 * (now.invalidates - stats.invalidates)) / count,
    hitRate: hitRate({ misses, chains }),
    cpuUsPerPacket: (used.user + used.system) / count,
    mbytesPerSecond: (after.outBytes - before.outBytes) / MiB / seconds,
  }
}

async function sendUntil(
  { driver }: Port,
  frames: readonly Uint8Array[],
  pairs: readonly SendOptions[],
  end: number,
): Promise<void> {
  while (performance.now() < end) {
    for (const options of pairs) {
      const sent = driver.sendBatch(frames, options)
      if (sent < frames.length) await driver.ready(frames[0].length, options.pair)
    }
  }
  await driver.flush()
}

async function received(options: PortOptions, ms: number): Promise<Sample> {
  using memory = memoryFor(options)
  using port = new Port(memory, new IntelIommu(memory), '00:03.0', options)
  await port.driver.start()
  let frames = 0
  port.driver.onFrame(() => (frames += 1), { copy: false })
  return await withTraffic(port.tap.name, async () => {
    const before = frames
    const pps = await rate(ms, () => frames - before)
    return { pps }
  })
}

async function forwarded(options: PortOptions, ms: number): Promise<Sample> {
  using forwarder = new Forwarder(options)
  await forwarder.start()
  const [from, to] = forwarder.ports
  return await withTraffic(from.tap.name, async () => {
    const before = counters(to.tap.name).out
    const pps = await rate(ms, () => counters(to.tap.name).out - before)
    return { pps }
  })
}

/** As many frames as the kernel can make, into one tap; for as long as `during` takes. */
export async function withTraffic<T>(tap: string, during: () => Promise<T>): Promise<T> {
  await using traffic = new Pktgen([{ name: tap }], { bytes: FRAME_BYTES, rate: 0 })
  traffic.start()
  await sleep(150)
  return await during()
}

/** What `count` counts, a second. */
export async function rate(ms: number, count: () => number): Promise<number> {
  const started = performance.now()
  await sleep(ms)
  return count() / ((performance.now() - started) / 1000)
}

/** Frames of TCP that the kernel would cut into pieces of 1448 bytes, if it had to. */
async function segments(ms: number): Promise<Sample> {
  const { mbytesPerSecond, cpuUsPerPacket } = await out(OFF, ms, 4, tcpFrame(SEGMENTS_BYTES), {
    checksum: { start: 34, offset: 16 },
    gso: { type: 'tcp4', size: 1448, headerLength: 54 },
  })
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

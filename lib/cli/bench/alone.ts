/** What the bench can measure without vhost-net: a walk, the heap over a loopback, the process. */
import { execFile, spawn } from 'node:child_process'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { MiB, READ } from '../../address'
import { IntelIommuDriver } from '../../guest/intel-iommu-driver'
import { NetDriver } from '../../guest/net-driver'
import type { Mapping } from '../../guest/net-driver'
import { IntelIommu } from '../../iommu/intel/intel-iommu'
import { PageTranslation } from '../../memory/address-space'
import { GuestMemory } from '../../memory/guest-memory'
import { LoopbackDevice } from '../../testing/loopback-device'
import { frameOf } from './contestant'
import type { Contestant } from './contestant'
import { median } from './figures'
import type { Sample } from './figures'
import { HeapWatch } from './heap'
import { text } from './peers'

const REQUESTER = '00:03.0'
const PAGES = 16384
const BURST = 32
const RUNS = 7

/** @param programs where `walk` is, or undefined without a compiler */
export function walkContestants(walks: number, programs: string | undefined): Contestant[] {
  const js: Contestant = {
    section: 'walk',
    name: 'vhost-iotlb',
    run: () => Promise.resolve({ ns: walked(walks) }),
  }
  if (programs === undefined) return [js]
  const c: Contestant = {
    section: 'walk',
    name: 'c',
    run: async () => {
      const output = await text(spawn(join(programs, 'walk'), [String(PAGES), String(walks)]))
      return { ns: (JSON.parse(output) as { readonly ns: number }).ns }
    },
  }
  return [js, c]
}

/** Nanoseconds of one walk, over 64 MiB in pages of 4 KiB, in an order that no cache foresees. */
function walked(walks: number): number {
  using memory = GuestMemory.allocate(64 * MiB)
  const iommu = new IntelIommu(memory)
  using driver = new IntelIommuDriver(iommu, memory, {
    ...{ requester: REQUESTER, mode: 'static', pageSize: '4K' },
  })
  driver.enable()
  const space = iommu.addressSpace(REQUESTER)
  const out = new PageTranslation()
  // As `walk.c` does; the first is before the clock, so that all is compiled.
  const runs: number[] = []
  let granted = walkAll(space, out, walks)
  for (let run = 0; run < RUNS; run++) {
    const started = performance.now()
    granted = Math.min(granted, walkAll(space, out, walks))
    runs.push(((performance.now() - started) * 1e6) / walks)
  }
  if (granted !== walks) throw new Error(`${granted} of ${walks} walks found their page`)
  return median(runs)
}

function walkAll(
  space: ReturnType<IntelIommu['addressSpace']>,
  out: PageTranslation,
  walks: number,
): number {
  let seed = 1
  let granted = 0
  for (let i = 0; i < walks; i++) {
    seed = (Math.imul(seed, 1664525) + 1013904223) | 0
    if (space.translatePage((seed >>> 8) % PAGES, READ, out)) granted++
  }
  return granted
}

/** The driver and a device in this process: what it leaves behind is the library's own. */
export function heapContestants(packets: number): readonly Contestant[] {
  return (['off', 'strict'] as const).map((mapping) => ({
    section: 'heap',
    name: `loopback, ${mapping}`,
    run: () => looped(mapping, packets),
  }))
}

async function looped(mapping: Mapping, packets: number): Promise<Sample> {
  using memory = GuestMemory.allocate(64 * MiB)
  const iommu = new IntelIommu(memory)
  using device = new LoopbackDevice({
    memory,
    ...(mapping === 'off' ? {} : { addressSpace: iommu.addressSpace(REQUESTER) }),
    requester: 0x18,
    onTransmit: () => undefined,
  })
  using driver = NetDriver.attach(device, { memory, iommu, mapping })
  await driver.start()
  const frames = Array.from({ length: BURST }, () => frameOf(64))
  await send(driver, frames, packets / 10)
  using heap = new HeapWatch()
  await send(driver, frames, packets)
  return await heap.sample(packets)
}

async function send(
  driver: NetDriver,
  frames: readonly Uint8Array[],
  count: number,
): Promise<void> {
  for (let sent = 0; sent < count;) {
    const placed = driver.sendBatch(frames)
    sent += placed
    if (placed < frames.length) await driver.ready()
  }
  await driver.flush()
}

/**
 * Of a process of its own that has one running port and 64 MiB of guest memory, less that memory.
 */
export const memoryContestants: readonly Contestant[] = [
  { section: 'memory', name: 'node alone', run: () => resident('') },
  { section: 'memory', name: 'one port', run: () => resident(ONE_PORT) },
]

const ONE_PORT = `
const { GuestMemory, IntelIommu, NetDriver, Tap, VhostNet, MiB } = require(process.argv[1])
const tap = Tap.open('rss%d')
const memory = GuestMemory.allocate(64 * MiB)
const iommu = new IntelIommu(memory)
const nic = VhostNet.open({ memory, addressSpace: iommu.addressSpace('00:03.0'), backend: tap })
const driver = NetDriver.attach(nic, { memory, iommu, mapping: 'strict' })
await driver.start()
const frame = new Uint8Array(64)
for (let i = 0; i < 2000; i++) { driver.send(frame) || await driver.ready() }
await driver.flush()
`

const REPORT = `
const status = require('node:fs').readFileSync('/proc/self/status', 'latin1')
const kib = (name) => Number(new RegExp(name + ':\\\\s+(\\\\d+)').exec(status)[1])
console.log(JSON.stringify({ rss: kib('VmRSS'), shmem: kib('RssShmem') }))
process.exit(0)
`

async function resident(before: string): Promise<Sample> {
  const script = `void (async () => {${before}${REPORT}})()`
  const library = join(__dirname, '../../index.js')
  const { stdout } = await promisify(execFile)(process.execPath, ['-e', script, library])
  const { rss, shmem } = JSON.parse(stdout) as { readonly rss: number; readonly shmem: number }
  return { rssMiB: (rss - shmem) / 1024, guestMiB: shmem / 1024 }
}

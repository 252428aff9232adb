/**
 * The bench's section of exposure: what a device can reach, by the way in which buffers are mapped.
 */
import { KiB } from '../../address'
import { IntelIommuDriver } from '../../guest/intel-iommu-driver'
import { NetDriver } from '../../guest/net-driver'
import type { Mapping } from '../../guest/net-driver'
import type { PageSize } from '../../guest/intel-iommu-driver'
import { IntelIommu } from '../../iommu/intel/intel-iommu'
import { merged } from '../../iotlb/reply-policy'
import { ExposureMeter } from '../../trace/exposure'
import { Tap } from '../../vhost/tap'
import { VhostNet } from '../../vhost/net'
import { frameOf } from './contestant'
import type { Contestant } from './contestant'
import type { Sample } from './figures'
import { memoryFor } from '../l2fwd'

const REQUESTER = '00:03.0'
const BURST = 32
const FRAME_BYTES = 64
/** Four times around a ring. */
const LEAST_FRAMES = 1024
const MOST_TIMES = 20
const MAPPINGS: readonly (readonly [string, Mapping, PageSize])[] = [
  ['strict', 'strict', '4K'],
  ['lazy', 'lazy', '4K'],
  ['static 4K', 'static', '4K'],
  ['static 2M', 'static', '2M'],
]

export const exposureContestants: readonly Contestant[] = MAPPINGS.map(
  ([name, mapping, pageSize]) => ({
    section: 'exposure',
    name,
    run: (ms) => exposed(mapping, pageSize, ms),
  }),
)

/** Frames to the host for so long, in bursts, as the section of modes has them. */
async function exposed(mapping: Mapping, pageSize: PageSize, ms: number): Promise<Sample> {
  const meter = new ExposureMeter()
  using memory = memoryFor({ mapping, pageSize, lookAhead: 'on-kick', queues: 1 })
  const iommu = new IntelIommu(memory)
  using tap = Tap.open('exp%d')
  using nic = VhostNet.open({
    ...{ memory, addressSpace: iommu.addressSpace(REQUESTER), backend: tap },
    ...{ lookAhead: 'on-kick', reply: merged(128 * KiB), channel: meter.channel },
  })
  const dma = new IntelIommuDriver(iommu, memory, { requester: REQUESTER, mode: mapping, pageSize })
  using driver = NetDriver.attach(nic, { memory, mapping, dma: meter.dma(dma) })
  await driver.start()
  const frames = Array.from({ length: BURST }, () => frameOf(FRAME_BYTES))
  await sendFor(driver, frames, ms / 2)
  meter.restart()
  const packets = await sendFor(driver, frames, ms)
  const { seconds, staleBytes, byteSeconds, longest, ...means } = meter.read()
  return {
    packets,
    pps: packets / seconds,
    staleKiB: byteSeconds / KiB / seconds,
    staleMsPerByte: staleBytes === 0 ? 0 : (byteSeconds / staleBytes) * 1000,
    longestMs: longest * 1000,
    reachableKiB: means.reachableBytes / KiB,
    inFlightKiB: means.inFlightBytes / KiB,
  }
}

/** So long, and until buffers have been around; on a slow machine that takes longer. */
async function sendFor(
  driver: NetDriver,
  frames: readonly Uint8Array[],
  ms: number,
): Promise<number> {
  const begin = performance.now()
  let sent = 0
  for (;;) {
    const passed = performance.now() - begin
    if (passed >= ms && (sent >= LEAST_FRAMES || passed >= ms * MOST_TIMES)) return sent
    const now = driver.sendBatch(frames)
    sent += now
    if (now < frames.length) await driver.ready(frames[0].length)
  }
}

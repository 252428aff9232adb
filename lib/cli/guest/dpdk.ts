/**
 * An experiment with DPDK in a stock guest: its user-space driver maps all of its memory for the
 * network card once, through vfio and the guest's own IOMMU driver, and forwards what it receives.
 * So there is something to miss only at the beginning.
 *
 * Frames come from the packet generator of this host's kernel, through the tap and back into it.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { PAGE_SIZE } from '../../address'
import type { Iova } from '../../address'
import { defaultCacheDirectory } from '../../vm/cache'
import type { KernelLine } from '../../vm/kernel'
import { testpmd } from '../../vm/testpmd'
import type { Tap } from '../../vhost/tap'
import { debianGuest } from '../../vmm/debian-guest'
import { GuestShell } from '../../vmm/guest-shell'
import { Machine } from '../../vmm/machine'
import type { MachineOptions } from '../../vmm/machine'
import type { VhostNetStats } from '../../vhost/net'
import type { GUEST_PAGES } from '../choices'
import { Pktgen } from '../pktgen'
import { endWith, quietTap, seconds, statistic } from './traffic'
import type { Ends } from './traffic'

export type GuestPages = (typeof GUEST_PAGES)[number]

export interface DpdkExperiment extends Pick<MachineOptions, 'lookAhead' | 'ats'> {
  readonly line: KernelLine
  readonly pages: GuestPages
  /** Frames to forward after the warm-up. */
  readonly packets: number
  readonly print: (line: string) => void
}

/** One part of the run. */
export interface Phase {
  readonly seconds: number
  /** Frames that the guest has sent back. */
  readonly forwarded: number
  /** Chains that the kernel completed: for each it looks up where the frame's bytes are. */
  readonly lookups: number
  readonly misses: number
  readonly updates: number
  readonly invalidates: number
  readonly evictions: number
}

export interface DpdkResult {
  /** Frames were forwarded, none of them missed after the warm-up, and nothing faulted. */
  readonly ok: boolean
  readonly kernel: string
  readonly pages: GuestPages
  /** Bytes that the table entry behind the receive ring maps. */
  readonly leafBytes: number
  /** The guest has switched the network card's ATS on. */
  readonly deviceIotlb: boolean
  readonly bootSeconds: number
  /** From the guest's first instruction to the end of the warm-up, and what came after. */
  readonly warmUp: Phase
  readonly steady: Phase
  /** Translations in the kernel's table at the end, and the 4 KiB pages that they cover. */
  readonly entries: number
  readonly coveredPages: number
  readonly faults: number
}

/** Where the one network card of the machine is. */
const CARD = '0000:01:00.0'
const DEVICE = `/sys/bus/pci/devices/${CARD}`
const MODULES: readonly string[] = ['vfio_pci', 'vfio_iommu_type1']
/** A gigabyte in one piece is only there above what the kernel takes for itself as it boots. */
const MEMORY_MIB: Readonly<Record<GuestPages, number>> = { '1G': 4096, '2M': 1024, '4K': 1024 }
const KERNEL: Readonly<Record<GuestPages, readonly string[]>> = {
  '1G': ['default_hugepagesz=1G', 'hugepagesz=1G', 'hugepages=1'],
  '2M': ['hugepages=128'],
  // Or what DPDK asks for in small pages would be of large ones after all.
  '4K': ['transparent_hugepage=never'],
}
const DPDK: Readonly<Record<GuestPages, string>> = {
  '1G': '--in-memory',
  '2M': '--in-memory',
  '4K': '--no-huge -m 256 --iova-mode=va',
}
const LOG = '/tmp/testpmd'
/** What it says when it has begun, and the shell when it has ended. */
const FORWARDS = 'io packet forwarding'
const ENDED = 'testpmd ended'
const BOOT_SECONDS = 180
/** An emulated processor clears 1 GiB, or maps 65536 pages, in minutes. */
const START_SECONDS = 400
/** Bytes of a frame, and frames a second into the tap: about what an emulated guest forwards. */
const TRAFFIC = { bytes: 60, rate: 20_000 }
/** Enough for every buffer of DPDK's pool to have been used. */
const WARM_UP_FRAMES = 20_000
/** Slower than this, and something hangs. */
const LEAST_RATE = 200
const TURN_MS = 50

/**
 * On a host with /dev/kvm and /dev/vhost-net.
 * @throws SystemError, VmError; Error where it hangs
 */
export async function dpdkExperiment(options: DpdkExperiment): Promise<DpdkResult> {
  const { line, pages, packets, print, ats = true, lookAhead } = options
  const program = await testpmd(defaultCacheDirectory())
  const append = KERNEL[pages]
  const guest = { modules: MODULES, append, files: program.files }
  const { release, image } = await debianGuest(line, 'strict', guest)
  using tap = quietTap()
  const shell = new GuestShell()
  const policy = { ats, ...(lookAhead && { lookAhead }) }
  const memoryMiB = MEMORY_MIB[pages]
  using machine = new Machine({
    ...{ image, tap, memoryMiB, onConsole: shell.hear },
    ...policy,
    onReset: 'end',
  })
  endWith(machine, shell)
  const started = performance.now()
  machine.start()
  await shell.ready(machine, BOOT_SECONDS)
  const bootSeconds = seconds(started)
  print(`Linux ${release} is up after ${bootSeconds} s, ${image.commandLine}`)
  await startTestpmd(shell, program.command, pages)
  print(`testpmd forwards after ${seconds(started)} s`)

  const from = { machine, shell, tap }
  const zero = { at: started, frames: 0, stats: NOTHING }
  const [warmUp, steady] = await withTraffic(tap, async () => {
    const warm = await forwarded(from, 0, WARM_UP_FRAMES)
    const end = await forwarded(from, warm.frames, packets)
    return [phase(zero, warm), phase(warm, end)]
  })
  print(row('warm-up', warmUp))
  print(row('steady', steady))
  const { entries, pages: coveredPages, faults } = machine.stats().nic
  const allFaults = faults + machine.stats().recordedFaults
  const deviceIotlb = machine.net.pci.ats?.enabled ?? false
  return {
    ok:
      steady.misses === 0 && steady.forwarded >= packets && allFaults === 0 && deviceIotlb === ats,
    ...{ kernel: release, pages, leafBytes: leafBytes(machine), deviceIotlb, bootSeconds },
    ...{ warmUp, steady, entries, coveredPages, faults: allFaults },
  }
}

/** The card to vfio, and DPDK on it. */
async function startTestpmd(shell: GuestShell, program: string, pages: GuestPages): Promise<void> {
  // This machine does not remap interrupts.
  await shell.run('echo 1 >/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts')
  // The driver of virtio is a part of some kernels.
  await shell.run(`cd ${DEVICE}; test ! -e driver || echo ${CARD} >driver/unbind`)
  await shell.run(`echo vfio-pci >driver_override; echo ${CARD} >/sys/bus/pci/drivers_probe`)
  // DPDK loads nothing from below a directory that anybody can write to.
  await shell.run('chmod 755 /; mkdir -p /var/run')
  // One thread waits for its input, the other one forwards.
  const options = `--lcores 0@0,1@0 --no-telemetry -a ${CARD} ${DPDK[pages]}`
  const forward = '--forward-mode=io --auto-start --nb-cores=1 --total-num-mbufs=4096'
  // It ends with its input.
  const command = `${program} ${options} -- ${forward}`
  await shell.run(`( sleep 1000000 | ${command}; echo ${ENDED} ) >${LOG} 2>&1 &`)
  await shell.run(`until grep -qE '${FORWARDS}|${ENDED}' ${LOG}; do sleep 1; done`, START_SECONDS)
  await shell.run(`grep -q '${FORWARDS}' ${LOG} || { cat ${LOG}; false; }`)
}

interface Moment {
  readonly at: number
  readonly frames: number
  readonly stats: Counted
}

type Counted = Pick<VhostNetStats, 'chains' | 'misses' | 'updates' | 'invalidates' | 'evictions'>

const NOTHING: Counted = { chains: 0, misses: 0, updates: 0, invalidates: 0, evictions: 0 }

async function withTraffic<T>(tap: Tap, run: () => Promise<T>): Promise<T> {
  await using generator = new Pktgen([{ name: tap.name }], TRAFFIC)
  generator.start()
  return await run()
}

/** Until so many more frames have come back from the guest. @throws Error where they do not come */
async function forwarded(
  { machine, shell, tap }: Ends & { readonly machine: Machine },
  since: number,
  wanted: number,
): Promise<Moment> {
  const deadline = performance.now() + 1000 * (START_SECONDS + wanted / LEAST_RATE)
  for (;;) {
    const frames = statistic(tap, 'rx_packets')
    const { nic } = machine.stats()
    shell.check()
    if (frames - since >= wanted) return { at: performance.now(), frames, stats: nic }
    if (performance.now() > deadline) {
      throw new Error(`the guest has forwarded ${frames - since} of ${wanted} frames`)
    }
    await sleep(TURN_MS)
  }
}

function phase(from: Moment, to: Moment): Phase {
  const more = (name: keyof Counted): number => to.stats[name] - from.stats[name]
  return {
    seconds: Math.round(to.at - from.at) / 1000,
    forwarded: to.frames - from.frames,
    lookups: more('chains'),
    misses: more('misses'),
    updates: more('updates'),
    invalidates: more('invalidates'),
    evictions: more('evictions'),
  }
}

/** By the last entry of the walk to the descriptors of the receiving queue. */
function leafBytes({ iommu, net }: Machine): number {
  const { requester } = net.root
  if (iommu === undefined || requester === undefined) return 0
  const steps = iommu.explain(requester, net.pci.transport.queues[0].desc as Iova)
  const levels = steps.flatMap(({ what }) => /level (\d)$/.exec(what)?.[1] ?? [])
  return PAGE_SIZE * 512 ** (Number(levels.at(-1) ?? 1) - 1)
}

function row(name: string, { forwarded, seconds, lookups, misses, updates }: Phase): string {
  return (
    `${name.padEnd(8)} ${forwarded} frames forwarded after ${seconds} s: ` +
    `${lookups} lookups, ${misses} misses, ${updates} updates`
  )
}

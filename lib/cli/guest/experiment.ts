/**
 * An experiment with a guest that nobody here wrote: a stock Debian kernel programs the emulated
 * VT-d, sends and receives through the kernel's vhost-net, and is counted from outside. Beside it,
 * where that is asked for, the same guest on somebody else's machine.
 *
 * Frames are made by the kernels' packet generators, in the guest and on this host, so that nothing
 * of this program is on their path.
 */
import type { KernelLine } from '../../vm/kernel'
import type { VhostNetStats } from '../../vhost/net'
import { debianGuest } from '../../vmm/debian-guest'
import type { DebianGuest, GuestMode } from '../../vmm/debian-guest'
import { GuestShell } from '../../vmm/guest-shell'
import { Machine } from '../../vmm/machine'
import type { MachineOptions } from '../../vmm/machine'
import type { PEERS } from '../choices'
import { Qemu } from './qemu'
import { PINGS, connect, exchange, quietTap, rateText, seconds } from './traffic'
import type { Plan, Rate, Way } from './traffic'

export interface GuestExperiment extends Pick<
  MachineOptions,
  'lookAhead' | 'ats' | 'shareRegisters'
> {
  readonly line: KernelLine
  readonly mode: GuestMode
  /** Frames each way. */
  readonly packets: number
  /** Then the same with this. Both send frames that do not count before those that do. */
  readonly beside?: (typeof PEERS)[number]
  readonly print: (line: string) => void
}

/** What one direction cost. */
export interface Direction extends Rate {
  readonly misses: number
  readonly updates: number
  readonly invalidates: number
  /** Exits of the guest's processors that this program handled. */
  readonly exits: number
  readonly exitsPer1000: number
  /** Invalidations that it submitted without an exit. */
  readonly served: number
}

/** The same frames through the same guest on another machine. */
export interface Peer extends Readonly<Record<Way, Rate>> {
  readonly name: string
  readonly version: string
}

export interface Comparison {
  readonly peer: Peer
  /** Frames a second: ours in those of the peer. */
  readonly ratio: Readonly<Record<Way, number>>
}

export interface GuestResult extends Partial<Comparison> {
  /** Nothing was lost, nothing faulted, and the device IOTLB was used where there is one. */
  readonly ok: boolean
  readonly kernel: string
  readonly mode: GuestMode
  /** The guest has switched the network card's ATS on. */
  readonly deviceIotlb: boolean
  readonly sent: number
  readonly received: number
  readonly lost: number
  readonly misses: number
  readonly missesPer1000: number
  readonly invalidates: number
  /** From the first instruction to the shell. */
  readonly bootSeconds: number
  readonly pings: number
  readonly faults: number
  readonly out: Direction
  readonly in: Direction
}

const BOOT_SECONDS = 180
/** Of both machines. */
const MEMORY_MIB = 512
const PROCESSORS = 1
const MAC = '02:00:00:00:00:02'
/** Above what the guest takes. */
const IN_RATE: Readonly<Record<GuestMode, number>> = {
  strict: 4000,
  lazy: 10_000,
  passthrough: 20_000,
  off: 20_000,
}
/** Frames each way before those that are compared. */
const WARM_UP_FRAMES = 10_000

/**
 * On a host with /dev/kvm and /dev/vhost-net.
 * @throws SystemError, VmError; Error where it hangs
 */
export async function guestExperiment(options: GuestExperiment): Promise<GuestResult> {
  const { line, mode, packets, beside } = options
  const guest = await debianGuest(line, mode)
  const plan = { packets, warmUp: 0, rate: IN_RATE[mode] }
  if (beside === undefined) return ownRun(options, guest, plan)
  const warmPlan = { ...plan, warmUp: WARM_UP_FRAMES }
  const own = await ownRun(options, guest, warmPlan)
  return { ...own, ...(await compared(own, options, guest, warmPlan)) }
}

async function ownRun(
  { mode, lookAhead, ats = true, shareRegisters, print }: GuestExperiment,
  { release, image }: DebianGuest,
  plan: Plan,
): Promise<GuestResult> {
  using tap = quietTap()
  const shell = new GuestShell()
  using machine = new Machine({
    ...{ image, tap, ats, memoryMiB: MEMORY_MIB, processors: PROCESSORS, mac: MAC },
    ...{ onConsole: shell.hear, ...(lookAhead && { lookAhead }) },
    ...(shareRegisters !== undefined && { shareRegisters }),
  })
  const started = performance.now()
  machine.start()
  await shell.ready(machine, BOOT_SECONDS)
  const bootSeconds = seconds(started)
  print(`Linux ${release} is up after ${bootSeconds} s, ${image.commandLine}`)
  const pings = await connect({ shell, tap })
  print(`${pings} of ${PINGS} pings answered, ${stats(machine).misses} misses so far`)

  const ways = await exchange({ shell, tap }, plan, async (way, run) => {
    const direction = await counted(machine, run)
    print(row(way, direction))
    return direction
  })
  const deviceIotlb = machine.net.pci.ats?.enabled ?? false
  const faults = stats(machine).faults + machine.stats().recordedFaults
  const total = totals([ways.out, ways.in])
  // Where all is passed through, it is for the guest: Linux 6.1 switches it on, 6.12 does not.
  const expected = mode === 'passthrough' ? deviceIotlb : ats && mode !== 'off'
  return {
    ok: total.lost === 0 && pings === PINGS && faults === 0 && deviceIotlb === expected,
    ...{ kernel: release, mode, deviceIotlb },
    ...total,
    ...{ bootSeconds, pings, faults, ...ways },
  }
}

/** After our own run, so that neither takes the processors from the other. */
async function compared(
  own: Readonly<Record<Way, Rate>>,
  { ats = true, print }: GuestExperiment,
  { release, image, tools }: DebianGuest,
  plan: Plan,
): Promise<Comparison> {
  const version = await Qemu.version(tools)
  using tap = quietTap()
  const shell = new GuestShell()
  await using qemu = new Qemu(tools, {
    ...{ image, tap, ats, memoryMiB: MEMORY_MIB, processors: PROCESSORS, mac: MAC },
    onConsole: shell.hear,
  })
  const started = performance.now()
  const ways = await qemu.during(async () => {
    await shell.ready(qemu, BOOT_SECONDS)
    print(`QEMU ${version}: Linux ${release} is up after ${seconds(started)} s`)
    await connect({ shell, tap })
    return exchange({ shell, tap }, plan, async (way, run) => {
      const rate = await run()
      print(rateText(way, rate))
      return rate
    })
  })
  const ratio = { out: quotient(own.out, ways.out), in: quotient(own.in, ways.in) }
  print(`frames a second in those of QEMU: out ${ratio.out}, in ${ratio.in}`)
  return { peer: { name: 'QEMU', version, ...ways }, ratio }
}

function quotient(ours: Rate, theirs: Rate): number {
  return Math.round((100 * ours.packetsPerSecond) / theirs.packetsPerSecond) / 100
}

async function counted(machine: Machine, run: () => Promise<Rate>): Promise<Direction> {
  const before = stats(machine)
  const { exits: exitsBefore, served: servedBefore } = machine.stats()
  const rate = await run()
  const after = stats(machine)
  const exits = machine.stats().exits - exitsBefore
  return {
    ...rate,
    misses: after.misses - before.misses,
    updates: after.updates - before.updates,
    invalidates: after.invalidates - before.invalidates,
    exits,
    exitsPer1000: Math.round((1000 * exits) / Math.max(rate.received, 1)),
    served: machine.stats().served - servedBefore,
  }
}

function totals(directions: readonly Direction[]) {
  const sum = (of: keyof Direction): number => directions.reduce((all, d) => all + d[of], 0)
  const [sent, received, misses] = [sum('sent'), sum('received'), sum('misses')]
  const missesPer1000 = Math.round((misses * 10_000) / Math.max(received, 1)) / 10
  const invalidates = sum('invalidates')
  return { sent, received, lost: sent - received, misses, missesPer1000, invalidates }
}

function row(way: Way, d: Direction): string {
  const per1000 = (count: number): string => ((count * 1000) / d.received).toFixed(1)
  return (
    `${rateText(way, d)}; per 1000: ` +
    `${per1000(d.misses)} misses, ${per1000(d.updates)} updates, ` +
    `${per1000(d.invalidates)} invalidates, ${d.exitsPer1000} exits`
  )
}

function stats(machine: Machine): VhostNetStats {
  return machine.stats().nic
}

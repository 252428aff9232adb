/**
 * An experiment with a guest that nobody here wrote: a stock Debian kernel programs the emulated
 * VT-d, sends and receives through the kernel's vhost-net, and is counted from outside.
 *
 * Frames are made by the kernels' packet generators, in the guest and on this host, so that nothing
 * of this program is on their path.
 */
import { readFileSync, writeFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import type { KernelLine } from '../vm/kernel'
import { setAddress } from '../vhost/interface'
import { Tap } from '../vhost/tap'
import type { VhostNetStats } from '../vhost/net'
import { debianGuest } from '../vmm/debian-guest'
import type { GuestMode } from '../vmm/debian-guest'
import { GuestShell } from '../vmm/guest-shell'
import { Machine } from '../vmm/machine'
import type { MachineOptions } from '../vmm/machine'
import { Pktgen } from './pktgen'

export interface GuestExperiment extends Pick<MachineOptions, 'lookAhead' | 'ats'> {
  readonly line: KernelLine
  readonly mode: GuestMode
  /** Frames each way. */
  readonly packets: number
  readonly print: (line: string) => void
}

/** What one direction cost. */
export interface Direction {
  /** Frames that left their kernel, and those that came to the other. */
  readonly sent: number
  readonly received: number
  /** From the order to send to the last frame at the tap. */
  readonly seconds: number
  readonly packetsPerSecond: number
  readonly misses: number
  readonly updates: number
  readonly invalidates: number
  /** Exits of the guest's processors that this program handled. */
  readonly exits: number
  readonly exitsPer1000: number
}

export interface GuestResult {
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

/** RFC 5737: addresses for documentation, which no network uses. */
const HOST_IP = '192.0.2.1'
const GUEST_IP = '192.0.2.2'
/** Of nobody: this host does not answer frames to it, not even that they can't be delivered. */
const SINK_IP = '192.0.2.9'
/** Seconds after which a kernel asks a neighbour whether it is still there: not during this. */
const NO_PROBE = 86_400
const BOOT_SECONDS = 180
const PINGS = 5
const FRAME_BYTES = 60
/**
 * Frames a second into the tap, above what the guest takes. What its queue has no room for is
 * dropped before it counts as sent, and costs time that the guest could use.
 */
const IN_RATE: Readonly<Record<GuestMode, number>> = {
  strict: 4000,
  lazy: 10_000,
  passthrough: 20_000,
  off: 20_000,
}
const TURN_MS = 20
/** A guest in strict mode has several exits a frame, which an emulated processor takes its time for. */
const LEAST_RATE = 10
const START_SECONDS = 60
const SETTLE_MS = 500

/** On a host with /dev/kvm and /dev/vhost-net. @throws SystemError, VmError; Error where it hangs */
export async function guestExperiment(options: GuestExperiment): Promise<GuestResult> {
  const { line, mode, packets, print, lookAhead, ats = true } = options
  const { release, image } = await debianGuest(line, mode)
  using tap = Tap.open('guest%d', { up: false })
  quiet(tap.name)
  tap.up = true
  setAddress(tap.name, Uint8Array.from(HOST_IP.split('.'), Number), 24)
  const shell = new GuestShell()
  const more = { ats, onConsole: shell.hear, ...(lookAhead && { lookAhead }) }
  using machine = new Machine({ image, tap, ...more })
  const started = performance.now()
  machine.start()
  await shell.ready(machine, BOOT_SECONDS)
  const bootSeconds = seconds(started)
  print(`Linux ${release} is up after ${bootSeconds} s, ${image.commandLine}`)

  await shell.run('echo 1 >/proc/sys/net/ipv6/conf/eth0/disable_ipv6')
  await shell.run(`echo ${NO_PROBE} >/proc/sys/net/ipv4/neigh/eth0/delay_first_probe_time`)
  await shell.run(`ip addr add ${GUEST_IP}/24 dev eth0; ip link set eth0 up`)
  const said = await shell.run(`ping -c ${PINGS} -i 0.2 ${HOST_IP}`)
  const pings = Number(/(\d+) packets received/.exec(said)?.[1] ?? 0)
  print(`${pings} of ${PINGS} pings answered, ${stats(machine).misses} misses so far`)

  const outward = await sendOut(machine, shell, tap, packets)
  print(row('out', outward))
  const inward = await sendIn(machine, shell, tap, { packets, rate: IN_RATE[mode] })
  print(row('in', inward))
  const deviceIotlb = machine.net.pci.ats?.enabled ?? false
  const faults = stats(machine).faults + machine.stats().recordedFaults
  const total = totals([outward, inward])
  // Where all is passed through, it is for the guest: Linux 6.1 switches it on, 6.12 does not.
  const expected = mode === 'passthrough' ? deviceIotlb : ats && mode !== 'off'
  return {
    ok: total.lost === 0 && pings === PINGS && faults === 0 && deviceIotlb === expected,
    ...{ kernel: release, mode, deviceIotlb },
    ...total,
    ...{ bootSeconds, pings, faults, out: outward, in: inward },
  }
}

/** pktgen of the guest: each frame is mapped, sent and unmapped as any driver's would be. */
async function sendOut(
  machine: Machine,
  shell: GuestShell,
  tap: Tap,
  packets: number,
): Promise<Direction> {
  const orders = [
    `count ${packets}`,
    `pkt_size ${FRAME_BYTES}`,
    `dst_mac ${tap.macAddress}`,
    `dst ${SINK_IP}`,
    'delay 0',
  ]
  await shell.run('cd /proc/net/pktgen; echo add_device eth0 >kpktgend_0')
  for (const order of orders) await shell.run(`echo ${order} >eth0`)
  const frames = (): number => statistic(tap, 'rx_packets')
  // Not what pktgen counts: the kernel has an ARP frame of its own to send now and then.
  const left = (): Promise<number> => guestStatistic(shell, 'tx_packets')
  const [before, first] = [frames(), await left()]
  return measured(machine, async () => {
    await shell.run('echo start >pgctrl', patience(packets))
    const ended = await quietened(frames)
    const received = frames() - before
    // The driver counts a frame when it takes it back, which the last ones have to wait for.
    return { sent: Math.max(packets, received, (await left()) - first), received, ended }
  })
}

/** pktgen of this host, until the tap has taken so many; what its queue has no room for is not sent. */
async function sendIn(
  machine: Machine,
  shell: GuestShell,
  tap: Tap,
  { packets, rate }: { readonly packets: number; readonly rate: number },
): Promise<Direction> {
  const arrived = (): Promise<number> => guestStatistic(shell, 'rx_packets')
  // What is on its way now has been counted at the tap already.
  await quietened(arrived)
  const before = await arrived()
  return measured(machine, async () => {
    const first = statistic(tap, 'tx_packets')
    {
      await using generator = new Pktgen([{ name: tap.name }], {
        bytes: FRAME_BYTES,
        rate,
      })
      generator.start()
      const deadline = performance.now() + 1000 * patience(packets)
      while (statistic(tap, 'tx_packets') - first < packets) {
        if (performance.now() > deadline) throw new Error('the tap takes no frames any more')
        await sleep(TURN_MS)
      }
    }
    const ended = await quietened(() => statistic(tap, 'tx_packets'))
    // The guest has yet to take what its queue holds.
    await quietened(arrived)
    const sent = statistic(tap, 'tx_packets') - first
    return { sent, received: (await arrived()) - before, ended }
  })
}

/** Seconds after which frames that have not come will not. */
function patience(packets: number): number {
  return START_SECONDS + packets / LEAST_RATE
}

/**
 * Waits until nothing moves any more: what is in the queues when the generator ends still counts.
 * @returns when it moved last, in milliseconds of `performance.now()`
 */
async function quietened(count: () => number | Promise<number>): Promise<number> {
  let now = await count()
  let moved = performance.now()
  while (performance.now() - moved < SETTLE_MS) {
    await sleep(TURN_MS)
    const last = now
    now = await count()
    if (now !== last) moved = performance.now()
  }
  return moved
}

interface Counted extends Pick<Direction, 'sent' | 'received'> {
  /** When the last frame was at the tap, in milliseconds of `performance.now()`. */
  readonly ended: number
}

async function measured(machine: Machine, run: () => Promise<Counted>): Promise<Direction> {
  const before = stats(machine)
  const { exits: exitsBefore } = machine.stats()
  const started = performance.now()
  const { sent, received, ended } = await run()
  const took = (ended - started) / 1000
  const after = stats(machine)
  const exits = machine.stats().exits - exitsBefore
  return {
    ...{ sent, received },
    seconds: Math.round(took * 100) / 100,
    packetsPerSecond: Math.round(received / took),
    misses: after.misses - before.misses,
    updates: after.updates - before.updates,
    invalidates: after.invalidates - before.invalidates,
    exits,
    exitsPer1000: Math.round((1000 * exits) / Math.max(received, 1)),
  }
}

function totals(directions: readonly Direction[]) {
  const sum = (of: keyof Direction): number => directions.reduce((all, d) => all + d[of], 0)
  const [sent, received, misses] = [sum('sent'), sum('received'), sum('misses')]
  const missesPer1000 = Math.round((misses * 10_000) / Math.max(received, 1)) / 10
  const invalidates = sum('invalidates')
  return { sent, received, lost: sent - received, misses, missesPer1000, invalidates }
}

function row(name: string, d: Direction): string {
  const per1000 = (count: number): string => ((count * 1000) / d.received).toFixed(1)
  return (
    `${name.padEnd(4)} ${d.received} of ${d.sent} frames, ${d.packetsPerSecond} a second; per 1000: ` +
    `${per1000(d.misses)} misses, ${per1000(d.updates)} updates, ` +
    `${per1000(d.invalidates)} invalidates, ${d.exitsPer1000} exits`
  )
}

function stats(machine: Machine): VhostNetStats {
  return machine.stats().nic
}

export function seconds(since: number): number {
  return Math.round(performance.now() - since) / 1000
}

export function statistic(tap: Tap, name: string): number {
  return Number(readFileSync(`/sys/class/net/${tap.name}/statistics/${name}`, 'latin1'))
}

async function guestStatistic(shell: GuestShell, name: string): Promise<number> {
  return Number(await shell.run(`cat /sys/class/net/eth0/statistics/${name}`))
}

/** Nobody talks on the tap but the experiment. */
export function quiet(name: string): void {
  writeFileSync(`/proc/sys/net/ipv6/conf/${name}/disable_ipv6`, '1')
  writeFileSync(`/proc/sys/net/ipv4/neigh/${name}/delay_first_probe_time`, String(NO_PROBE))
}

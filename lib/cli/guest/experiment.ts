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
import {
  NETWORKS,
  PINGS,
  connect,
  endWith,
  quietTap,
  rate,
  rateText,
  seconds,
  send,
} from './traffic'
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
  /** Frames a second: ours in those of the peer, the median of some rounds. */
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
  strict: 5000,
  lazy: 10_000,
  passthrough: 20_000,
  off: 20_000,
}
/** Frames each way before those that are compared. */
const WARM_UP_FRAMES = 10_000
/** By turns, because a host is not as fast at one time as at another. */
const ROUNDS = 5

/**
 * On a host with /dev/kvm and /dev/vhost-net.
 * @throws SystemError, VmError; Error where it hangs
 */
export async function guestExperiment(options: GuestExperiment): Promise<GuestResult> {
  const { line, mode, packets, beside, print } = options
  const guest = await debianGuest(line, mode)
  const plan = { packets, rate: IN_RATE[mode] }
  using own = new OwnGuest(options, guest)
  await own.up()
  if (beside !== undefined) return await compared(own, options, guest, plan)
  const out = await own.send('out', plan)
  print(row('out', out))
  const inward = await own.send('in', plan)
  print(row('in', inward))
  return own.result({ out, in: inward })
}

/** The guest on our own machine. */
class OwnGuest implements Disposable {
  readonly #options: GuestExperiment
  readonly #guest: DebianGuest
  readonly #ends = { shell: new GuestShell(), tap: quietTap() }
  readonly #machine: Machine
  #bootSeconds = 0
  #pings = 0

  constructor(options: GuestExperiment, guest: DebianGuest) {
    const { ats = true, lookAhead, shareRegisters } = options
    const { shell, tap } = this.#ends
    this.#options = options
    this.#guest = guest
    this.#machine = new Machine({
      ...{ image: guest.image, tap, ats },
      ...{ memoryMiB: MEMORY_MIB, processors: PROCESSORS, mac: MAC, onConsole: shell.hear },
      ...(lookAhead && { lookAhead }),
      ...(shareRegisters !== undefined && { shareRegisters }),
      onReset: 'end',
    })
    endWith(this.#machine, shell)
  }

  async up(): Promise<void> {
    const { print } = this.#options
    const { release, image } = this.#guest
    const started = performance.now()
    this.#machine.start()
    await this.#ends.shell.ready(this.#machine, BOOT_SECONDS)
    this.#bootSeconds = seconds(started)
    print(`Linux ${release} is up after ${this.#bootSeconds} s, ${image.commandLine}`)
    this.#pings = await connect(this.#ends)
    const { misses } = stats(this.#machine)
    print(`${this.#pings} of ${PINGS} pings answered, ${misses} misses so far`)
  }

  send(way: Way, plan: Plan): Promise<Direction> {
    return send(this.#ends, way, plan, (run) => counted(this.#machine, run))
  }

  result(ways: Readonly<Record<Way, Direction>>): GuestResult {
    const { mode, ats = true } = this.#options
    const deviceIotlb = this.#machine.net.pci.ats?.enabled ?? false
    const faults = stats(this.#machine).faults + this.#machine.stats().recordedFaults
    const total = totals([ways.out, ways.in])
    // Where all is passed through, it is for the guest: Linux 6.1 switches it on, 6.12 does not.
    const expected = mode === 'passthrough' ? deviceIotlb : ats && mode !== 'off'
    const pings = this.#pings
    return {
      ok: total.lost === 0 && pings === PINGS && faults === 0 && deviceIotlb === expected,
      ...{ kernel: this.#guest.release, mode, deviceIotlb },
      ...total,
      ...{ bootSeconds: this.#bootSeconds, pings, faults, ...ways },
    }
  }

  [Symbol.dispose](): void {
    this.#machine.close()
    this.#ends.tap.close()
  }
}

/** Both guests are up, and send by turns: the one that does not stands still. */
async function compared(
  own: OwnGuest,
  { ats = true, print }: GuestExperiment,
  { release, image, tools }: DebianGuest,
  plan: Plan,
): Promise<GuestResult> {
  const version = await Qemu.version(tools)
  using tap = quietTap()
  const shell = new GuestShell()
  const ends = { shell, tap, network: NETWORKS[1] }
  await using qemu = new Qemu(tools, {
    ...{ image, tap, ats, memoryMiB: MEMORY_MIB, processors: PROCESSORS, mac: MAC },
    onConsole: shell.hear,
    onEnd: (said) => {
      shell.end(`QEMU ended, as it does when its guest resets: ${said}`)
    },
  })
  const started = performance.now()
  await shell.ready(qemu, BOOT_SECONDS)
  print(`QEMU ${version}: Linux ${release} is up after ${seconds(started)} s`)
  await connect(ends)
  const theirs = (way: Way, part: Plan): Promise<Rate> => send(ends, way, part, (run) => run())
  const out = await byTurns('out', plan, own, theirs, print)
  const inward = await byTurns('in', plan, own, theirs, print)
  return {
    ...own.result({ out: out.own, in: inward.own }),
    peer: { name: 'QEMU', version, out: out.peer, in: inward.peer },
    ratio: { out: out.ratio, in: inward.ratio },
  }
}

async function byTurns(
  way: Way,
  plan: Plan,
  own: OwnGuest,
  theirs: (way: Way, part: Plan) => Promise<Rate>,
  print: (line: string) => void,
) {
  const warmUp = { ...plan, packets: WARM_UP_FRAMES }
  await own.send(way, warmUp)
  await theirs(way, warmUp)
  const part = { ...plan, packets: Math.ceil(plan.packets / ROUNDS) }
  const rounds: { readonly own: Direction; readonly peer: Rate; readonly ratio: number }[] = []
  for (let i = 0; i < ROUNDS; i++) {
    const round = { own: await own.send(way, part), peer: await theirs(way, part) }
    const ratio = round.own.packetsPerSecond / round.peer.packetsPerSecond
    rounds.push({ ...round, ratio })
  }
  const ours = together(rounds.map((round) => round.own))
  const peer = sum(rounds.map((round) => round.peer))
  const ratio = Math.round(100 * median(rounds.map((round) => round.ratio))) / 100
  print(row(way, ours))
  print(`${rateText(way, peer)} in QEMU; ours are ${ratio} times as many`)
  return { own: ours, peer, ratio }
}

function median(values: readonly number[]): number {
  return values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)]
}

function sum(rates: readonly Rate[]): Rate {
  const all = (of: keyof Rate): number => rates.reduce((total, one) => total + one[of], 0)
  return rate(all('sent'), all('received'), 1000 * all('seconds'))
}

function together(directions: readonly Direction[]): Direction {
  const all = (of: keyof Direction): number => directions.reduce((total, d) => total + d[of], 0)
  return direction(sum(directions), {
    misses: all('misses'),
    updates: all('updates'),
    invalidates: all('invalidates'),
    exits: all('exits'),
    served: all('served'),
  })
}

function direction(of: Rate, costs: Omit<Direction, keyof Rate | 'exitsPer1000'>): Direction {
  const exitsPer1000 = Math.round((1000 * costs.exits) / Math.max(of.received, 1))
  return { ...of, ...costs, exitsPer1000 }
}

async function counted(machine: Machine, run: () => Promise<Rate>): Promise<Direction> {
  const before = costs(machine)
  const took = await run()
  const after = costs(machine)
  return direction(took, {
    misses: after.misses - before.misses,
    updates: after.updates - before.updates,
    invalidates: after.invalidates - before.invalidates,
    exits: after.exits - before.exits,
    served: after.served - before.served,
  })
}

function costs(machine: Machine) {
  const { exits, served, nic } = machine.stats()
  const { misses, updates, invalidates } = nic
  return { misses, updates, invalidates, exits, served }
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

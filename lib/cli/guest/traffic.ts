/**
 * Frames through a guest, whoever runs it: its interface and its packet generator by its shell,
 * this host's end by a tap. What there is to count is counted at both ends, outside of the program
 * that is looked at.
 */
import { readFileSync, writeFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { setAddress } from '../../vhost/interface'
import { Tap } from '../../vhost/tap'
import type { GuestShell } from '../../vmm/guest-shell'
import type { Machine } from '../../vmm/machine'
import { Pktgen } from '../pktgen'

/** Both ends of the wire. */
export interface Ends {
  readonly shell: GuestShell
  readonly tap: Tap
  /** A network of its own, where there are several guests at a time. */
  readonly network?: (typeof NETWORKS)[number]
}

export interface Plan {
  readonly packets: number
  /**
   * Frames a second into the tap, above what the guest takes. What its queue has no room for is
   * dropped before it counts as sent, and costs time that the guest could use.
   */
  readonly rate: number
}

/** How one direction went. */
export interface Rate {
  /** Frames that left their kernel, and those that came to the other. */
  readonly sent: number
  readonly received: number
  /** From the order to send to the last frame at the tap. */
  readonly seconds: number
  readonly packetsPerSecond: number
}

/** As the guest sees it. */
export type Way = 'out' | 'in'

export const WAYS: readonly Way[] = ['out', 'in']

/** Does `run`, which sends the frames that count, and says what it says and more. */
export type Observe<R extends Rate> = (run: () => Promise<Rate>) => Promise<R>

/** RFC 5737: addresses for documentation, which no network uses. */
export const NETWORKS = ['192.0.2', '198.51.100'] as const
const HOST = 1
const GUEST = 2
/** Of nobody: this host does not answer frames to it, not even that they can't be delivered. */
const SINK_IP = '203.0.113.9'
/** Seconds after which a kernel asks a neighbour whether it is still there: not during this. */
const NO_PROBE = 86_400
export const PINGS = 5
const PING_SECONDS = 20
const PATIENCE_SECONDS = 100
const FRAME_BYTES = 60
const TURN_MS = 20
/**
 * A guest in strict mode has several exits a frame, which an emulated processor takes its time for.
 */
const LEAST_RATE = 10
const START_SECONDS = 60
const SETTLE_MS = 500

/** A tap on which nobody talks but the experiment. @throws SystemError */
export function quietTap(): Tap {
  const tap = Tap.open('guest%d', { up: false })
  writeFileSync(`/proc/sys/net/ipv6/conf/${tap.name}/disable_ipv6`, '1')
  writeFileSync(`/proc/sys/net/ipv4/neigh/${tap.name}/delay_first_probe_time`, String(NO_PROBE))
  tap.up = true
  return tap
}

/** Has whoever waits for the guest told that its machine has ended. */
export function endWith(machine: Machine, shell: GuestShell): void {
  void machine.ended.then((ending) => {
    shell.end(ending.how === 'failed' ? ending.reason : `the guest has ended: ${ending.how}`)
  })
}

/** Gives both ends their addresses. @returns how many of `PINGS` echo requests were answered */
export async function connect({ shell, tap, network = NETWORKS[0] }: Ends): Promise<number> {
  const host = `${network}.${HOST}`
  setAddress(tap.name, Uint8Array.from(host.split('.'), Number), 24)
  await shell.run('echo 1 >/proc/sys/net/ipv6/conf/eth0/disable_ipv6')
  await shell.run(`echo ${NO_PROBE} >/proc/sys/net/ipv4/neigh/eth0/delay_first_probe_time`)
  await shell.run(`ip addr add ${network}.${GUEST}/24 dev eth0; ip link set eth0 up`)
  return ping(shell, host, PINGS)
}

/**
 * One echo request after the other: of several at once, busybox gives those up that take longer than
 * two of the others, or than 1 s, and an emulated guest may stand still for that long.
 * @param ip who is asked @returns how many answered
 */
export async function ping(shell: GuestShell, ip: string, count: number): Promise<number> {
  // As long as it takes to learn the neighbour's address, too.
  await shell.run(`echo ${PING_SECONDS} >/proc/sys/net/ipv4/neigh/eth0/mcast_solicit`)
  const one = `ping -c 1 -W ${PING_SECONDS} ${ip}`
  const said = await shell.run(`for i in $(seq ${count}); do ${one}; done; true`, PATIENCE_SECONDS)
  return said.match(/ 1 packets received/g)?.length ?? 0
}

/** Frames of one direction. @throws Error where they stop coming */
export async function send<R extends Rate>(
  ends: Ends,
  way: Way,
  plan: Plan,
  observe: Observe<R>,
): Promise<R> {
  return way === 'out' ? sendOut(ends, plan, observe) : sendIn(ends, plan, observe)
}

/** pktgen of the guest: each frame is mapped, sent and unmapped as any driver's would be. */
async function sendOut<R extends Rate>(
  { shell, tap }: Ends,
  { packets }: Plan,
  observe: Observe<R>,
): Promise<R> {
  const orders = [
    `count ${packets}`,
    `pkt_size ${FRAME_BYTES}`,
    `dst_mac ${tap.macAddress}`,
    `dst ${SINK_IP}`,
    'delay 0',
  ]
  const add = ['rem_device_all', 'add_device eth0'].map((order) => `echo ${order} >kpktgend_0`)
  await shell.run(['cd /proc/net/pktgen', ...add].join('; '))
  for (const order of orders) await shell.run(`echo ${order} >eth0`)
  const frames = (): number => statistic(tap, 'rx_packets')
  // Not what pktgen counts: the kernel has an ARP frame of its own to send now and then.
  const left = (): Promise<number> => guestStatistic(shell, 'tx_packets')
  const [before, first] = [frames(), await left()]
  return observe(async () => {
    const started = performance.now()
    await shell.run('echo start >pgctrl', patience(packets))
    // The driver counts a frame when it takes it back, which the last ones have to wait for.
    const sent = Math.max(packets, (await left()) - first)
    const ended = await quietened(frames, before + sent)
    const received = frames() - before
    return rate(Math.max(sent, received), received, ended - started)
  })
}

/**
 * pktgen of this host, until the tap has taken so many; what its queue has no room for is not sent.
 */
async function sendIn<R extends Rate>(
  { shell, tap }: Ends,
  { packets, rate: perSecond }: Plan,
  observe: Observe<R>,
): Promise<R> {
  const arrived = (): Promise<number> => guestStatistic(shell, 'rx_packets')
  const taken = (): number => statistic(tap, 'tx_packets')
  // What is on its way now has been counted at the tap already.
  await quietened(arrived, taken())
  const before = await arrived()
  return observe(async () => {
    const started = performance.now()
    const first = taken()
    {
      const traffic = { bytes: FRAME_BYTES, rate: perSecond }
      await using generator = new Pktgen([{ name: tap.name }], traffic)
      generator.start()
      const deadline = performance.now() + 1000 * patience(packets)
      while (taken() - first < packets) {
        shell.check()
        if (performance.now() > deadline) throw new Error('the tap takes no frames any more')
        await sleep(TURN_MS)
      }
    }
    const ended = await quietened(taken)
    // The guest has yet to take what its queue holds.
    await quietened(arrived)
    return rate(taken() - first, (await arrived()) - before, ended - started)
  })
}

/** @param ms what it took */
export function rate(sent: number, received: number, ms: number): Rate {
  return {
    ...{ sent, received },
    seconds: Math.round(ms / 10) / 100,
    packetsPerSecond: Math.round((received * 1000) / ms),
  }
}

/** What every guest's frames can be told of. */
export function rateText(way: Way, { sent, received, packetsPerSecond }: Rate): string {
  return `${way.padEnd(4)} ${received} of ${sent} frames, ${packetsPerSecond} a second`
}

/** Seconds after which frames that have not come will not. */
function patience(packets: number): number {
  return START_SECONDS + packets / LEAST_RATE
}

/**
 * Waits until it has counted so many, or nothing moves any more: what is in the queues when the
 * generator ends still counts.
 * @returns when it moved last, in milliseconds of `performance.now()`
 */
async function quietened(
  count: () => number | Promise<number>,
  enough = Infinity,
): Promise<number> {
  let now = await count()
  let moved = performance.now()
  while (now < enough && performance.now() - moved < SETTLE_MS) {
    await sleep(TURN_MS)
    const last = now
    now = await count()
    if (now !== last) moved = performance.now()
  }
  return moved
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

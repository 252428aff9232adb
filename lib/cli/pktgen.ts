/**
 * Traffic for experiments: the kernel's own packet generator (Documentation/networking/pktgen.rst),
 * driven through its files. Its frames arrive at a tap's device as any other frame would.
 */
import { readFileSync, writeFileSync } from 'node:fs'
import { writeFile } from 'node:fs/promises'

const DIRECTORY = '/proc/net/pktgen'

export interface Target {
  /** A network interface; one that another `Target` names too needs another `stream`. */
  readonly name: string
  /** Hardware queues to spread over; default 1. */
  readonly queues?: number
  /** Which of the kernel's generator threads, one a CPU; default 0. */
  readonly thread?: number
}

export interface Traffic {
  /** Bytes of each frame without the frame check sequence; 60 to 1514. */
  readonly bytes: number
  /** Frames a second for each target; 0 is as many as there can be. */
  readonly rate: number
  /** In turn, from this many flows; default 1. */
  readonly flows?: number
}

export function hasPktgen(): boolean {
  try {
    return readFileSync(`${DIRECTORY}/pgctrl`, 'latin1').length > 0
  } catch {
    return false
  }
}

/** Frames into interfaces, from `start()` until it is disposed. One at a time on a machine. */
export class Pktgen implements AsyncDisposable {
  readonly #threads: readonly number[]
  #running: Promise<void> | undefined

  /** @throws Error where the module is not there, or refuses a target */
  constructor(targets: readonly Target[], traffic: Traffic) {
    if (!hasPktgen()) throw new Error('no /proc/net/pktgen: modprobe pktgen')
    this.#threads = [...new Set(targets.map(({ thread = 0 }) => thread))]
    this.#clear()
    for (const { name, queues = 1, thread = 0 } of targets) {
      order(`kpktgend_${thread}`, `add_device ${name}`)
      for (const command of commands(traffic, queues)) order(name, command)
    }
  }

  /** Returns at once; the kernel begins within some milliseconds. */
  start(): void {
    // The kernel holds the writer until all is sent.
    this.#running ??= writeFile(`${DIRECTORY}/pgctrl`, 'start\n')
  }

  async [Symbol.asyncDispose](): Promise<void> {
    order('pgctrl', 'stop')
    await this.#running
    this.#clear()
  }

  #clear(): void {
    for (const thread of this.#threads) order(`kpktgend_${thread}`, 'rem_device_all')
  }
}

function commands({ bytes, rate, flows = 1 }: Traffic, queues: number): readonly string[] {
  const pace = rate === 0 ? 'delay 0' : `ratep ${rate}`
  return [
    'count 0',
    `pkt_size ${bytes}`,
    'src_mac 02:00:00:00:00:11',
    'dst_mac 02:00:00:00:00:12',
    // RFC 5737: for documentation.
    'dst 192.0.2.9',
    'src_min 192.0.2.8',
    'udp_src_min 9',
    `udp_src_max ${8 + flows}`,
    'udp_dst_min 9',
    'udp_dst_max 9',
    'queue_map_min 0',
    `queue_map_max ${queues - 1}`,
    pace,
  ]
}

function order(file: string, command: string): void {
  writeFileSync(`${DIRECTORY}/${file}`, `${command}\n`)
}

/** The command `l2fwd`: where it runs, for how long, and what it says while it does. */
import { setTimeout as sleep } from 'node:timers/promises'
import { join } from 'node:path'
import type { KernelLine } from '../vm/kernel'
import { runInVm } from '../vm/run-in-vm'
import type { WHERES } from './choices'
import { hostCan } from './demo-command'
import { Forwarder, difference, hitRate } from './l2fwd'
import type { Figures, PortOptions } from './l2fwd'
import { Monitor } from '../monitor/monitor'
import { Pktgen } from './pktgen'
import { printProgress } from './progress'
import { beginRecording, recordFlag } from './record'
import { show } from './top'
import { serveWhat } from './serve-what'
import type { WatchOptions } from './serve-what'

export interface L2fwdOptions extends PortOptions, WatchOptions {
  readonly where: (typeof WHERES)[number]
  readonly kernel: KernelLine
  /** Seconds after the warm-up; undefined until interrupted. */
  readonly duration?: number
  /** Frames a second into each tap, 0 for as many as there can be; undefined for none. */
  readonly generate?: number
  readonly json: boolean
  /** Where a trace of the run goes. */
  readonly record?: string
}

export interface L2fwdResult extends Figures {
  readonly mapping: PortOptions['mapping']
  readonly pageSize: PortOptions['pageSize']
  readonly lookAhead: PortOptions['lookAhead']
  readonly merge: number | undefined
  readonly queues: number
  /** What follows counts from the end of the warm-up, this long. */
  readonly seconds: number
  /** Frames forwarded a second, both ways together. */
  readonly pps: number
  readonly hitRate: number
  /** Before that. */
  readonly warmUp: { readonly forwarded: number; readonly misses: number }
}

const WARM_UP_SECONDS = 1
const GENERATED_BYTES = 64
/** Longer than any boot and warm-up takes beside the run itself. */
const MARGIN_SECONDS = 120

/** @returns the exit status: 0 unless the device was refused a translation */
export async function l2fwd(options: L2fwdOptions): Promise<number> {
  const inside = options.where === 'vm' || (options.where === 'auto' && !hostCan())
  return inside ? inVm(options) : onHost(options)
}

async function onHost(options: L2fwdOptions): Promise<number> {
  // With --json the object alone is on standard output.
  const say = options.json ? console.error : console.log
  const { mapping, pageSize, lookAhead, merge, queues } = options
  const about = { command: 'l2fwd', mapping, pageSize, lookAhead, merge, queues }
  using recording = beginRecording(options.record, about)
  using forwarder = new Forwarder({ ...options, recorder: recording?.recorder })
  await forwarder.start()
  const [first, second] = forwarder.ports.map(({ tap }) => tap.name)
  say(`${first} <-> ${second}, mapping ${options.mapping}, look-ahead ${options.lookAhead}`)
  const nics = forwarder.ports.map(({ nic }) => nic)
  await using served = await serveWhat(nics, options)
  for (const address of served.addresses) say(address)
  await using traffic = generator(forwarder, options)
  traffic?.start()
  await sleep(WARM_UP_SECONDS * 1000)
  const warm = forwarder.figures()
  const started = performance.now()
  await watch(forwarder, options, say)
  const seconds = (performance.now() - started) / 1000
  const figures = difference(forwarder.figures(), warm)
  const [there, back] = figures.forwarded
  const result: L2fwdResult = {
    ...{ mapping, pageSize, lookAhead, merge, queues, seconds },
    pps: Math.round((there + back) / seconds),
    hitRate: hitRate(figures),
    ...figures,
    warmUp: { forwarded: warm.forwarded[0] + warm.forwarded[1], misses: warm.misses },
  }
  if (options.json) console.log(JSON.stringify(result))
  else for (const [name, value] of Object.entries(result)) say(line(name, value))
  return figures.faults === 0 ? 0 : 1
}

function generator(forwarder: Forwarder, options: L2fwdOptions): Pktgen | undefined {
  if (options.generate === undefined) return undefined
  const targets = forwarder.ports.map(({ tap }) => ({ name: tap.name, queues: options.queues }))
  return new Pktgen(targets, { bytes: GENERATED_BYTES, rate: options.generate })
}

/** One line a second, until the time is over or somebody interrupts. */
async function watch(
  forwarder: Forwarder,
  { duration, top, json }: L2fwdOptions,
  say: (line: string) => void,
): Promise<void> {
  using monitor = top === true ? new Monitor(forwarder.ports.map(({ nic }) => nic)) : undefined
  const stop = new AbortController()
  const interrupt = (): void => {
    stop.abort()
  }
  process.once('SIGINT', interrupt).once('SIGTERM', interrupt)
  try {
    let before = forwarder.figures()
    let sample = monitor?.sample()
    let last = performance.now()
    const end = last + (duration ?? Infinity) * 1000
    while (last < end) {
      await sleep(Math.min(1000, end - last), undefined, { signal: stop.signal })
      const now = forwarder.figures()
      const at = performance.now()
      if (monitor === undefined || sample === undefined) {
        say(live(difference(now, before), (at - last) / 1000))
      } else {
        const next = monitor.sample()
        if (!json) show(sample, next, false)
        sample = next
      }
      before = now
      last = at
    }
  } catch (error) {
    if (!stop.signal.aborted) throw error
  } finally {
    process.off('SIGINT', interrupt).off('SIGTERM', interrupt)
  }
}

function live(figures: Figures, seconds: number): string {
  const [there, back] = figures.forwarded.map((count) => Math.round(count / seconds))
  const rates = `${String(there).padStart(7)} -> <- ${String(back).padEnd(7)} frames/s`
  const hits = `hit rate ${(hitRate(figures) * 100).toFixed(3)} %`
  const counts = `misses ${figures.misses} updates ${figures.updates}`
  return `${rates}  ${hits}  ${counts} invalidates ${figures.invalidates}`
}

function line(name: string, value: unknown): string {
  return `${name.padEnd(12)} ${typeof value === 'string' ? value : JSON.stringify(value)}`
}

async function inVm(options: L2fwdOptions): Promise<number> {
  if (options.stats !== undefined || options.metrics !== undefined) {
    throw new RangeError('--stats and --metrics can be reached on this host only, not in a VM')
  }
  const { mapping, pageSize, lookAhead, merge, queues, duration, generate, json } = options
  const flags = {
    ...{ where: 'host', mapping, 'page-size': pageSize, 'look-ahead': lookAhead },
    ...{ merge, queues, duration, generate },
  }
  const given = Object.entries(flags).flatMap(([name, value]) =>
    value === undefined ? [] : [`--${name}`, String(value)],
  )
  const { status } = await runInVm({
    command: [
      ...[process.execPath, join(__dirname, 'main.js'), 'l2fwd'],
      ...[...given, ...(json ? ['--json'] : []), ...(options.top === true ? ['--top'] : [])],
      ...recordFlag(options.record),
    ],
    projectDirectory: process.cwd(),
    kernel: options.kernel,
    modules: ['pktgen'],
    timeoutSeconds: duration === undefined ? 86_400 : duration + MARGIN_SECONDS,
    onProgress: printProgress,
  })
  return status
}

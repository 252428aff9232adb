/**
 * The bench's contestants that are not this library: Node's own files, a loop in C, DPDK. They move
 * the same frames over the same kind of tap, and the kernel's counters of the tap judge them all.
 */
import { spawn } from 'node:child_process'
import type { ChildProcess } from 'node:child_process'
import { accessSync, constants, mkdtempSync, readSync, rmSync, writeSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { MiB } from '../address'
import { raw } from '../raw'
import type { Descriptor } from '../raw'
import { interfaceIndex, setUp } from '../vhost/interface'
import { IFF_NO_PI, IFF_TAP, IOCTLS, STRUCTS, encodeStruct } from '../vhost/uapi'
import { counters, frameOf } from './bench-contestant'
import type { Contestant } from './bench-contestant'
import type { Sample, Section } from './bench-figures'
import { rate, withTraffic } from './bench-ports'

const FRAME_BYTES = 64
const O_RDWR = 2
/** How often a busy loop looks at the clock. */
const CLOCK_FRAMES = 64
/** DPDK takes seconds to come up on an emulated processor. */
const START_MS = 60_000
const TESTPMD = ['/usr/bin/dpdk-testpmd', '/usr/local/bin/dpdk-testpmd']
/** Hugepages of 2 MiB for DPDK's buffers. */
const HUGE_PAGES = 128

let serial = 0
const tapName = (): string => `peer${serial++}`

export const nodeFs: readonly Contestant[] = [
  { section: 'out', name: 'node fs', run: (ms) => Promise.resolve(fsOut(ms)) },
  { section: 'in', name: 'node fs', run: (ms) => fsIn(ms) },
  { section: 'forward', name: 'node fs', run: (ms) => fsForward(ms) },
]

/** @param programs where `tap-loop` is, or undefined without a compiler */
export function cLoops(programs: string): readonly Contestant[] {
  const program = join(programs, 'tap-loop')
  return [
    { section: 'out', name: 'c', run: (ms) => cLoop(program, 'out', ms, FRAME_BYTES) },
    { section: 'in', name: 'c', run: (ms) => cLoop(program, 'in', ms, FRAME_BYTES) },
    { section: 'forward', name: 'c', run: (ms) => cLoop(program, 'forward', ms, FRAME_BYTES) },
    { section: 'bytes', name: 'c, 1500', run: (ms) => cLoop(program, 'out', ms, 1500) },
  ]
}

export const testpmd: readonly Contestant[] = (
  [
    ['out', 'txonly'],
    ['in', 'rxonly'],
    ['forward', 'io'],
  ] as const
).map(([section, mode]) => ({
  section,
  name: 'testpmd',
  run: (ms: number) => dpdk(section, mode, ms),
}))

/** A tap without headers, whose reads and writes wait, as a file opened by Node is. */
function plainTap(): { readonly name: string; readonly descriptor: Descriptor } {
  const name = tapName()
  const descriptor = raw.open('/dev/net/tun', O_RDWR)
  const request = encodeStruct(STRUCTS.ifreq_flags, {
    ifr_name: new TextEncoder().encode(name),
    ifr_flags: IFF_TAP | IFF_NO_PI,
  })
  raw.ioctl(descriptor, IOCTLS.TUNSETIFF.request, request, request.byteLength)
  setUp(name, true)
  return { name, descriptor }
}

/** Runs `frame` for so long, and says how often a second. */
function looped(ms: number, frame: () => void): Sample {
  const cpu = process.cpuUsage()
  const started = performance.now()
  const end = started + ms
  let frames = 0
  let now = started
  while (now < end) {
    for (let i = 0; i < CLOCK_FRAMES; i++) frame()
    frames += CLOCK_FRAMES
    now = performance.now()
  }
  const used = process.cpuUsage(cpu)
  return {
    pps: (frames * 1000) / (now - started),
    cpuUsPerPacket: (used.user + used.system) / frames,
  }
}

function fsOut(ms: number): Sample {
  const { descriptor } = plainTap()
  try {
    const frame = frameOf(FRAME_BYTES)
    return looped(ms, () => void writeSync(descriptor.fd, frame))
  } finally {
    descriptor.close()
  }
}

async function fsIn(ms: number): Promise<Sample> {
  const { name, descriptor } = plainTap()
  try {
    const buffer = new Uint8Array(2048)
    return await withTraffic(name, () =>
      Promise.resolve(looped(ms, () => void readSync(descriptor.fd, buffer))),
    )
  } finally {
    descriptor.close()
  }
}

async function fsForward(ms: number): Promise<Sample> {
  const from = plainTap()
  const to = plainTap()
  try {
    const buffer = new Uint8Array(2048)
    const once = (): void => {
      writeSync(to.descriptor.fd, buffer, 0, readSync(from.descriptor.fd, buffer))
    }
    return await withTraffic(from.name, () => Promise.resolve(looped(ms, once)))
  } finally {
    from.descriptor.close()
    to.descriptor.close()
  }
}

async function cLoop(program: string, mode: string, ms: number, bytes: number): Promise<Sample> {
  const names = [tapName(), tapName()]
  const taps = mode === 'forward' ? names : names.slice(0, 1)
  const child = spawn(program, [mode, String(ms / 1000), String(bytes), ...taps])
  const output = text(child)
  await until(() => taps.every((name) => interfaceIndex(name) !== undefined), child)
  const go = async (): Promise<Sample> => {
    child.stdin.end('\n')
    const { frames, bytes: moved, ns } = JSON.parse(await output) as Record<string, number>
    const seconds = ns / 1e9
    return { pps: frames / seconds, mbytesPerSecond: moved / MiB / seconds }
  }
  return mode === 'out' ? go() : withTraffic(taps[0], go)
}

async function dpdk(section: Section, mode: string, ms: number): Promise<Sample> {
  const program = TESTPMD.find(executable)
  if (program === undefined) throw new Error('no dpdk-testpmd: apt-get install dpdk-dev')
  const taps = mode === 'io' ? [tapName(), tapName()] : [tapName()]
  const devices = taps.map(
    (name, i) => `--vdev=virtio_user${i},path=/dev/vhost-net,iface=${name},queue_size=256`,
  )
  const runtime = mkdtempSync(join(tmpdir(), 'bench-dpdk-'))
  const child = spawn(
    program,
    [
      ...['--no-huge', '-m', String(HUGE_PAGES * 2), '--no-pci', '--no-telemetry', '-l', '0,1'],
      ...[...devices, '--', `--forward-mode=${mode}`, '--auto-start', '--burst=64'],
      ...[`--txpkts=${FRAME_BYTES}`, '--total-num-mbufs=8192', '--rxd=256', '--txd=256'],
    ],
    { env: { ...process.env, XDG_RUNTIME_DIR: runtime, RUNTIME_DIRECTORY: runtime } },
  )
  const output = text(child)
  try {
    await until(() => taps.every((name) => interfaceIndex(name) !== undefined), child, output)
    for (const name of taps) setUp(name, true)
    const [from] = taps
    const to = taps[taps.length - 1]
    const count = (): number => (section === 'in' ? counters(from).in : counters(to).out)
    const measured = async (): Promise<Sample> => {
      const none = count()
      await until(() => count() > none, child, output)
      const before = count()
      return { pps: await rate(ms, () => count() - before) }
    }
    return await (section === 'out' ? measured() : withTraffic(from, measured))
  } finally {
    child.kill('SIGKILL')
    await output.catch(() => '')
    rmSync(runtime, { recursive: true, force: true })
  }
}

/** All of the child's output. @throws Error with its complaint when it fails */
export function text(child: ChildProcess): Promise<string> {
  let out = ''
  let complaint = ''
  child.stdout?.on('data', (bytes: Buffer) => (out += bytes.toString()))
  child.stderr?.on('data', (bytes: Buffer) => (complaint += bytes.toString()))
  const ended = new Promise<string>((resolve, reject) => {
    child.once('error', reject)
    child.once('close', (status, signal) => {
      if (status === 0) resolve(out)
      else reject(new Error(`status ${status ?? signal ?? '?'}: ${(complaint + out).slice(-500)}`))
    })
  })
  // Whoever waits for something else first must not leave this unhandled.
  ended.catch(() => undefined)
  return ended
}

async function until(
  done: () => boolean,
  child: ChildProcess,
  output?: Promise<string>,
): Promise<void> {
  const end = performance.now() + START_MS
  while (!done()) {
    if (child.exitCode !== null || child.signalCode !== null) {
      await output
      throw new Error(`it ended with status ${child.exitCode ?? child.signalCode ?? '?'}`)
    }
    if (performance.now() > end) throw new Error('it did not begin in time')
    await sleep(20)
  }
}

function executable(path: string): boolean {
  try {
    accessSync(path, constants.X_OK)
    return true
  } catch {
    return false
  }
}

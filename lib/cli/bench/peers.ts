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
import { MiB } from '../../address'
import { raw } from '../../raw'
import type { Descriptor } from '../../raw'
import { interfaceIndex, setUp } from '../../vhost/interface'
import { IFF_NO_PI, IFF_TAP, IOCTLS, STRUCTS, encodeStruct } from '../../vhost/uapi'
import { counters, frameOf, moved, warmedUp } from './contestant'
import type { Contestant, Mover } from './contestant'
import type { Sample, Section } from './figures'
import { withTraffic } from './ports'

const FRAME_BYTES = 64
const O_RDWR = 2
/** How often a busy loop looks at the clock. */
const CLOCK_FRAMES = 64
/** DPDK takes seconds to come up on an emulated processor. */
const START_MS = 120_000
const TESTPMD = ['/usr/bin/dpdk-testpmd', '/usr/local/bin/dpdk-testpmd']
/** Hugepages of 2 MiB for DPDK's buffers. */
const HUGE_PAGES = 128

let serial = 0
const tapName = (): string => `peer${serial++}`

/** Somebody else who moves frames over taps. */
interface Peer extends Mover, AsyncDisposable {
  /** Where frames go in that it receives; undefined for one that only sends. */
  readonly from?: string
  /** The tap whose counter counts. */
  readonly counted: string
}

export const nodeFs: readonly Contestant[] = [
  contestant('out', 'node fs', () => fsPeer('out')),
  contestant('in', 'node fs', () => fsPeer('in')),
  contestant('forward', 'node fs', () => fsPeer('forward')),
]

/** @param programs where `tap-loop` is, or undefined without a compiler */
export function cLoops(programs: string): readonly Contestant[] {
  const program = join(programs, 'tap-loop')
  const loop = (mode: Mode, bytes: number) => () => cLoop(program, mode, bytes)
  return [
    contestant('out', 'c', loop('out', FRAME_BYTES)),
    contestant('in', 'c', loop('in', FRAME_BYTES)),
    contestant('forward', 'c', loop('forward', FRAME_BYTES)),
    contestant('bytes', 'c, 1500', loop('out', 1500)),
  ]
}

export const testpmd: readonly Contestant[] = (['out', 'in', 'forward'] as const).map((mode) =>
  contestant(mode, 'testpmd', () => dpdk(mode)),
)

type Mode = 'out' | 'in' | 'forward'

function contestant(section: Section, name: string, open: () => Promise<Peer>): Contestant {
  return {
    section,
    name,
    run: async (ms, warmMs) => {
      await using peer = await open()
      const go = async (): Promise<Sample> => {
        await begun(peer)
        await warmedUp(peer, warmMs)
        const bytes = counters(peer.counted).outBytes
        const { frames, seconds } = await moved(peer, ms)
        const sent = counters(peer.counted).outBytes - bytes
        const pps = frames / seconds
        return peer.from === undefined ? { pps, mbytesPerSecond: sent / MiB / seconds } : { pps }
      }
      return await (peer.from === undefined ? go() : withTraffic(peer.from, go))
    },
  }
}

/** Waits for the first frame. */
async function begun(peer: Peer): Promise<void> {
  const before = peer.frames()
  const end = performance.now() + START_MS
  while (peer.frames() === before) {
    if (performance.now() > end) throw new Error('it did not begin in time')
    await peer.move(20)
  }
}

/** What the kernel counted of the work of one mode. */
function counter(mode: Mode, taps: readonly string[]): Pick<Peer, 'from' | 'counted' | 'frames'> {
  const [first] = taps
  const counted = taps[taps.length - 1]
  if (mode === 'in') return { from: first, counted, frames: () => counters(counted).in }
  const from = mode === 'out' ? {} : { from: first }
  return { ...from, counted, frames: () => counters(counted).out }
}

function tapNames(mode: Mode): readonly string[] {
  return mode === 'forward' ? [tapName(), tapName()] : [tapName()]
}

/** A tap without headers, whose reads and writes wait, as a file opened by Node is. */
function plainTap(name: string): Descriptor {
  const descriptor = raw.open('/dev/net/tun', O_RDWR)
  const request = encodeStruct(STRUCTS.ifreq_flags, {
    ifr_name: new TextEncoder().encode(name),
    ifr_flags: IFF_TAP | IFF_NO_PI,
  })
  raw.ioctl(descriptor, IOCTLS.TUNSETIFF.request, request, request.byteLength)
  setUp(name, true)
  return descriptor
}

function fsPeer(mode: Mode): Promise<Peer> {
  const taps = tapNames(mode)
  const descriptors = taps.map(plainTap)
  const [first, second] = descriptors.map(({ fd }) => fd)
  const buffer = new Uint8Array(2048)
  const frame = frameOf(FRAME_BYTES)
  const once = {
    out: () => void writeSync(first, frame),
    in: () => void readSync(first, buffer),
    forward: () => void writeSync(second, buffer, 0, readSync(first, buffer)),
  }[mode]
  return Promise.resolve({
    ...counter(mode, taps),
    move: (ms) => {
      const end = performance.now() + ms
      while (performance.now() < end) for (let i = 0; i < CLOCK_FRAMES; i++) once()
      return Promise.resolve()
    },
    [Symbol.asyncDispose]: () => {
      for (const descriptor of descriptors) descriptor.close()
      return Promise.resolve()
    },
  })
}

async function cLoop(program: string, mode: Mode, bytes: number): Promise<Peer> {
  const taps = tapNames(mode)
  const child = spawn(program, [mode, String(bytes), ...taps])
  const output = text(child)
  await until(() => taps.every((name) => interfaceIndex(name) !== undefined), child)
  for (const name of taps) setUp(name, true)
  return childPeer(child, output, mode, taps)
}

async function dpdk(mode: Mode): Promise<Peer> {
  const program = TESTPMD.find(executable)
  if (program === undefined) throw new Error('no dpdk-testpmd: apt-get install dpdk-dev')
  const taps = tapNames(mode)
  const devices = taps.map(
    (name, i) => `--vdev=virtio_user${i},path=/dev/vhost-net,iface=${name},queue_size=256`,
  )
  const forwarding = { out: 'txonly', in: 'rxonly', forward: 'io' }[mode]
  const runtime = mkdtempSync(join(tmpdir(), 'bench-dpdk-'))
  const child = spawn(
    program,
    [
      ...['--no-huge', '-m', String(HUGE_PAGES * 2), '--no-pci', '--no-telemetry', '-l', '0,1'],
      ...[...devices, '--', `--forward-mode=${forwarding}`, '--auto-start', '--burst=64'],
      ...[`--txpkts=${FRAME_BYTES}`, '--total-num-mbufs=8192', '--rxd=256', '--txd=256'],
    ],
    { env: { ...process.env, XDG_RUNTIME_DIR: runtime, RUNTIME_DIRECTORY: runtime } },
  )
  const output = text(child)
  const remove = (): void => {
    rmSync(runtime, { recursive: true, force: true })
  }
  try {
    await until(() => taps.every((name) => interfaceIndex(name) !== undefined), child, output)
    for (const name of taps) setUp(name, true)
  } catch (error) {
    child.kill('SIGKILL')
    remove()
    throw error
  }
  return childPeer(child, output, mode, taps, remove)
}

function childPeer(
  child: ChildProcess,
  output: Promise<string>,
  mode: Mode,
  taps: readonly string[],
  after: () => void = () => undefined,
): Peer {
  return {
    ...counter(mode, taps),
    move: async (ms) => {
      await sleep(ms)
      if (child.exitCode !== null || child.signalCode !== null) {
        await output
        throw new Error(`it ended with status ${child.exitCode ?? child.signalCode ?? '?'}`)
      }
    },
    [Symbol.asyncDispose]: async () => {
      child.kill('SIGKILL')
      await output.catch(() => '')
      after()
    },
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

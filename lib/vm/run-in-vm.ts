/**
 * Runs a command in a nested VM with a Debian kernel, on the host's own files: the way to a real
 * `/dev/vhost-net` on a machine that has none, or whose kernel is not the one in question. What is
 * missing is fetched first. Linux on x86-64 only.
 */
import { accessSync, constants, readFileSync, realpathSync } from 'node:fs'
import { constants as osConstants } from 'node:os'
import { join } from 'node:path'
import { Writable, type Readable } from 'node:stream'
import { defaultCacheDirectory } from './cache'
import type { Job, JobResult, TerminalSize } from './guest'
import { appendToImage } from './image'
import { KERNEL_LINES, type KernelLine } from './kernel'
import { runMachine, type Ending, type MachineStage } from './machine'
import { packageDirectory, packedRoot } from './packed-root'
import { prepare, type Prepared, type PrepareStage } from './prepare'
import { searchPath } from './process'
import type { Accelerator } from './qemu-arguments'
import { VmError } from './vm-error'

export type VmStage = PrepareStage | 'boot' | 'boot-failed' | 'packing' | MachineStage

export interface VmProgress {
  readonly stage: VmStage
  /** One line for people. */
  readonly text: string
  /** Since the call. */
  readonly elapsedMs: number
}

export interface VmOptions {
  /** Program and arguments, looked up along PATH in the guest. Empty: an interactive shell. */
  readonly command: readonly string[]
  /** The one directory in which the guest's writes reach the host; the rest is kept in memory. */
  readonly projectDirectory: string
  /** Where the command starts; the project directory if left out. */
  readonly workingDirectory?: string
  /** The Debian kernel's line; '6.12' if left out. */
  readonly kernel?: KernelLine
  /** The command's whole environment; this process's if left out. */
  readonly env?: Readonly<Record<string, string | undefined>>
  /** MiB of guest memory, 512 or more; 2048 if left out. */
  readonly memoryMiB?: number
  /** 1 to 64; 2 if left out. */
  readonly cpus?: number
  /** For boot and command together, without what is fetched; 600 if left out. */
  readonly timeoutSeconds?: number
  /** The command's input; nothing if left out. */
  readonly stdin?: Readable
  /** Where output goes as it comes: to this process's own, into the result, or into a stream. */
  readonly stdout?: VmOutput
  readonly stderr?: VmOutput
  /** Gives the command a terminal of that size: output is then all `stdout`. */
  readonly terminal?: TerminalSize
  /**
   * The machine has `/dev/kvm`; where its processor is emulated, of another model. Default false.
   */
  readonly nested?: boolean
  /** Kernel modules to insert beside those for tun, tap, veth and vhost-net. */
  readonly modules?: readonly string[]
  /**
   * 'served': the guest sees all of the host's files, and copies where the host cannot serve them;
   * 'copied': only the programs and directories that the command needs, and no write comes back.
   * 'served' if left out.
   */
  readonly files?: 'served' | 'copied'
  /** Where kernels, tools and images are kept; `vhost-iotlb` in the user's cache if left out. */
  readonly cacheDirectory?: string
  readonly signal?: AbortSignal
  readonly onProgress?: (progress: VmProgress) => void
}

export type VmOutput = 'inherit' | 'capture' | Writable

export interface VmResult {
  /** As a shell would say it: 128 and the signal's number after a signal, 124 at the time limit. */
  readonly status: number
  /** What killed the command, if a signal did. */
  readonly signal: NodeJS.Signals | null
  readonly timedOut: boolean
  /** What was captured; empty unless `stdout` is 'capture'. */
  readonly stdout: string
  readonly stderr: string
  /** The guest's `uname -r`. */
  readonly release: string
}

/** As `timeout` of coreutils says it. */
const TIME_LIMIT_STATUS = 124

/** On an emulated processor a boot takes 4 s alone and some times that on a loaded host. */
const BOOT_SECONDS: Readonly<Record<Accelerator, number>> = { kvm: 20, tcg: 90 }

/**
 * Runs a command in a new VM, and ends the VM with it. No process is left behind, not even when
 * this one is killed.
 * @throws RangeError for options out of their ranges
 * @throws VmError when the VM cannot be had, does not boot, or dies before the command does
 */
export async function runInVm(options: VmOptions): Promise<VmResult> {
  const { line, memoryMiB, cpus, timeoutSeconds } = checked(options)
  const started = Date.now()
  const report = (stage: VmStage, text: string) =>
    options.onProgress?.({ stage, text, elapsedMs: Date.now() - started })
  const cache = options.cacheDirectory ?? defaultCacheDirectory()
  const nested = options.nested ?? false
  const modules = [...(nested ? kvmModules() : []), ...(options.modules ?? [])]
  const prepared = await prepare(cache, line, modules, (stage, detail) => {
    report(stage, PREPARE_TEXT[stage](detail))
  })
  const stdout = outputTo(options.stdout ?? 'inherit', process.stdout)
  const stderr = outputTo(options.stderr ?? 'inherit', process.stderr)
  const boot = (accelerator: Accelerator, packedImage?: string) => {
    report('boot', `booting Linux ${prepared.kernel.release} (${accelerator}, ${cpus} CPUs)`)
    // What is packed need not have what that takes.
    const needsHold = nested && accelerator === 'tcg' && packedImage === undefined
    return runMachine({
      ...{ tools: prepared.tools, kernel: prepared.kernel.image },
      image: packedImage ?? prepared.image,
      ...{ accelerator, cpus, memoryMiB, nested, timeoutSeconds },
      ...{ stdin: options.stdin, stdout: stdout.stream, stderr: stderr.stream },
      job: {
        ...jobOf(options, packedImage !== undefined),
        ...(needsHold && { before: keepVirtualisationOn() }),
      },
      bootSeconds: BOOT_SECONDS[accelerator],
      signal: options.signal,
      onStage: (stage) => {
        report(stage, MACHINE_TEXT[stage])
      },
    })
  }
  let ending: Ending | undefined
  if (options.files !== 'copied') ending = await bootTwice(boot, report)
  if (ending === undefined || ending.how === 'no-file-server') {
    report('packing', packingText(ending))
    const packed = await packedImage(cache, prepared, options, memoryMiB)
    try {
      ending = await bootTwice((accelerator) => boot(accelerator, packed.path), report)
    } finally {
      packed.remove()
    }
  }
  const result = resultOf(ending)
  const captured = { stdout: stdout.captured(), stderr: stderr.captured() }
  return { ...result, ...captured, release: prepared.kernel.release }
}

const PREPARE_TEXT: Readonly<Record<PrepareStage, (detail: string) => string>> = {
  fetching: (detail) => `fetching Debian packages: ${detail}`,
  fetched: (detail) => `unpacked into the cache: ${detail}`,
  kernel: (detail) => `kernel ${detail}`,
  image: (detail) => `image ${detail}`,
}

const MACHINE_TEXT: Readonly<Record<MachineStage, string>> = {
  init: 'the kernel is up',
  modules: 'modules are in',
  command: 'the command starts',
}

function packingText(failed: Exclude<Ending, { how: 'result' }> | undefined): string {
  const what = 'copying the files that the command needs; what it writes is lost'
  return failed === undefined
    ? what
    : `this host cannot serve its files, so ${what} (${failed.output})`
}

/** One more try for a boot that dies early; where hardware virtualisation failed, without it. */
async function bootTwice(
  boot: (accelerator: Accelerator) => Promise<Ending>,
  report: (stage: VmStage, text: string) => void,
): Promise<Ending> {
  const first = await boot(hardwareVirtualisation() ? 'kvm' : 'tcg')
  if (first.how !== 'never-booted') return first
  report('boot-failed', `the kernel never came up, trying once more; it said:\n${first.output}`)
  return boot('tcg')
}

/**
 * A `/dev/kvm` that opens proves nothing: without the processor's flag, guests die in the
 * decompressor or QEMU stays paused.
 */
function hardwareVirtualisation(): boolean {
  try {
    accessSync('/dev/kvm', constants.R_OK | constants.W_OK)
    return /^flags\s*:.*\b(vmx|svm)\b/m.test(cpuInfo())
  } catch {
    return false
  }
}

/**
 * A machine that is there as long as the VM: what Linux patches in itself for the first machine, and
 * KVM for the first processor, is then patched once, and not for each guest (`vmm/idle-machine.ts`).
 */
function keepVirtualisationOn(): readonly string[] {
  const script =
    'globalThis.held = require(process.argv[1]).idleMachine(); console.log(); setInterval(() => {}, 1e9)'
  return [process.execPath, '-e', script, join(packageDirectory(), 'dist/vmm/idle-machine.js')]
}

/** What is emulated has AMD's. */
function kvmModules(): readonly string[] {
  const intel = hardwareVirtualisation() && /^flags\s*:.*\bvmx\b/m.test(cpuInfo())
  return [intel ? 'kvm_intel' : 'kvm_amd']
}

function cpuInfo(): string {
  return readFileSync('/proc/cpuinfo', 'latin1')
}

function resultOf(ending: Ending): Pick<VmResult, 'status' | 'signal' | 'timedOut'> {
  switch (ending.how) {
    case 'result':
      return { status: ending.result.status, signal: signalName(ending.result), timedOut: false }
    case 'time-limit':
      return { status: TIME_LIMIT_STATUS, signal: null, timedOut: true }
    case 'aborted':
      throw new VmError('ERR_VM_ABORTED', 'the VM was ended by its AbortSignal')
    case 'no-file-server':
    case 'never-booted':
      throw new VmError('ERR_VM_BOOT', 'the kernel did not come up, twice; it said:', ending.output)
    case 'died':
      throw new VmError('ERR_VM_DIED', 'the VM died under the command; it said:', ending.output)
  }
}

function signalName({ signal }: JobResult): NodeJS.Signals | null {
  const names = Object.entries(osConstants.signals) as [NodeJS.Signals, number][]
  return names.find(([, number]) => number === signal)?.[0] ?? null
}

/**
 * An image with a root of its own. While it is unpacked it is in memory twice, and what is unpacked
 * may take half of the memory; the command needs some as well.
 */
async function packedImage(
  cache: string,
  prepared: Prepared,
  options: VmOptions,
  memoryMiB: number,
): Promise<{ readonly path: string; remove: () => void }> {
  const root = await packedRoot({
    command: options.command,
    path: searchPath((options.env ?? process.env)['PATH']),
    busybox: prepared.tools.busybox,
    directories: [realpathSync(options.projectDirectory), packageDirectory()],
    limitBytes: (memoryMiB * 2 ** 20) / 3,
  })
  return appendToImage(cache, prepared.image, root)
}

function jobOf(options: VmOptions, packed: boolean): Job {
  const projectDirectory = realpathSync(options.projectDirectory)
  const given = Object.entries(options.env ?? process.env)
  const env = Object.fromEntries(
    given.flatMap(([name, value]) => (value === undefined ? [] : [[name, value]])),
  )
  return {
    projectDirectory,
    workingDirectory: realpathSync(options.workingDirectory ?? projectDirectory),
    packed,
    ownsFiles: process.getuid?.() === 0,
    command: options.command,
    env: { ...env, PATH: searchPath(env['PATH']) },
    ...(options.terminal === undefined ? {} : { terminal: options.terminal }),
  }
}

function outputTo(output: VmOutput, own: Writable): { stream: Writable; captured: () => string } {
  if (output === 'inherit') return { stream: own, captured: () => '' }
  if (output !== 'capture') return { stream: output, captured: () => '' }
  const chunks: Buffer[] = []
  const stream = new Writable({
    write: (chunk: Buffer, _encoding, done) => {
      chunks.push(chunk)
      done()
    },
  })
  return { stream, captured: () => Buffer.concat(chunks).toString() }
}

function checked(options: VmOptions) {
  const line = options.kernel ?? '6.12'
  if (!KERNEL_LINES.includes(line)) {
    throw new RangeError(`kernel '${line}' is none of ${KERNEL_LINES.join(', ')}`)
  }
  const memoryMiB = inRange('memoryMiB', options.memoryMiB ?? 2048, 512, 1 << 20)
  const cpus = inRange('cpus', options.cpus ?? 2, 1, 64)
  const projectDirectory = realpathSync(options.projectDirectory)
  // It would lie over the layer that keeps the guest's writes from the host.
  if (projectDirectory === '/') throw new RangeError('the project directory cannot be /')
  const timeoutSeconds = inRange('timeoutSeconds', options.timeoutSeconds ?? 600, 1, 86_400)
  return { line, memoryMiB, cpus, timeoutSeconds }
}

function inRange(name: string, value: number, least: number, most: number): number {
  if (!Number.isInteger(value) || value < least || value > most) {
    throw new RangeError(`${name} ${value} is not an integer from ${least} to ${most}`)
  }
  return value
}

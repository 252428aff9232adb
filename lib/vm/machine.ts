/**
 * One boot of the VM, from QEMU's start to the command's result: the channels, the time limits and
 * the end of every process. It knows nothing of packages and caches, and never tries twice.
 */
import { spawn, type ChildProcess } from 'node:child_process'
import type { Duplex, Readable, Writable } from 'node:stream'
import { DIES_WITH_PARENT, startFileServer, type FileServer } from './file-server'
import { decodeResult, encodeJob, INIT_MARKER, type Job, type JobResult } from './guest'
import { lastLines } from './process'
import { qemuArguments, type Accelerator, type Descriptors } from './qemu-arguments'
import type { Tools } from './tools'

export type MachineStage = 'init' | 'modules' | 'command'

export interface MachineSettings {
  readonly tools: Tools
  readonly accelerator: Accelerator
  readonly cpus: number
  readonly memoryMiB: number
  /** Whether the guest can run virtual machines itself. */
  readonly nested: boolean
  /** Path of the kernel. */
  readonly kernel: string
  /** Path of the first root file system. */
  readonly image: string
  readonly job: Job
  readonly stdin: Readable | undefined
  readonly stdout: Writable
  readonly stderr: Writable
  /** Time until the guest's first process must have spoken. */
  readonly bootSeconds: number
  /** Time for all of it. */
  readonly timeoutSeconds: number
  readonly signal: AbortSignal | undefined
  readonly onStage: (stage: MachineStage) => void
}

/** How a boot ended. `output` is what the kernel and the programs last said. */
export type Ending =
  | { readonly how: 'result'; readonly result: JobResult }
  | { readonly how: Failure; readonly output: string }

type Failure = 'time-limit' | 'aborted' | 'no-file-server' | 'never-booted' | 'died'

/** In the order of `CHANNELS`, from the first number after the standard three. */
const DESCRIPTORS = {
  console: 3,
  control: 4,
  status: 5,
  stdin: 6,
  stdout: 7,
  stderr: 8,
  files: 9,
} satisfies Descriptors
const CHANNELS = ['console', 'control', 'status', 'stdin', 'stdout', 'stderr'] as const

/** Boots, runs the job and leaves no process behind, however it ends. */
export async function runMachine(settings: MachineSettings): Promise<Ending> {
  if (settings.signal?.aborted === true) return { how: 'aborted', output: '' }
  return new Machine(settings).ending
}

class Machine {
  readonly ending: Promise<Ending>

  readonly #settings: MachineSettings
  readonly #files: FileServer | undefined
  readonly #qemu: ChildProcess
  readonly #closers: (() => void)[] = []
  readonly #received = { stdout: 0, stderr: 0 }
  #decided: Ending['how'] | undefined
  #result: JobResult | undefined
  #booted = false
  #said = ''

  constructor(settings: MachineSettings) {
    this.#settings = settings
    this.#files = settings.job.packed ? undefined : startFileServer(settings.tools)
    this.#qemu = this.#startQemu()
    if (this.#files !== undefined) this.#listen(this.#files.process.stderr)
    this.#listen(this.#qemu.stderr)
    this.#watchConsole()
    this.#watchStatus()
    this.#passOutput('stdout', settings.stdout)
    this.#passOutput('stderr', settings.stderr)
    this.#channel('control').write(encodeJob(settings.job))
    this.#limitTime()
    this.ending = this.#untilGone()
  }

  #startQemu(): ChildProcess {
    const { tools, accelerator, cpus, memoryMiB, nested, kernel, image, job } = this.#settings
    const { files, ...others } = DESCRIPTORS
    const args = qemuArguments({
      ...{ accelerator, cpus, memoryMiB, nested, kernel, image },
      descriptors: job.packed ? others : { ...others, files },
      terminal: job.terminal !== undefined,
    })
    const [program, ...rest] = [...DIES_WITH_PARENT, tools.qemu, ...tools.qemuOptions, ...args]
    const connection = this.#files?.connection ?? 'ignore'
    const qemu = spawn(program, rest, {
      stdio: ['ignore', 'ignore', 'pipe', ...CHANNELS.map(() => 'pipe' as const), connection],
      env: { ...process.env, ...tools.env },
      // A Ctrl-C at the terminal is for this process, which takes QEMU along.
      detached: true,
    })
    this.#files?.connection.destroy()
    return qemu
  }

  /** All processes have ended and what they wrote has been read. */
  async #untilGone(): Promise<Ending> {
    const gone = [this.#closed(this.#qemu, 'never-booted')]
    if (this.#files !== undefined) gone.push(this.#closed(this.#files.process, 'no-file-server'))
    await Promise.all(gone)
    if (this.#decided === 'result' && this.#result !== undefined) {
      return { how: 'result', result: this.#result }
    }
    const how = this.#decided === undefined || this.#decided === 'result' ? 'died' : this.#decided
    return { how, output: lastLines(this.#said.replaceAll('\r', ''), 40) }
  }

  /** @param early what it means if this process fails before the guest is up */
  #closed(child: ChildProcess, early: Failure): Promise<void> {
    return new Promise((resolve) => {
      child.on('error', (error) => {
        this.#said += `${error.message}\n`
        this.#end(early)
        resolve()
      })
      child.on('exit', (code) => {
        // The file server ends well when QEMU leaves.
        const reason = code === 0 ? 'never-booted' : early
        this.#end(this.#booted ? 'died' : reason)
      })
      child.on('close', () => {
        resolve()
      })
    })
  }

  /** The first reason counts; the processes are killed for any. */
  #end(how: Ending['how']): void {
    if (this.#decided !== undefined) return
    this.#decided = how
    for (const close of this.#closers) close()
    // Output that is under way is still read to its end, unless nobody wants to wait for it.
    const unread = how === 'time-limit' || how === 'aborted'
    const channels = unread ? CHANNELS : (['control', 'stdin'] as const)
    for (const name of channels) this.#channel(name).destroy()
    this.#qemu.kill('SIGKILL')
    this.#files?.process.kill('SIGKILL')
  }

  #channel(name: (typeof CHANNELS)[number]): Duplex {
    // `spawn` made each of these a socket; their type is that of the standard three.
    const channel = this.#qemu.stdio[DESCRIPTORS[name]] as Duplex
    // A reset or a broken pipe means that QEMU is gone, and that is heard of elsewhere.
    if (channel.listenerCount('error') === 0) channel.on('error', () => undefined)
    return channel
  }

  #listen(said: Readable | null): void {
    said?.on('data', (chunk: Buffer) => (this.#said += chunk.toString()))
  }

  #watchConsole(): void {
    this.#channel('console').on('data', (chunk: Buffer) => {
      this.#said += chunk.toString()
      if (this.#booted || !this.#said.includes(INIT_MARKER)) return
      this.#booted = true
      this.#settings.onStage('init')
    })
  }

  #watchStatus(): void {
    let rest = ''
    this.#channel('status').on('data', (chunk: Buffer) => {
      const lines = (rest + chunk.toString()).split('\n')
      rest = lines.pop() ?? ''
      for (const line of lines) this.#status(line)
    })
  }

  #status(line: string): void {
    if (line === 'stage modules') this.#settings.onStage('modules')
    if (line === 'stage command') {
      this.#settings.onStage('command')
      // Not earlier: a boot that is tried again must not have eaten any of it.
      this.#passInput()
    }
    this.#result ??= decodeResult(line)
    this.#endIfComplete()
  }

  /** The result overtakes the output, so the result says how much of it there is. */
  #endIfComplete(): void {
    if (this.#result === undefined) return
    if (this.#received.stdout < this.#result.stdoutBytes) return
    if (this.#received.stderr < this.#result.stderrBytes) return
    this.#end('result')
  }

  #passOutput(name: 'stdout' | 'stderr', sink: Writable): void {
    const channel = this.#channel(name)
    const resume = () => channel.resume()
    sink.on('drain', resume)
    channel.on('close', () => sink.off('drain', resume))
    channel.on('data', (chunk: Buffer) => {
      this.#received[name] += chunk.length
      if (!sink.write(chunk)) channel.pause()
      this.#endIfComplete()
    })
  }

  #passInput(): void {
    const { stdin, job } = this.#settings
    const terminal = job.terminal !== undefined
    const channel = this.#channel(terminal ? 'stdout' : 'stdin')
    if (stdin === undefined) {
      if (!terminal) channel.end()
      return
    }
    stdin.pipe(channel, { end: !terminal })
    this.#closers.push(() => {
      stdin.unpipe(channel)
      stdin.pause()
    })
  }

  #limitTime(): void {
    const { bootSeconds, timeoutSeconds, signal } = this.#settings
    const boot = setTimeout(() => {
      if (!this.#booted) this.#end('never-booted')
    }, bootSeconds * 1000)
    const limit = setTimeout(() => {
      this.#end('time-limit')
    }, timeoutSeconds * 1000)
    const abort = () => {
      this.#end('aborted')
    }
    signal?.addEventListener('abort', abort)
    this.#closers.push(() => {
      clearTimeout(boot)
      clearTimeout(limit)
      signal?.removeEventListener('abort', abort)
    })
  }
}

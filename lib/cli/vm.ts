/**
 * The command `vm`: runs a command, or a shell, in the nested VM. With a terminal on all three
 * sides the command gets a terminal of its own, otherwise separate pipes; its exit status is this
 * one's.
 */
import { runInVm, type VmOptions, type VmProgress } from '../vm/run-in-vm'
import type { KernelLine } from '../vm/kernel'
import { VmError } from '../vm/vm-error'

export interface VmCommandOptions {
  readonly kernel?: KernelLine
  /** MiB */
  readonly memory?: number
  readonly cpus?: number
  readonly nested?: boolean
  readonly module?: readonly string[]
  /** Seconds, boot included; a terminal has a day if left out. */
  readonly timeout?: number
}

/** Ctrl-], as in telnet: the one key that the guest does not get. */
const ESCAPE = 0x1d
/** What a shell says of a command that Ctrl-C ended. */
const INTERRUPTED_STATUS = 130
const DAY_SECONDS = 86_400

/** @returns the command's exit status @throws VmError, RangeError */
export async function vm(command: readonly string[], options: VmCommandOptions): Promise<number> {
  const { stdin, stdout, stderr } = process
  const interactive = stdin.isTTY && stdout.isTTY && stderr.isTTY
  const common: VmOptions = {
    command,
    projectDirectory: process.cwd(),
    stdin,
    onProgress: interactive ? printEach : printRare,
    ...(options.kernel === undefined ? {} : { kernel: options.kernel }),
    ...(options.memory === undefined ? {} : { memoryMiB: options.memory }),
    ...(options.cpus === undefined ? {} : { cpus: options.cpus }),
    ...(options.module === undefined ? {} : { modules: options.module }),
    ...(options.nested === undefined ? {} : { nested: options.nested }),
    ...(options.timeout === undefined ? {} : { timeoutSeconds: options.timeout }),
  }
  try {
    const result = await (interactive ? inTerminal(common) : runInVm(common))
    if (result.timedOut) console.error('vhost-iotlb: the time limit ended the VM')
    return result.status
  } finally {
    // An open input would keep this process waiting for its next line.
    stdin.destroy()
  }
}

async function inTerminal(options: VmOptions): Promise<{ status: number; timedOut: boolean }> {
  const { stdin, stdout } = process
  const quit = new AbortController()
  const watch = (chunk: Buffer) => {
    if (chunk.includes(ESCAPE)) quit.abort()
  }
  const start = (progress: VmProgress) => {
    printEach(progress)
    if (progress.stage !== 'command') return
    stdin.setRawMode(true)
    stdin.on('data', watch)
  }
  console.error('vhost-iotlb: Ctrl-] ends the VM')
  try {
    return await runInVm({
      timeoutSeconds: DAY_SECONDS,
      ...options,
      terminal: { rows: stdout.rows, columns: stdout.columns },
      signal: quit.signal,
      onProgress: start,
    })
  } catch (error) {
    if (!(error instanceof VmError) || error.code !== 'ERR_VM_ABORTED') throw error
    return { status: INTERRUPTED_STATUS, timedOut: false }
  } finally {
    stdin.off('data', watch)
    stdin.setRawMode(false)
  }
}

function printEach({ text }: VmProgress): void {
  console.error(`vhost-iotlb: ${text}`)
}

/** Where standard error is kept, only what takes long or went wrong belongs into it. */
function printRare(progress: VmProgress): void {
  if (['fetching', 'fetched', 'boot-failed', 'packing'].includes(progress.stage))
    printEach(progress)
}

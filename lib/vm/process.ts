/**
 * Runs the host's programs (apt-get, dpkg, xz) and waits for them. Programs of the VM itself are
 * started in `machine.ts`: they have channels and outlive a call.
 */
import { spawn } from 'node:child_process'
import { accessSync, constants } from 'node:fs'
import { delimiter, join } from 'node:path'
import { VmError } from './vm-error'

export interface RunOptions {
  readonly cwd?: string
  readonly env?: NodeJS.ProcessEnv
  readonly input?: Uint8Array
}

/** Directories where Debian keeps programs, searched after PATH: an ordinary user's lacks sbin. */
const ALWAYS_SEARCHED = [
  '/usr/local/sbin',
  '/usr/sbin',
  '/sbin',
  '/usr/local/bin',
  '/usr/bin',
  '/bin',
]

/** PATH with the directories of the system's programs added where they are missing. */
export function searchPath(path: string | undefined): string {
  const given = (path ?? '').split(delimiter).filter((directory) => directory !== '')
  return [...new Set([...given, ...ALWAYS_SEARCHED])].join(delimiter)
}

/** The first executable of that name along the search path. */
export function findProgram(name: string, path = process.env['PATH']): string | undefined {
  return searchPath(path)
    .split(delimiter)
    .map((directory) => join(directory, name))
    .find(isExecutable)
}

export function isExecutable(path: string): boolean {
  try {
    accessSync(path, constants.X_OK)
    return true
  } catch {
    return false
  }
}

/** Runs a program to its end and gives its standard output. @throws VmError when it fails */
export async function run(
  program: string,
  args: readonly string[],
  options: RunOptions = {},
): Promise<Buffer> {
  const child = spawn(program, args, {
    cwd: options.cwd,
    env: options.env ?? process.env,
    stdio: ['pipe', 'pipe', 'pipe'],
  })
  const stdout: Buffer[] = []
  const stderr: Buffer[] = []
  child.stdout.on('data', (chunk: Buffer) => stdout.push(chunk))
  child.stderr.on('data', (chunk: Buffer) => stderr.push(chunk))
  // A program that fails early closes its input; its exit status is what tells.
  child.stdin.on('error', () => undefined)
  child.stdin.end(options.input)
  const status = await new Promise<number | NodeJS.Signals>((resolve, reject) => {
    child.on('error', (error) => {
      reject(new VmError('ERR_VM_FETCH', `cannot run ${program}: ${error.message}`))
    })
    child.on('close', (code, signal) => {
      resolve(code ?? signal ?? 'SIGKILL')
    })
  })
  if (status !== 0) {
    const said = lastLines(Buffer.concat(stderr).toString() || Buffer.concat(stdout).toString())
    throw new VmError('ERR_VM_FETCH', `${program} ${args.join(' ')} ended with ${status}`, said)
  }
  return Buffer.concat(stdout)
}

/**
 * The shared libraries of a program or addon, with the loader; none for what is static or a script.
 */
export async function librariesOf(program: string, env?: NodeJS.ProcessEnv): Promise<string[]> {
  const listed = await run('ldd', [program], env && { env }).catch(() => Buffer.alloc(0))
  return [...listed.toString().matchAll(/(?:^|\s)(\/\S+) \(0x/gm)].map(([, path]) => path)
}

export function lastLines(text: string, count = 20): string {
  return text.trimEnd().split('\n').slice(-count).join('\n')
}

/** What the tests of the native layer share: descriptors to talk to, and eyes on the process. */
import { execFileSync, spawn } from 'node:child_process'
import { mkdtempSync, readFileSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { native } from '../../lib/native'
import type { Descriptor, Mapping } from '../../lib/native'

export const O_RDWR = 2
export const O_NONBLOCK = 0o4000
export const EAGAIN = -11
export const EBADF = -9
export const EFAULT = -14
export const PAGE = 4096

export function made<T extends object>(result: T | number): T {
  if (typeof result === 'number') throw new Error(`refused: ${result}`)
  return result
}

export function eventfd(initial = 0): Descriptor {
  return made(native().eventfd(initial))
}

export function mapped(bytes = PAGE): Mapping {
  return made(native().mapMemory(bytes, 0))
}

const folders: string[] = []

/** A path in a folder that `cleanUp` removes. */
export function temporary(name: string): string {
  const folder = mkdtempSync(join(tmpdir(), 'vhost-iotlb-'))
  folders.push(folder)
  return join(folder, name)
}

export function cleanUp(): void {
  for (const folder of folders.splice(0)) rmSync(folder, { recursive: true })
}

/** A byte stream that gives back what is written to it, with a name to open it again. */
export function loopback(flags = O_RDWR | O_NONBLOCK): { path: string; fifo: Descriptor } {
  const path = temporary('fifo')
  execFileSync('mkfifo', [path])
  return { path, fifo: made(native().open(path, flags)) }
}

export function openDescriptors(): number {
  return readdirSync('/proc/self/fd').length
}

/** Whether a page of this process is at the address. */
export function isMapped(address: bigint): boolean {
  return readFileSync('/proc/self/maps', 'utf8')
    .split('\n')
    .some((line) => line.startsWith(`${address.toString(16).padStart(8, '0')}-`))
}

/** How many mappings of guest memory this process has. */
export function mappings(): number {
  return readFileSync('/proc/self/maps', 'utf8').split('memfd:guest-memory').length - 1
}

/** The octal flags of a descriptor, with O_CLOEXEC in them. */
export function flagsOf(fd: number): number {
  const match = /flags:\s+(\d+)/.exec(readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8'))
  return Number.parseInt(match?.[1] ?? '', 8)
}

export function turn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve))
}

/** Turns of the event loop until the condition holds. */
export async function until(condition: () => boolean): Promise<void> {
  const deadline = Date.now() + 10_000
  while (!condition()) {
    if (Date.now() > deadline) throw new Error('waited for 10 s')
    await turn()
  }
}

export interface Outcome {
  readonly status: number | null
  readonly signal: NodeJS.Signals | null
  readonly output: string
  readonly errors: string
}

/** A script of `children/` in a process of its own, with the addon of this one. */
export function run(
  script: string,
  args: readonly string[] = [],
  options: { readonly flags?: readonly string[]; readonly cwd?: string } = {},
): Promise<Outcome> {
  const path = join(import.meta.dirname, 'children', script)
  return new Promise((resolve) => {
    const child = spawn(process.execPath, [...(options.flags ?? []), path, ...args], {
      cwd: options.cwd,
      stdio: ['ignore', 'pipe', 'pipe'],
    })
    let output = ''
    let errors = ''
    child.stdout.setEncoding('utf8').on('data', (text: string) => (output += text))
    child.stderr.setEncoding('utf8').on('data', (text: string) => (errors += text))
    child.on('close', (status, signal) => {
      resolve({ status, signal, output, errors })
    })
  })
}

/**
 * The root for hosts that cannot serve theirs (a container whose system-call filter forbids
 * `unshare`, which virtiofsd needs): a copy of the few files that the command needs, unpacked into
 * the guest's memory with the boot image. The guest's writes stay there. A copy is never complete:
 * other programs than those named here come from busybox or are missing.
 */
import { lstatSync, readdirSync, readFileSync, readlinkSync, realpathSync, statSync } from 'node:fs'
import { basename, dirname, join, relative, resolve } from 'node:path'
import type { CpioEntry } from './cpio'
import { findProgram, librariesOf } from './process'
import { VmError } from './vm-error'

/** Where the archive holds the root: the guest moves there. */
export const PACKED_ROOT = 'host'

/** Programs that vhost-net is looked at with; packed where the host has them. */
const PROGRAMS = ['ip', 'tcpdump', 'ethtool', 'bash']

/** Empty directories that the guest mounts something on, or expects. */
const DIRECTORIES = ['bin', 'dev', 'etc', 'proc', 'root', 'run', 'sys', 'tmp', 'usr/bin', 'var/tmp']

const MIB = 1 << 20
const PAGE_BYTES = 4096
const SKIPPED = new Set(['.git'])

export interface PackOptions {
  readonly command: readonly string[]
  readonly path: string | undefined
  readonly busybox: string
  /** Copied whole, save `.git`. */
  readonly directories: readonly string[]
  readonly limitBytes: number
}

/** The entries of the root, read as they are asked for. @throws VmError if they exceed the limit */
export async function packedRoot(options: PackOptions): Promise<Iterable<CpioEntry>> {
  const names = [process.execPath, options.command[0] ?? 'sh', ...PROGRAMS]
  const programs = names.flatMap(
    (name) => (name.includes('/') ? resolve(name) : findProgram(name, options.path)) ?? [],
  )
  const paths = new Set(options.directories.flatMap((directory) => [...walk(directory)]))
  const addons = [...paths].filter((path) => path.endsWith('.node'))
  const libraries = await Promise.all(
    [...programs, ...addons].filter(isFile).map((path) => librariesOf(path)),
  )
  const links = new Map<string, string>()
  for (const path of [...programs, ...libraries.flat()].filter(isFile)) {
    // The file once, under its own name; whatever else it is called is a link to it.
    const real = realpathSync(path)
    paths.add(real)
    if (real !== path) links.set(path, real)
  }
  const bytes = [...paths].reduce((sum, path) => sum + pagesOf(path) * PAGE_BYTES, 0)
  if (bytes > options.limitBytes) {
    const [size, limit] = [bytes, options.limitBytes].map((value) => Math.ceil(value / MIB))
    throw new VmError(
      'ERR_VM_UNSUPPORTED',
      `the files of the command take ${size} MiB, and this memory takes ${limit} MiB of them`,
    )
  }
  return entries(paths, links, options.busybox)
}

/** The directory to copy so that this package and those that it needs are found. */
export function packageDirectory(): string {
  const own = resolve(realpathSync(__dirname), '../..')
  return basename(dirname(own)) === 'node_modules' ? dirname(own) : own
}

function* entries(
  paths: ReadonlySet<string>,
  links: ReadonlyMap<string, string>,
  busybox: string,
): Generator<CpioEntry> {
  const made = new Set<string>()
  for (const path of DIRECTORIES) yield* parents(join(path, 'entry'), made)
  const content = readFileSync(busybox)
  yield { type: 'file', path: join(PACKED_ROOT, 'bin/busybox'), content, mode: 0o755 }
  yield { type: 'symlink', path: join(PACKED_ROOT, 'usr/bin/env'), target: '/bin/busybox' }
  for (const [path, target] of links) {
    yield* parents(path, made)
    yield { type: 'symlink', path: join(PACKED_ROOT, path), target }
  }
  for (const path of paths) {
    if (links.has(path)) continue
    yield* parents(path, made)
    const entry = entryOf(path)
    if (entry !== undefined) yield entry
  }
}

/** The directories above a path that were not made yet. */
function* parents(path: string, made: Set<string>): Generator<CpioEntry> {
  const above = dirname(join(PACKED_ROOT, path))
  if (above === '.' || made.has(above)) return
  yield* parents(relative(PACKED_ROOT, above), made)
  made.add(above)
  yield { type: 'directory', path: above }
}

/** What is at that path; nothing for a socket or a device. */
function entryOf(path: string): CpioEntry | undefined {
  const name = join(PACKED_ROOT, path)
  const status = lstatSync(path)
  if (status.isSymbolicLink()) return { type: 'symlink', path: name, target: readlinkSync(path) }
  if (!status.isFile()) return undefined
  return { type: 'file', path: name, content: readFileSync(path), mode: status.mode & 0o7777 }
}

/** The paths in a directory that are none themselves, on its own file system. */
function* walk(directory: string, device = statSync(directory).dev): Generator<string> {
  for (const entry of readdirSync(directory, { withFileTypes: true })) {
    if (SKIPPED.has(entry.name)) continue
    const path = join(directory, entry.name)
    if (!entry.isDirectory()) yield path
    else if (statSync(path).dev === device) yield* walk(path, device)
  }
}

/** What a file takes in memory. */
function pagesOf(path: string): number {
  return Math.ceil(lstatSync(path).size / PAGE_BYTES)
}

function isFile(path: string): boolean {
  return statSync(path, { throwIfNoEntry: false })?.isFile() === true
}

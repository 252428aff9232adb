/**
 * Finds the Debian kernel of a line (6.12, 6.1) and keeps it in the cache, unpacked and not
 * installed. The versioned package is asked of the metapackage each time one is fetched: its name
 * changes with every update.
 */
import { existsSync, readdirSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { exactDependencies, unpack, type AptSession, type PackageVersion } from './apt'
import { VmError } from './vm-error'

export type KernelLine = '6.12' | '6.1'

export const KERNEL_LINES: readonly KernelLine[] = ['6.12', '6.1']

/** A kernel in the cache. */
export interface Kernel {
  readonly line: KernelLine
  /** As `uname -r` will say. */
  readonly release: string
  /** The compressed kernel that QEMU loads. */
  readonly image: string
  /** The directory of the release: `kernel/`, `modules.builtin`. */
  readonly modules: string
}

/**
 * Where to ask, in order: Debian 12 has 6.1 as its own kernel and 6.12 under a name that carries
 * the version; Debian 13 has 6.12 as its own.
 */
const METAPACKAGES: Readonly<Record<KernelLine, readonly string[]>> = {
  '6.12': ['linux-image-6.12-cloud-amd64', 'linux-image-cloud-amd64'],
  '6.1': ['linux-image-cloud-amd64'],
}

/** The name of a kernel's entry in the cache. */
export function kernelEntry(line: KernelLine): string {
  return `kernel-${line}`
}

/** Reads an entry of the cache. @throws VmError if it is not a kernel's */
export function readKernel(line: KernelLine, path: string): Kernel {
  const modules = join(path, 'modules')
  const release = readdirSync(modules)[0]
  const image = join(path, 'vmlinuz')
  if (!existsSync(image)) throw new VmError('ERR_VM_FETCH', `no kernel in ${path}: remove it`)
  return { line, release, image, modules: join(modules, release) }
}

/** The kernel package of a line, from what apt says of its metapackages. */
export async function resolveKernel(
  line: KernelLine,
  show: (name: string) => Promise<string>,
): Promise<PackageVersion> {
  for (const metapackage of METAPACKAGES[line]) {
    const found = kernelOfLine(line, await show(metapackage))
    if (found !== undefined) return found
  }
  const names = METAPACKAGES[line].join(' or ')
  throw new VmError(
    'ERR_VM_FETCH',
    `apt's sources offer no Linux ${line} (looked for ${names}; Debian 12 has both lines, ` +
      'with its security suite among the sources)',
  )
}

/** The package of that line among a metapackage's dependencies. */
export function kernelOfLine(line: KernelLine, shown: string): PackageVersion | undefined {
  return exactDependencies(shown).find((dependency) =>
    dependency.name.startsWith(`linux-image-${line}.`),
  )
}

/**
 * Fetches a line's kernel into `directory`, laid out as `readKernel` expects it.
 * @throws VmError
 */
export async function fetchKernel(
  line: KernelLine,
  apt: AptSession,
  directory: string,
): Promise<PackageVersion> {
  const found = await resolveKernel(line, (name) => apt.show(name))
  const unpacked = join(directory, 'package')
  await unpack([await apt.download(found)], unpacked)
  const modules = [join(unpacked, 'lib/modules'), join(unpacked, 'usr/lib/modules')].find((path) =>
    existsSync(path),
  )
  const boot = join(unpacked, 'boot')
  const image = readdirSync(boot).find((name) => name.startsWith('vmlinuz-'))
  if (modules === undefined || image === undefined) {
    throw new VmError('ERR_VM_FETCH', `${found.name} ${found.version} holds no kernel with modules`)
  }
  renameSync(join(boot, image), join(directory, 'vmlinuz'))
  renameSync(modules, join(directory, 'modules'))
  rmSync(unpacked, { recursive: true })
  writeFileSync(join(directory, 'package.txt'), `${found.name} ${found.version}\n`)
  return found
}

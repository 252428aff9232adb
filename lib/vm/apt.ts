/**
 * Fetches Debian packages without installing them and without being root: apt works in a state
 * directory of its own that lives as long as the fetch, so it takes no lock, changes nothing on the
 * system, and never meets another fetch.
 */
import { mkdirSync, readdirSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { run } from './process'
import { VmError } from './vm-error'

/** A package of one exact version. */
export interface PackageVersion {
  readonly name: string
  readonly version: string
}

export class AptSession {
  readonly #directory: string
  readonly #options: readonly string[]

  /** @param directory made by this, emptied and removed by `close` */
  constructor(directory: string) {
    this.#directory = directory
    for (const part of ['state/lists/partial', 'cache/archives/partial', 'downloads']) {
      mkdirSync(join(directory, part), { recursive: true })
    }
    this.#options = aptOptions(directory)
  }

  /** Reads the package lists of the system's own sources. @throws VmError */
  async update(): Promise<void> {
    await run('apt-get', [...this.#options, 'update'])
  }

  /** What `apt-cache show` says of a package's candidate; empty for an unknown package. */
  async show(name: string): Promise<string> {
    const options = [...this.#options, '--no-all-versions', 'show', name]
    return (await run('apt-cache', options).catch(() => Buffer.alloc(0))).toString()
  }

  /** Downloads one package. @returns the path of its file @throws VmError */
  async download(wanted: PackageVersion): Promise<string> {
    const directory = join(this.#directory, 'downloads', wanted.name)
    mkdirSync(directory, { recursive: true })
    const what = `${wanted.name}=${wanted.version}`
    await run('apt-get', [...this.#options, 'download', what], { cwd: directory })
    return theOnly(debsIn(directory), what)
  }

  /**
   * Downloads packages with everything that they depend on and that the system lacks.
   * @returns the paths of their files
   * @throws VmError
   */
  async downloadWithMissing(names: readonly string[]): Promise<string[]> {
    const flags = ['install', '--download-only', '--yes', '--no-install-recommends', '--reinstall']
    await run('apt-get', [...this.#options, ...flags, ...names])
    return debsIn(join(this.#directory, 'cache/archives'))
  }

  close(): void {
    rmSync(this.#directory, { recursive: true, force: true })
  }
}

/** Unpacks packages over one another into a directory. @throws VmError */
export async function unpack(files: readonly string[], directory: string): Promise<void> {
  mkdirSync(directory, { recursive: true })
  for (const file of files) await run('dpkg', ['-x', file, directory])
}

/**
 * The options that point apt at private directories, with the system's sources and installed
 * packages.
 */
export function aptOptions(directory: string): string[] {
  const settings = {
    'Dir::State': join(directory, 'state'),
    'Dir::State::status': '/var/lib/dpkg/status',
    'Dir::Cache': join(directory, 'cache'),
    'Debug::NoLocking': '1',
    // The sandbox user could not enter a cache in somebody's home directory.
    'APT::Sandbox::User': '',
    'Acquire::Languages': 'none',
    'Acquire::Retries': '2',
    'Acquire::http::Timeout': '20',
  }
  return ['-qq', ...Object.entries(settings).flatMap(([name, value]) => ['-o', `${name}=${value}`])]
}

/**
 * The packages that a metapackage points at, from `apt-cache show`: its dependencies bound to an
 * exact version, in the order given.
 */
export function exactDependencies(shown: string): PackageVersion[] {
  const dependencies = /^Depends: (.*)$/m.exec(shown)?.[1] ?? ''
  return dependencies.split(',').flatMap((dependency) => {
    const match = /^\s*([a-z0-9][a-z0-9+.-]*)(?::\w+)?\s*\(=\s*([^)\s]+)\s*\)\s*$/.exec(dependency)
    return match === null ? [] : [{ name: match[1], version: match[2] }]
  })
}

function debsIn(directory: string): string[] {
  return readdirSync(directory)
    .filter((name) => name.endsWith('.deb'))
    .sort()
    .map((name) => join(directory, name))
}

function theOnly(files: readonly string[], what: string): string {
  if (files.length !== 1) {
    throw new VmError('ERR_VM_FETCH', `apt-get download ${what} left ${files.length} files`)
  }
  return files[0]
}

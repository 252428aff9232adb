/**
 * DPDK's test program for a guest: Debian's build with the drivers of a virtio network card, as one
 * directory that holds all the libraries it needs. The system's own is used; where there is none,
 * Debian's package is unpacked into the cache.
 */
import { existsSync, readdirSync, readFileSync, realpathSync } from 'node:fs'
import { basename, join } from 'node:path'
import { AptSession, unpack } from './apt'
import { entry, unfinishedDirectory } from './cache'
import type { CpioEntry } from './cpio'
import { librariesOf } from './process'
import { VmError } from './vm-error'

/** In the guest. */
const DIRECTORY = 'dpdk'

const CACHE_ENTRY = 'testpmd'
const PACKAGE = 'dpdk-dev'
const PROGRAM = 'usr/bin/dpdk-testpmd'
const LIBRARIES = 'usr/lib/x86_64-linux-gnu'
const LOADER = 'ld-linux-x86-64.so.2'
/** Loaded by name; those that the program is linked with come with it. */
const DRIVERS = /\/librte_(mempool_ring|net_virtio)\.so\.\d+$/
const DRIVER_COUNT = 2
/** Of what the package depends on: shared libraries, and not what one compiles with. */
const UNPACKED = /^(dpdk-dev|lib[^_]*(?<!-dev))_/

export interface Testpmd {
  /** Files for the guest's root. */
  readonly files: readonly CpioEntry[]
  /** What starts it there; options of DPDK follow. */
  readonly command: string
}

/** @throws VmError where it is not installed and cannot be fetched */
export async function testpmd(cache: string): Promise<Testpmd> {
  const root = existsSync(join('/', PROGRAM)) ? '/' : await fetched(cache)
  const drivers = driversIn(root)
  const libraries = join(root, LIBRARIES)
  const env = root === '/' ? process.env : { ...process.env, LD_LIBRARY_PATH: libraries }
  const program = join(root, PROGRAM)
  const needed = await Promise.all([program, ...drivers].map((file) => librariesOf(file, env)))
  const paths = new Map(
    [program, ...drivers, ...needed.flat()].map((path) => [basename(path), path]),
  )
  const directory = `/${DIRECTORY}`
  return {
    files: [
      { type: 'directory', path: DIRECTORY },
      ...[...paths].map(([name, path]): CpioEntry => ({
        type: 'file',
        path: join(DIRECTORY, name),
        content: readFileSync(realpathSync(path)),
        mode: 0o755,
      })),
    ],
    command: [
      `${directory}/${LOADER} --library-path ${directory} ${directory}/${basename(PROGRAM)}`,
      ...drivers.map((path) => `-d ${directory}/${basename(path)}`),
    ].join(' '),
  }
}

/** Some of what the package depends on may be the system's. Their directory has a version. */
function driversIn(root: string): readonly string[] {
  for (const above of [join(root, LIBRARIES, 'dpdk'), join('/', LIBRARIES, 'dpdk')]) {
    if (!existsSync(above)) continue
    const paths = readdirSync(above, { recursive: true, encoding: 'utf8' })
    const drivers = paths.filter((path) => DRIVERS.test(path))
    if (drivers.length === DRIVER_COUNT) return drivers.map((path) => join(above, path))
  }
  throw new VmError('ERR_VM_FETCH', `no drivers of DPDK: apt-get install ${PACKAGE}`)
}

async function fetched(cache: string): Promise<string> {
  const { path } = await entry(cache, CACHE_ENTRY, async (directory) => {
    const apt = new AptSession(unfinishedDirectory(cache))
    try {
      await apt.update()
      const files = await apt.downloadWithMissing([PACKAGE])
      await unpack(
        files.filter((file) => UNPACKED.test(basename(file))),
        directory,
      )
    } finally {
      apt.close()
    }
  })
  return path
}

/**
 * Builds the archive that the kernel starts from: busybox, two scripts and the modules. It holds
 * nothing of the host's system, which the guest mounts; so it is small, built in a moment, and
 * named by its content's hash in the cache.
 */
import { createHash } from 'node:crypto'
import { closeSync, copyFileSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { entry, unfinishedDirectory } from './cache'
import { cpioArchive, cpioPieces, type CpioEntry } from './cpio'
import { INIT_SCRIPT, RUN_JOB_SCRIPT } from './guest'
import type { Kernel } from './kernel'
import { BOOT_MODULES, modulesInOrder, NETWORK_MODULES, xzWith } from './modules'

export interface Image {
  readonly path: string
  /** Whether it had to be built. */
  readonly built: boolean
}

const DIRECTORIES = ['bin', 'dev', 'modules', 'proc', 'sys']

/**
 * The image for a kernel.
 * @param extraModules inserted after those that every VM has
 * @throws VmError for a module that the kernel does not have
 */
export async function buildImage(
  cache: string,
  kernel: Kernel,
  busybox: string,
  extraModules: readonly string[] = [],
): Promise<Image> {
  const wanted = [...BOOT_MODULES, ...NETWORK_MODULES, ...extraModules]
  const program = readFileSync(busybox)
  const ingredients = [kernel.image, kernel.release, INIT_SCRIPT, RUN_JOB_SCRIPT, ...wanted]
  const hash = createHash('sha256').update(ingredients.join('\0')).update(program)
  const name = `image-${kernel.release}-${hash.digest('hex').slice(0, 16)}`
  const { path, made } = await entry(cache, name, async (directory) => {
    const modules = await modulesInOrder(kernel.modules, wanted, xzWith(busybox))
    const files = modules.map(({ name, content }) => file(`modules/${name}.ko`, content))
    const order = modules.map(({ name }) => `/modules/${name}.ko\n`).join('')
    const archive = cpioArchive([
      ...DIRECTORIES.map((path): CpioEntry => ({ type: 'directory', path })),
      file('bin/busybox', program, 0o755),
      file('init', Buffer.from(INIT_SCRIPT), 0o755),
      file('run-job', Buffer.from(RUN_JOB_SCRIPT)),
      file('modules/order', Buffer.from(order)),
      ...files,
    ])
    writeFileSync(join(directory, 'image.cpio'), archive)
  })
  return { path: join(path, 'image.cpio'), built: made }
}

/**
 * A copy of an image with more entries in it: the kernel unpacks one archive after the other.
 * `remove` it after use.
 */
export function appendToImage(
  cache: string,
  image: string,
  entries: Iterable<CpioEntry>,
): { readonly path: string; remove: () => void } {
  const directory = unfinishedDirectory(cache)
  const remove = () => {
    rmSync(directory, { recursive: true, force: true })
  }
  try {
    const path = join(directory, 'image.cpio')
    copyFileSync(image, path)
    const target = openSync(path, 'a')
    try {
      for (const piece of cpioPieces(entries)) writeFileSync(target, piece)
    } finally {
      closeSync(target)
    }
    return { path, remove }
  } catch (error) {
    remove()
    throw error
  }
}

function file(path: string, content: Uint8Array, mode?: number): CpioEntry {
  return { type: 'file', path, content, ...(mode === undefined ? {} : { mode }) }
}

/**
 * Everything that a VM needs before it can boot: the programs, the kernel, the image. What the
 * cache or the system has is used as it is; all that is missing is fetched at once.
 */
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { AptSession } from './apt'
import { entry, unfinishedDirectory } from './cache'
import { buildImage } from './image'
import { fetchKernel, kernelEntry, readKernel, type Kernel, type KernelLine } from './kernel'
import { findProgram } from './process'
import { fetchTools, systemTools, TOOLS_ENTRY, unpackedTools, type Tools } from './tools'
import { VmError } from './vm-error'

export type PrepareStage = 'fetching' | 'fetched' | 'kernel' | 'image'

export interface Provided {
  readonly tools: Tools
  readonly kernel: Kernel
}

export interface Prepared extends Provided {
  /** Path of the first root file system. */
  readonly image: string
}

type OnStage = (stage: PrepareStage, detail: string) => void

/** @throws VmError when something is missing and cannot be fetched */
export async function prepare(
  cache: string,
  line: KernelLine,
  extraModules: readonly string[],
  onStage: OnStage,
): Promise<Prepared> {
  const { tools, kernel } = await provide(cache, line, onStage)
  const image = await buildImage(cache, kernel, tools.busybox, extraModules)
  onStage('image', image.built ? 'built' : 'cached')
  return { tools, kernel, image: image.path }
}

/** The programs and the kernel alone. @throws VmError as `prepare` */
export async function provide(
  cache: string,
  line: KernelLine,
  onStage: OnStage = () => undefined,
): Promise<Provided> {
  requireHost()
  const system = systemTools()
  const missing = [
    ...(system !== undefined || existsSync(join(cache, TOOLS_ENTRY)) ? [] : [TOOLS_ENTRY]),
    ...(existsSync(join(cache, kernelEntry(line))) ? [] : [kernelEntry(line)]),
  ]
  if (missing.length > 0) await fetchMissing(cache, line, missing, onStage)
  const tools = system ?? unpackedTools(join(cache, TOOLS_ENTRY))
  const kernel = readKernel(line, join(cache, kernelEntry(line)))
  onStage('kernel', kernel.release)
  return { tools, kernel }
}

function requireHost(): void {
  if (process.platform !== 'linux' || process.arch !== 'x64') {
    throw new VmError('ERR_VM_UNSUPPORTED', 'the nested VM needs Linux on x86-64')
  }
  // Without it nothing would end the VM if this process is killed.
  if (findProgram('setpriv') === undefined) {
    throw new VmError('ERR_VM_UNSUPPORTED', 'setpriv (Debian: util-linux) is not installed')
  }
}

async function fetchMissing(
  cache: string,
  line: KernelLine,
  missing: readonly string[],
  onStage: OnStage,
): Promise<void> {
  if (findProgram('apt-get') === undefined || findProgram('dpkg') === undefined) {
    throw new VmError('ERR_VM_FETCH', `missing ${missing.join(' and ')}, and no apt to fetch it`)
  }
  onStage('fetching', missing.join(' and '))
  const apt = new AptSession(unfinishedDirectory(cache))
  try {
    await apt.update()
    const makers: Readonly<Record<string, (directory: string) => Promise<unknown>>> = {
      [TOOLS_ENTRY]: (directory) => fetchTools(apt, directory),
      [kernelEntry(line)]: (directory) => fetchKernel(line, apt, directory),
    }
    const makeEntry = (name: string) =>
      entry(cache, name, async (directory) => {
        await makers[name](directory)
      })
    // Both to their end, so that neither writes into a directory that is being removed.
    const results = await Promise.allSettled(missing.map(makeEntry))
    for (const result of results) if (result.status === 'rejected') throw result.reason
  } finally {
    apt.close()
  }
  onStage('fetched', missing.join(' and '))
}

/**
 * Picks kernel modules and puts them into the order in which they can be inserted. Each module
 * names those it needs in its `.modinfo` section, so no `modules.dep` (which the package does not
 * carry) is wanted.
 */
import { readdirSync, readFileSync } from 'node:fs'
import { basename, join } from 'node:path'
import { run } from './process'
import { VmError } from './vm-error'

export interface KernelModule {
  /** With underscores, as `lsmod` says it. */
  readonly name: string
  readonly content: Buffer
}

const MODULE_FILE = /^(.+)\.ko(\.xz)?$/

/** Modules that a VM needs before it can mount its root or speak with the host. */
export const BOOT_MODULES: readonly string[] = [
  'virtio_pci',
  'virtio_console',
  'virtiofs',
  'overlay',
]

/** Modules that make `/dev/net/tun`, `/dev/vhost-net` and networks to put them in. */
export const NETWORK_MODULES: readonly string[] = ['tun', 'tap', 'vhost_net', 'veth']

/**
 * Reads the wanted modules and all that they depend on, each after those it depends on.
 * @param directory a kernel release's directory
 * @param decompress turns the bytes of a `.xz` file into a module's
 * @throws VmError for a module that the kernel neither has nor has built in
 */
export async function modulesInOrder(
  directory: string,
  wanted: readonly string[],
  decompress: (compressed: Buffer) => Promise<Buffer>,
): Promise<KernelModule[]> {
  const files = moduleFiles(directory)
  const builtin = builtinModules(directory)
  const ordered = new Map<string, KernelModule>()
  const visit = async (name: string): Promise<void> => {
    if (ordered.has(name) || builtin.has(name)) return
    const file = files.get(name)
    if (file === undefined) {
      throw new VmError('ERR_VM_UNSUPPORTED', `this kernel has no module '${name}'`)
    }
    const bytes = readFileSync(file)
    const content = file.endsWith('.xz') ? await decompress(bytes) : bytes
    for (const dependency of dependenciesOf(content)) await visit(dependency)
    ordered.set(name, { name, content })
  }
  for (const name of wanted) await visit(canonical(name))
  return [...ordered.values()]
}

/** Decompresses with a busybox, which is there anyway. */
export function xzWith(busybox: string): (compressed: Buffer) => Promise<Buffer> {
  return (compressed) => run(busybox, ['xz', '-dc'], { input: compressed })
}

/** The names after `depends=` in a module's `.modinfo`, empty when it needs none. */
export function dependenciesOf(module: Buffer): string[] {
  const key = Buffer.from('\0depends=')
  const at = module.indexOf(key)
  if (at < 0) return []
  const from = at + key.length
  const names = module.toString('latin1', from, module.indexOf(0, from))
  return names
    .split(',')
    .filter((name) => name !== '')
    .map(canonical)
}

function moduleFiles(directory: string): Map<string, string> {
  const files = new Map<string, string>()
  for (const path of readdirSync(join(directory, 'kernel'), {
    recursive: true,
    encoding: 'utf8',
  })) {
    const match = MODULE_FILE.exec(basename(path))
    if (match !== null) files.set(canonical(match[1]), join(directory, 'kernel', path))
  }
  return files
}

function builtinModules(directory: string): Set<string> {
  const lines = readFileSync(join(directory, 'modules.builtin'), 'utf8').split('\n')
  return new Set(lines.map((line) => canonical(basename(line, '.ko'))))
}

function canonical(name: string): string {
  return name.replaceAll('-', '_')
}

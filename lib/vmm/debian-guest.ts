/**
 * A guest to try things on: a stock Debian kernel, as the nested VM has it, with a busybox that
 * does what it is told (`guest-shell.ts`).
 */
import { readFileSync } from 'node:fs'
import { defaultCacheDirectory } from '../vm/cache'
import type { CpioEntry } from '../vm/cpio'
import type { KernelLine } from '../vm/kernel'
import { modulesInOrder, xzWith } from '../vm/modules'
import { provide } from '../vm/prepare'
import type { Tools } from '../vm/tools'
import { guestArchive } from './guest-shell'
import type { LinuxImage } from './linux'

/** What the network card needs, and the kernel's packet generator. */
const MODULES: readonly string[] = ['virtio_pci', 'virtio_net', 'pktgen']

/** What the guest is told whatever is tried; `quiet` because each byte of console costs an exit. */
const ALWAYS: readonly string[] = ['console=ttyS0', 'quiet', 'panic=-1', 'mitigations=off']

/** How the guest uses its remapping unit. */
export const GUEST_MODES = {
  strict: ['intel_iommu=on', 'iommu.strict=1'],
  lazy: ['intel_iommu=on', 'iommu.strict=0'],
  passthrough: ['intel_iommu=on', 'iommu=pt'],
  off: ['intel_iommu=off'],
} as const satisfies Readonly<Record<string, readonly string[]>>

export type GuestMode = keyof typeof GUEST_MODES

export interface DebianGuestOptions {
  /** Kernel modules: by default what the network card needs, and the packet generator. */
  readonly modules?: readonly string[]
  /** What the kernel is told as well. */
  readonly append?: readonly string[]
  /** Files beside the shell. */
  readonly files?: readonly CpioEntry[]
}

export interface DebianGuest {
  /** As `uname -r` will say. */
  readonly release: string
  readonly image: LinuxImage
  /** The programs that it was made with, and a QEMU. */
  readonly tools: Tools
}

/** @throws VmError where a kernel is missing and cannot be fetched */
export async function debianGuest(
  line: KernelLine,
  mode: GuestMode,
  { modules: wanted = MODULES, append = [], files = [] }: DebianGuestOptions = {},
): Promise<DebianGuest> {
  const { kernel, tools } = await provide(defaultCacheDirectory(), line)
  const modules = await modulesInOrder(kernel.modules, wanted, xzWith(tools.busybox))
  const initrd = guestArchive({ busybox: readFileSync(tools.busybox), modules, extra: files })
  return {
    ...{ release: kernel.release, tools },
    image: {
      kernel: readFileSync(kernel.image),
      initrd,
      commandLine: [...ALWAYS, ...GUEST_MODES[mode], ...append].join(' '),
    },
  }
}

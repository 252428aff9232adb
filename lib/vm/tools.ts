/**
 * Finds the programs that run the VM: QEMU, its virtiofs server and a static busybox. What the
 * system has is used; what it lacks is unpacked from Debian's packages into the cache.
 */
import { closeSync, existsSync, openSync, readSync } from 'node:fs'
import { join } from 'node:path'
import { unpack, type AptSession } from './apt'
import { findProgram, isExecutable } from './process'
import { VmError } from './vm-error'

export interface Tools {
  readonly qemu: string
  /** Options that QEMU needs to find its firmware; none for the system's own. */
  readonly qemuOptions: readonly string[]
  readonly virtiofsd: string
  /** Statically linked. */
  readonly busybox: string
  /** What the programs need in their environment, to be added to it. */
  readonly env: Readonly<Record<string, string>>
}

/** The name of the tools' entry in the cache. */
export const TOOLS_ENTRY = 'tools'

/** Debian's packages with the three programs. qemu-system-common has virtiofsd up to Debian 12. */
const PACKAGES: readonly string[] = ['qemu-system-x86', 'qemu-system-common', 'busybox-static']

const QEMU = 'qemu-system-x86_64'
const VIRTIOFSD = ['usr/lib/qemu/virtiofsd', 'usr/libexec/virtiofsd']
const LIBRARIES = ['usr/lib/x86_64-linux-gnu', 'lib/x86_64-linux-gnu']
const FIRMWARE = ['usr/share/qemu', 'usr/share/seabios', 'usr/lib/ipxe/qemu']

/** The system's own tools, if it has all three. */
export function systemTools(): Tools | undefined {
  const qemu = findProgram(QEMU)
  const virtiofsd = findVirtiofsd('/')
  const busybox = findProgram('busybox')
  if (qemu === undefined || virtiofsd === undefined || busybox === undefined) return undefined
  if (!isStatic(busybox)) return undefined
  return { qemu, qemuOptions: [], virtiofsd, busybox, env: {} }
}

/** Fetches the tools into `directory`. @throws VmError */
export async function fetchTools(apt: AptSession, directory: string): Promise<void> {
  await unpack(await apt.downloadWithMissing(PACKAGES), directory)
}

/** Tools unpacked under `root`. @throws VmError if one is missing there */
export function unpackedTools(root: string): Tools {
  const qemu = join(root, 'usr/bin', QEMU)
  const virtiofsd = findVirtiofsd(root)
  const busybox = [join(root, 'usr/bin/busybox'), join(root, 'bin/busybox')].find(isExecutable)
  if (!isExecutable(qemu) || virtiofsd === undefined || busybox === undefined) {
    throw new VmError(
      'ERR_VM_FETCH',
      `${root} lacks QEMU, virtiofsd or busybox: remove it to fetch them again, or run ` +
        '`apt-get install qemu-system-x86 busybox-static`',
    )
  }
  return {
    qemu,
    qemuOptions: FIRMWARE.flatMap((path) => ['-L', join(root, path)]),
    virtiofsd,
    busybox,
    env: {
      LD_LIBRARY_PATH: LIBRARIES.map((path) => join(root, path)).join(':'),
      QEMU_MODULE_DIR: join(root, 'usr/lib/x86_64-linux-gnu/qemu'),
    },
  }
}

function findVirtiofsd(root: string): string | undefined {
  return VIRTIOFSD.map((path) => join(root, path)).find(isExecutable)
}

/** Whether an ELF program asks for no interpreter (ELF-64: e_phoff, e_phentsize, e_phnum). */
export function isStatic(program: string): boolean {
  if (!existsSync(program)) return false
  const head = Buffer.alloc(4096)
  const file = openSync(program, 'r')
  try {
    readSync(file, head, 0, head.length, 0)
  } finally {
    closeSync(file)
  }
  const PT_INTERP = 3
  const offset = Number(head.readBigUInt64LE(32))
  const size = head.readUInt16LE(54)
  for (let index = 0; index < head.readUInt16LE(56); index++) {
    const at = offset + index * size
    if (at + 4 > head.length || head.readUInt32LE(at) === PT_INTERP) return false
  }
  return true
}

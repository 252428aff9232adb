/**
 * Puts a Linux kernel into memory, as a boot loader does: bzImage, initramfs, command line, and the
 * parameters that say where they are and what memory there is.
 *
 * Documentation/arch/x86/boot.rst of Linux, 64-bit boot protocol; `struct boot_params` of
 * arch/x86/include/uapi/asm/bootparam.h.
 */
import { PAGE_SIZE } from '../address'
import type { GuestMemory } from '../memory/guest-memory'
import { ECAM, LOW } from './layout'

export interface LinuxImage {
  /** A bzImage, protocol 2.12 or later, such as Debian's vmlinuz. */
  readonly kernel: Uint8Array
  readonly initrd?: Uint8Array
  readonly commandLine: string
}

/** A program without an operating system: it is at 1 MiB, in 64-bit mode, and is entered there. */
export interface BareImage {
  readonly code: Uint8Array
}

/** Where the first processor starts, and what it finds in RSI. */
export interface Entry {
  readonly rip: number
  readonly rsi: number
}

/** Offsets in the kernel file and in `boot_params`, which start alike. */
const HEADER = {
  start: 0x1f1,
  setupSectors: 0x1f1,
  bootFlag: 0x1fe,
  jump: 0x201,
  magic: 0x202,
  version: 0x206,
  loader: 0x210,
  loadFlags: 0x211,
  initrdAddress: 0x218,
  initrdBytes: 0x21c,
  commandLine: 0x228,
  initrdMost: 0x22c,
  xloadFlags: 0x236,
  commandLineBytes: 0x238,
  preferred: 0x258,
  initBytes: 0x260,
} as const
const PARAMETERS = { rsdp: 0x70, e820Entries: 0x1e8, e820: 0x2d0, bytes: 4096 } as const
const E820_BYTES = 20
const RAM = 1
const RESERVED = 2

const MAGIC = 0x53726448
const BOOT_FLAG = 0xaa55
const VERSION = 0x020c
const SECTOR = 512
/** xloadflags: the kernel can be entered in 64-bit mode. */
const XLF_KERNEL_64 = 1
const LOADED_HIGH = 1
/** A loader without a number of its own. */
const UNDEFINED_LOADER = 0xff
const ENTRY_64 = 0x200

/**
 * @param rsdp where the ACPI tables start
 * @throws RangeError for what is not such a kernel, or does not fit into the memory
 */
export function loadLinux(memory: GuestMemory, image: LinuxImage, rsdp: number): Entry {
  const { kernel } = image
  const header = new DataView(kernel.buffer, kernel.byteOffset, kernel.byteLength)
  check(header)
  const setup = (header.getUint8(HEADER.setupSectors) + 1) * SECTOR
  const lowEnd = memory.regions[0].bytes
  const at = Number(header.getBigUint64(HEADER.preferred, true))
  const end = at + Math.max(header.getUint32(HEADER.initBytes, true), kernel.length - setup)
  if (end > lowEnd) throw new RangeError(`the kernel needs memory up to 0x${end.toString(16)}`)
  memory.view(at, kernel.length - setup).set(kernel.subarray(setup))

  const parameters = new Uint8Array(PARAMETERS.bytes)
  const view = new DataView(parameters.buffer)
  const headerEnd = HEADER.magic + header.getUint8(HEADER.jump)
  parameters.set(kernel.subarray(HEADER.start, headerEnd), HEADER.start)
  view.setUint8(HEADER.loader, UNDEFINED_LOADER)
  view.setUint8(HEADER.loadFlags, header.getUint8(HEADER.loadFlags) | LOADED_HIGH)
  view.setBigUint64(PARAMETERS.rsdp, BigInt(rsdp), true)
  view.setUint32(HEADER.commandLine, putCommandLine(memory, image, header), true)
  if (image.initrd !== undefined && image.initrd.length > 0) {
    const most = Math.min(lowEnd, header.getUint32(HEADER.initrdMost, true) + 1)
    view.setUint32(HEADER.initrdAddress, putInitrd(memory, image.initrd, end, most), true)
    view.setUint32(HEADER.initrdBytes, image.initrd.length, true)
  }
  putMemoryMap(view, memory)
  memory.view(LOW.bootParameters, PARAMETERS.bytes).set(parameters)
  return { rip: at + ENTRY_64, rsi: LOW.bootParameters }
}

/** @throws RangeError where it does not fit */
export function loadBare(memory: GuestMemory, { code }: BareImage): Entry {
  memory.view(LOW.tablesEnd, code.length).set(code)
  return { rip: LOW.tablesEnd, rsi: 0 }
}

function check(header: DataView): void {
  if (header.byteLength < PARAMETERS.bytes || header.getUint32(HEADER.magic, true) !== MAGIC) {
    throw new RangeError('not a Linux kernel image (bzImage)')
  }
  const flag = header.getUint16(HEADER.bootFlag, true)
  const version = header.getUint16(HEADER.version, true)
  const enters64 = (header.getUint16(HEADER.xloadFlags, true) & XLF_KERNEL_64) !== 0
  if (flag !== BOOT_FLAG || version < VERSION || !enters64) {
    throw new RangeError('the kernel has no 64-bit entry (boot protocol 2.12)')
  }
}

function putCommandLine(memory: GuestMemory, image: LinuxImage, header: DataView): number {
  const text = new TextEncoder().encode(`${image.commandLine}\0`)
  const most = header.getUint32(HEADER.commandLineBytes, true) + 1
  if (text.length > most) throw new RangeError(`a command line has at most ${most - 1} bytes`)
  memory.view(LOW.commandLine, text.length).set(text)
  return LOW.commandLine
}

/** As high as it can be, out of the way of the kernel that unpacks itself. */
function putInitrd(memory: GuestMemory, initrd: Uint8Array, least: number, most: number): number {
  const at = Math.floor((most - initrd.length) / PAGE_SIZE) * PAGE_SIZE
  if (at < least) throw new RangeError('the initramfs does not fit into the memory')
  memory.view(at, initrd.length).set(initrd)
  return at
}

function putMemoryMap(view: DataView, memory: GuestMemory): void {
  const map: [first: number, end: number, type: number][] = [
    [0, LOW.end, RAM],
    [LOW.tables, LOW.tablesEnd, RESERVED],
    [LOW.tablesEnd, memory.regions[0].bytes, RAM],
    // Linux uses an ECAM only where the map, or ACPI's namespace, keeps it free.
    [ECAM.base, ECAM.base + ECAM.bytes, RESERVED],
  ]
  for (const { range, bytes } of memory.regions.slice(1)) {
    map.push([Number(range.first), Number(range.first) + bytes, RAM])
  }
  view.setUint8(PARAMETERS.e820Entries, map.length)
  for (const [i, [first, end, type]] of map.entries()) {
    const at = PARAMETERS.e820 + i * E820_BYTES
    view.setBigUint64(at, BigInt(first), true)
    view.setBigUint64(at + 8, BigInt(end - first), true)
    view.setUint32(at + 16, type, true)
  }
}

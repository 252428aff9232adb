import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { MiB } from '../../lib/address'
import { GuestMemory } from '../../lib/memory/guest-memory'
import { loadLinux } from '../../lib/vmm/linux'

const PARAMETERS = 0x7000
const RSDP = 0xe0000
const PREFERRED = 16 * MiB
const INIT_BYTES = 32 * MiB
const SETUP_SECTORS = 4
const CODE = Uint8Array.of(0xeb, 0xfe, 1, 2, 3, 4)

let memory: GuestMemory

beforeEach(() => {
  memory = GuestMemory.allocate(128 * MiB)
})

afterEach(() => {
  memory.close()
})

/** The head of a bzImage with the fields that a loader reads. */
function kernel(change: (header: Buffer) => void = () => undefined): Uint8Array {
  const file = Buffer.alloc((SETUP_SECTORS + 1) * 512 + 4096)
  file.writeUInt8(SETUP_SECTORS, 0x1f1)
  file.writeUInt16LE(0xaa55, 0x1fe)
  file.writeUInt8(0x6a, 0x201)
  file.write('HdrS', 0x202)
  file.writeUInt16LE(0x020f, 0x206)
  file.writeUInt32LE(0x7fffffff, 0x22c)
  file.writeUInt16LE(0x7f, 0x236)
  file.writeUInt32LE(2047, 0x238)
  file.writeBigUInt64LE(BigInt(PREFERRED), 0x258)
  file.writeUInt32LE(INIT_BYTES, 0x260)
  file.set(CODE, (SETUP_SECTORS + 1) * 512)
  change(file)
  return file
}

const load = (image: Partial<Parameters<typeof loadLinux>[1]> = {}) =>
  loadLinux(memory, { kernel: kernel(), commandLine: 'quiet', ...image }, RSDP)

describe('a kernel', () => {
  it('is where it wants to be, and is entered 512 bytes into it with its parameters', () => {
    expect(load()).toEqual({ rip: PREFERRED + 0x200, rsi: PARAMETERS })
    expect(memory.view(PREFERRED, CODE.length)).toEqual(CODE)
  })

  it('keeps its own header in the parameters, with the loader and the tables filled in', () => {
    load()
    const parameters = Buffer.from(memory.view(PARAMETERS, 4096))
    expect(parameters.toString('latin1', 0x202, 0x206)).toBe('HdrS')
    expect(parameters[0x210]).toBe(0xff)
    expect(parameters[0x211]).toBe(1)
    expect(parameters.readBigUInt64LE(0x70)).toBe(BigInt(RSDP))
  })

  it('finds its command line, ended by a zero', () => {
    load({ commandLine: 'console=ttyS0' })
    const at = memory.u32(PARAMETERS + 0x228)
    expect(Buffer.from(memory.view(at, 14)).toString()).toBe('console=ttyS0\0')
  })

  it('finds its initramfs on whole pages at the end of memory', () => {
    const initrd = new Uint8Array(5000).fill(7)
    load({ initrd })
    const at = memory.u32(PARAMETERS + 0x218)
    expect(at).toBe(128 * MiB - 8192)
    expect(memory.u32(PARAMETERS + 0x21c)).toBe(5000)
    expect(memory.view(at, 5000)).toEqual(initrd)
  })

  it('is told of memory, of what a BIOS would have, and of the configuration space', () => {
    load()
    const map = Array.from({ length: memory.view(PARAMETERS + 0x1e8, 1)[0] }, (_, i) => {
      const entry = Buffer.from(memory.view(PARAMETERS + 0x2d0 + 20 * i, 20))
      const [first, bytes] = [Number(entry.readBigUInt64LE(0)), Number(entry.readBigUInt64LE(8))]
      return [first, first + bytes, entry.readUInt32LE(16)]
    })
    expect(map).toEqual([
      [0, 0x9fc00, 1],
      [0xe0000, 0x100000, 2],
      [0x100000, 128 * MiB, 1],
      [0xe0000000, 0xe1000000, 2],
    ])
  })
})

describe('what is refused', () => {
  it.each<[string, (header: Buffer) => void, RegExp]>([
    ['no kernel', (file) => file.fill(0, 0x202, 0x206), /not a Linux kernel/],
    ['a kernel of an old protocol', (file) => file.writeUInt16LE(0x20a, 0x206), /64-bit entry/],
    ['a kernel without a 64-bit entry', (file) => file.writeUInt16LE(0, 0x236), /64-bit entry/],
    ['one that needs more memory', (file) => file.writeUInt32LE(0x7fffffff, 0x260), /needs memory/],
  ])('%s', (_, change, message) => {
    expect(() => load({ kernel: kernel(change) })).toThrow(message)
    expect(() => load({ kernel: kernel(change) })).toThrow(RangeError)
  })

  it('a command line that the kernel would cut', () => {
    expect(() => load({ commandLine: 'x'.repeat(2048) })).toThrow(/at most 2047 bytes/)
  })

  it('an initramfs that would lie over the kernel', () => {
    expect(() => load({ initrd: new Uint8Array(100 * MiB) })).toThrow(/does not fit/)
  })
})

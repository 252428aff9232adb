/**
 * The native layer: system calls, mappings and descriptors, with no policy and no struct layouts.
 *
 * Calls answer `-errno` where the host refuses, and throw a TypeError or RangeError where an
 * argument is wrong. Descriptors and mappings are objects: nobody can close another's number.
 * Only `memory/guest-memory`, `vhost/*`, `raw` and `vmm/kvm` import this.
 */
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import load = require('bindings')
import { InvalidState } from './errors'

/** An owned file descriptor. `close()` twice is a no-op; any use after it answers -EBADF. */
export interface Descriptor {
  /** The number, borrowed: -1 once closed. */
  readonly fd: number
  close(): void
}

/** Anonymous shared memory (memfd), mapped; detached from JavaScript before it is unmapped. */
export interface Mapping {
  /** The same object at each read; detached by `close()`. */
  readonly buffer: ArrayBuffer
  /** Host virtual address of the first byte. */
  readonly address: bigint
  readonly byteLength: number
  /** Names the mapping to other threads of this process: `native.openMapping(id)`. */
  readonly id: number
  /** How many descriptors hold it (`hold`). */
  readonly holders: number
  /** Drops this environment's view; memory goes when the last view and the last holder have. */
  close(): void
}

/** A watched descriptor. Keeps the event loop alive until `close()` or `unref()`. */
export interface Poller {
  close(): void
  ref(): void
  unref(): void
}

/**
 * Pairs `[addressAt, lengthAt]`: the unsigned 64-bit little-endian word at byte `addressAt` is a
 * host address whose length is the word at `lengthAt`, or literally `-lengthAt` if negative. The
 * call is refused with -EFAULT, before anything is written, unless `[address, address + length)`
 * lies inside one mapping that the descriptor holds. A length of 0 is refused likewise.
 */
export type Guards = readonly number[]

export interface Native {
  /** O_CLOEXEC is always added. */
  open(path: string, flags: number): Descriptor | number
  /** Takes over a number that this process owns (passed by a parent, or received). -EBADF if closed. */
  adopt(fd: number): Descriptor | number
  /** EFD_NONBLOCK and EFD_CLOEXEC. */
  eventfd(initial: number): Descriptor | number
  /** socket(2) with SOCK_CLOEXEC added. */
  socket(domain: number, type: number, protocol: number): Descriptor | number
  /**
   * The request's own size and direction are checked against the argument (asm-generic/ioctl.h):
   * an argument with a payload needs a buffer of at least `_IOC_SIZE` bytes; `_IO` requests take
   * nothing or an integer. `size` overrides `_IOC_SIZE` for requests whose number understates
   * it (TUNSETIFF, the SIOC family, VHOST_SET_MEM_TABLE's flexible array).
   */
  ioctl(
    descriptor: Descriptor,
    request: number,
    argument?: ArrayBufferView | number,
    size?: number,
    guards?: Guards,
  ): number
  /**
   * Reads messages of `size` bytes until there are no more or the buffer is full.
   * @returns their number, or -errno when the first read fails (-EAGAIN when there are none)
   */
  readMany(descriptor: Descriptor, buffer: ArrayBufferView, size: number): number
  /**
   * One write(2) per message of `size` bytes (K10).
   * @returns how many were written, or -errno when the first write fails
   */
  writeMany(
    descriptor: Descriptor,
    buffer: ArrayBufferView,
    size: number,
    count: number,
    guards?: Guards,
  ): number
  /** One read(2) or write(2) of at most `length` bytes at `offset` of the buffer. */
  read(descriptor: Descriptor, buffer: ArrayBufferView, offset: number, length: number): number
  write(descriptor: Descriptor, buffer: ArrayBufferView, offset: number, length: number): number
  /**
   * memfd and mmap, shared, populated, sealed against shrinking. `hugePage` is 0, 2 MiB or 1 GiB.
   * -ENOMEM when the host has no such pages.
   */
  mapMemory(byteLength: number, hugePage: number): Mapping | number
  /** A further view of a mapping made by any thread of this process. -ENOENT when it is gone. */
  openMapping(id: number): Mapping | number
  /** The mapping stays in place at least until the descriptor is closed. */
  hold(descriptor: Descriptor, mapping: Mapping): void
  /**
   * Watches for readability on this environment's own loop. With a buffer, native reads the
   * pending messages of `size` bytes into it first and calls once per batch with their number;
   * without, it calls with the poll events. A negative number is -errno; the poll then has stopped.
   */
  poll(
    descriptor: Descriptor,
    buffer: ArrayBufferView | null,
    size: number,
    listener: (count: number) => void,
  ): Poller
  /** Network namespace of the calling thread only: for `setns` by descriptor. */
  setns(descriptor: Descriptor, type: number): number
}

let loaded: Native | undefined

/** @throws InvalidState ERR_NO_ADDON, with what to do, when no addon fits this host */
export function native(): Native {
  loaded ??= loadAddon()
  return loaded
}

function loadAddon(): Native {
  const root = join(__dirname, '..')
  const prebuild = `${process.platform}-${process.arch}`
  const libc = existsSync('/etc/alpine-release') ? 'musl' : 'glibc'
  try {
    return load({
      bindings: 'vhost_iotlb',
      module_root: root,
      try: [
        ['module_root', 'build', 'Release', 'bindings'],
        ['module_root', 'build', 'Debug', 'bindings'],
        ['module_root', 'prebuilds', prebuild, `node.napi.${libc}.node`],
      ],
    }) as Native
  } catch (error) {
    throw new InvalidState(
      'ERR_NO_ADDON',
      `no addon for ${prebuild} (${libc}) loads: run \`npm rebuild vhost-iotlb\` ` +
        `(needs gcc, make and python3), or \`npm run build\` in a checkout. ` +
        `The cause: ${error instanceof Error ? error.message : String(error)}`,
    )
  }
}

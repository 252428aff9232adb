/**
 * The native layer: system calls, mappings and descriptors, with no policy and no struct layouts.
 *
 * Calls answer `-errno` where the host refuses, and throw a TypeError or RangeError where an
 * argument is wrong. Descriptors and mappings are objects: nobody can close another's number.
 * Only `memory/guest-memory`, `memory/region`, `vhost/*`, `raw` and `vmm/kvm` import this.
 */
import { existsSync } from 'node:fs'
import { join, resolve } from 'node:path'
import load from 'bindings'
import { InvalidState, messageOf } from './errors'

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
  /** How many open files hold it (`hold`). */
  readonly holders: number
  /**
   * Detaches this view; a no-op the second time. The memory goes in a later turn of the event
   * loop, once the last view and the last holder have. Not while an asynchronous read or write of
   * Node's own is filling the buffer.
   */
  close(): void
}

/** A watched descriptor. Keeps the event loop alive until `close()` or `unref()`. */
export interface Poller {
  close(): void
  ref(): void
  unref(): void
}

/**
 * A thread that runs a virtual processor: `KVM_RUN` once per `resume()`. Keeps the event loop alive
 * until `close()`.
 */
export interface VcpuThread {
  /** `struct kvm_run` (linux/kvm.h) and the pages after it; detached by `close()`. */
  readonly run: ArrayBuffer
  /** What `affinity` calls it; -EBADF once closed. */
  readonly threadId: number
  /**
   * Enters the guest; a no-op while it is there. Each time, the listener is called once.
   *
   * `onLoop`: it runs on the thread of the event loop, whenever that has nothing else to do, and the
   * thread of the processor watches the loop. An exit then wakes nobody; -EINTR is not told. It may
   * be another each time; KVM takes some milliseconds for the change.
   */
  resume(onLoop?: boolean): void
  /** Makes the `KVM_RUN` that is under way end with -EINTR; a no-op where there is none. */
  interrupt(): void
  /** The guest has left and the thread has ended when it returns. */
  close(): void
}

/**
 * Pairs `[addressAt, lengthAt]`: the unsigned 64-bit little-endian word at byte `addressAt` is a
 * host address whose length is the word at `lengthAt`, or literally `-lengthAt` if negative. The
 * call is refused with -EFAULT, before anything is written, unless `[address, address + length)`
 * lies inside one mapping that the descriptor holds. A length of 0 is refused likewise.
 */
export type Guards = readonly number[]

/** Every call that takes a closed descriptor or mapping answers -EBADF. */
export interface Native {
  /** open(2) with O_CLOEXEC added; mode 0600 where the flags create a file. */
  open(path: string, flags: number): Descriptor | number
  /**
   * Takes over a number that this process owns (passed by a parent, or received), and sets its
   * FD_CLOEXEC. -EBADF if closed, -EBUSY if a descriptor of any thread owns it already.
   */
  adopt(fd: number): Descriptor | number
  /**
   * A second descriptor for the open file behind a number, such as that of another thread. Both
   * hold the same mappings, until both are closed.
   */
  duplicate(fd: number): Descriptor | number
  /** EFD_NONBLOCK and EFD_CLOEXEC. */
  eventfd(initial: number): Descriptor | number
  /** socket(2) with SOCK_CLOEXEC added. */
  socket(domain: number, type: number, protocol: number): Descriptor | number
  /**
   * The request's own size and direction are checked against the argument (asm-generic/ioctl.h):
   * a request with a payload needs a buffer of at least `_IOC_SIZE` bytes; `_IO` requests take
   * nothing or an integer up to 0xffff, which cannot be an address.
   *
   * `size` says otherwise. With a buffer: what the kernel really uses, for requests whose number
   * understates it (TUNSETIFF, the SIOC family, VHOST_SET_MEM_TABLE's flexible array). 0 with an
   * integer: the argument is a value although the request claims a payload (TUNSETOFFLOAD,
   * TUNSETPERSIST), or a large value; nothing then stops the kernel from taking it as an address.
   *
   * The kernel gets a copy of the buffer, written back afterwards. -EINTR is not repeated.
   */
  ioctl(
    descriptor: Descriptor,
    request: number,
    argument?: ArrayBufferView | number,
    size?: number,
    guards?: Guards,
  ): number
  /**
   * Reads messages of `size` bytes until there are no more or the buffer is full, without waiting
   * even on a blocking descriptor. A message that is shorter has its tail zeroed.
   * @returns their number (0 at the end of a stream), or -errno when the first read fails (-EAGAIN
   * when there are none)
   */
  readMany(descriptor: Descriptor, buffer: ArrayBufferView, size: number): number
  /**
   * One write(2) per message of `size` bytes (K10). Guards count from the start of each message,
   * and all messages are checked before the first is written.
   * @returns how many were written, or -errno when the first write fails
   */
  writeMany(
    descriptor: Descriptor,
    buffer: ArrayBufferView,
    size: number,
    count: number,
    guards?: Guards,
  ): number
  /**
   * `writeMany` of the one message at the start of the buffer, with its arguments checked once: for
   * what is written often. What it returns answers 1 or -errno, -EFAULT when the buffer was
   * detached.
   */
  writer(
    descriptor: Descriptor,
    buffer: ArrayBufferView,
    size: number,
    guards?: Guards,
  ): () => number
  /**
   * One read(2) or write(2) of at most `length` bytes at `offset` of the buffer. Waits where the
   * descriptor is blocking.
   */
  read(descriptor: Descriptor, buffer: ArrayBufferView, offset: number, length: number): number
  write(descriptor: Descriptor, buffer: ArrayBufferView, offset: number, length: number): number
  /**
   * memfd and mmap, shared, sealed against a change of size. `hugePage` is 0, 2 MiB or 1 GiB.
   * Huge pages are populated: -ENOMEM when the host has no such pages. Normal pages are committed
   * at their first touch.
   * @throws RangeError for a length that is not a multiple of the page size (4096 or `hugePage`),
   * or that one ArrayBuffer cannot view (4 GiB on Node 20)
   */
  mapMemory(byteLength: number, hugePage: number): Mapping | number
  /** A further view of a mapping made by any thread of this process. -ENOENT when it is gone. */
  openMapping(id: number): Mapping | number
  /** The mapping stays in place until the descriptor is closed or lets it go. Answers 0. */
  hold(descriptor: Descriptor, mapping: Mapping): number
  /**
   * Ends a `hold`, for one who knows that the kernel does not use the mapping through the
   * descriptor any more: no guard allows its addresses from now on. -ENOENT where it is not held.
   */
  letGo(descriptor: Descriptor, mapping: Mapping): number
  /**
   * Watches for readability on this environment's own loop, and makes the descriptor non-blocking.
   * With a buffer, native reads the pending messages of `size` bytes into it first and calls once
   * per batch with their number; without, it calls with the poll events (1 is readable). A
   * negative number is -errno; the poll then has stopped: -ENODATA at the end of a stream, -EFAULT
   * when the buffer was detached.
   *
   * `busyMicroseconds` (0 to 1000): how long to look for further messages after each batch before
   * the loop has its turn, at most one millisecond altogether.
   * @returns -errno where the descriptor cannot be watched: -EEXIST when it is already, -EPERM for
   * a file
   */
  poll(
    descriptor: Descriptor,
    buffer: ArrayBufferView | null,
    size: number,
    listener: (count: number) => void,
    busyMicroseconds?: number,
  ): Poller | number
  /**
   * Maps `byteLength` bytes of a vCPU's descriptor (KVM_GET_VCPU_MMAP_SIZE) and makes a thread for
   * it. The listener gets what `KVM_RUN` answered, 0 or -errno, in a turn of the event loop; the
   * processor stands still until `resume()`.
   */
  vcpu(
    descriptor: Descriptor,
    byteLength: number,
    listener: (result: number) => void,
  ): VcpuThread | number
  /**
   * Looks at the aligned 32-bit word at `byteOffset` until it is not `value` any more, which somebody
   * else sees to: another thread, the kernel, a guest. Offers the processor to others in between.
   * @param microseconds 0 to 1000; the word is looked at once at least
   * @returns whether it is another
   */
  awaitChange(
    view: ArrayBufferView,
    byteOffset: number,
    value: number,
    microseconds: number,
  ): boolean
  /**
   * sched_setaffinity(2), where processors are given, and sched_getaffinity(2).
   * @param threadId a thread of this process, 0 for the calling one; -ESRCH for any other
   * @returns the processors on which it may run now
   */
  affinity(threadId: number, processors?: readonly number[]): number[] | number
  /** sched_getcpu(3) */
  currentProcessor(): number
  /** setns(2): moves the calling thread only, to the namespace that the descriptor names. */
  setns(descriptor: Descriptor, type: number): number
}

/** Names an addon to load instead of the one that is found, such as one with sanitizers. */
const OVERRIDE = 'VHOST_IOTLB_ADDON'

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
  const override = process.env[OVERRIDE]
  try {
    return load({
      bindings: 'vhost_iotlb',
      module_root: root,
      try:
        override === undefined
          ? [
              ['module_root', 'build', 'Release', 'bindings'],
              ['module_root', 'build', 'Debug', 'bindings'],
              ['module_root', 'prebuilds', prebuild, `node.napi.${libc}.node`],
            ]
          : [[resolve(override)]],
    }) as Native
  } catch (error) {
    const remedy =
      process.platform === 'linux'
        ? `Compile it: \`npx node-gyp rebuild --directory=${root}\` (needs g++, make and python3).`
        : 'It runs on Linux only.'
    throw new InvalidState(
      'ERR_NO_ADDON',
      `vhost-iotlb finds no addon for ${prebuild} (${libc}). ${remedy} ` +
        `The cause: ${messageOf(error)}`,
    )
  }
}

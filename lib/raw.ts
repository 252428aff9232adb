/**
 * The unguarded level: a wrong request, size or address here can overwrite this process.
 *
 * System calls on owned descriptors, enough to write a vhost test by hand together with the
 * numbers and codecs of `vhost/uapi`. Sizes and directions are checked against the request
 * number, but not what is in the bytes: the kernel is told whatever addresses they hold. Everything
 * else in the library goes through checks that this level leaves out.
 */
import { SystemError, succeeded } from './errors'
import { native } from './native'
import type { Descriptor, Mapping, Poller } from './native'

export type { Descriptor, Mapping as RawMapping, Poller } from './native'

const EAGAIN = -11

export interface RawPollOptions {
  /** Where messages of `size` bytes are read to before the listener is called with their number. */
  readonly buffer: ArrayBufferView
  readonly size: number
  /** How long to look for more after each batch before the event loop has its turn: 0 to 1000. */
  readonly busyMicroseconds?: number
}

/** `count` is the number of messages, or the poll events without a buffer. */
export type RawListener = (error: SystemError | undefined, count: number) => void

export const raw = {
  /** O_CLOEXEC is added. @throws SystemError */
  open(path: string, flags: number): Descriptor {
    return made(native().open(path, flags), 'open', path)
  },

  /** A no-op the second time. */
  close(resource: Descriptor | Mapping | Poller): void {
    resource.close()
  },

  /** Non-blocking. @param initial 0 to 2^32-1 @throws SystemError */
  eventfd(initial = 0): Descriptor {
    return made(native().eventfd(initial), 'eventfd')
  },

  /** SOCK_CLOEXEC is added. @throws SystemError */
  socket(domain: number, type: number, protocol = 0): Descriptor {
    return made(native().socket(domain, type, protocol), 'socket')
  },

  /**
   * @param argument a buffer of at least the size that the request encodes; nothing or an integer
   * for requests without a payload
   * @param size what the kernel really uses where the request understates it; 0 with an integer
   * where the argument is a value although the request claims a payload
   * @returns what the system call returned, not negative
   * @throws SystemError
   */
  ioctl(
    descriptor: Descriptor,
    request: number,
    argument?: ArrayBufferView | number,
    size?: number,
  ): number {
    const result = native().ioctl(descriptor, request, argument, size)
    if (result >= 0) return result
    throw new SystemError(result, 'ioctl', { hint: `request 0x${request.toString(16)}` })
  },

  /**
   * Reads messages of `size` bytes until there are no more or the buffer is full. Never waits.
   * @returns how many; 0 when none was pending
   * @throws SystemError
   */
  readMany(descriptor: Descriptor, buffer: ArrayBufferView, size: number): number {
    const count = native().readMany(descriptor, buffer, size)
    return count === EAGAIN ? 0 : succeeded(count, 'read')
  },

  /**
   * One write per message of `size` bytes, `count` of them (all that the buffer has).
   * @returns how many the kernel took; 0 when the first would have had to wait
   * @throws SystemError when the first is refused
   */
  writeMany(
    descriptor: Descriptor,
    buffer: ArrayBufferView,
    size: number,
    count = Math.floor(buffer.byteLength / size),
  ): number {
    const written = native().writeMany(descriptor, buffer, size, count)
    return written === EAGAIN ? 0 : succeeded(written, 'write')
  },

  /**
   * One read(2) of at most `length` bytes; waits where the descriptor is blocking.
   * @returns how many there were
   * @throws SystemError, EAGAIN among others
   */
  read(descriptor: Descriptor, buffer: ArrayBufferView, length = buffer.byteLength): number {
    return succeeded(native().read(descriptor, buffer, 0, length), 'read')
  },

  /** One write(2) of `length` bytes. @returns what the system call returned @throws SystemError */
  write(descriptor: Descriptor, buffer: ArrayBufferView, length = buffer.byteLength): number {
    return succeeded(native().write(descriptor, buffer, 0, length), 'write')
  },

  /**
   * Shared memory at an address that can be given to the kernel.
   * @param bytes a multiple of the page size
   * @param hugePage 0, 2 MiB or 1 GiB
   * @throws SystemError ENOMEM
   */
  mapMemory(bytes: number, hugePage = 0): Mapping {
    return made(native().mapMemory(bytes, hugePage), 'mmap')
  },

  /** Keeps the memory in place until the descriptor, through which a device uses it, is closed. */
  hold(descriptor: Descriptor, mapping: Mapping): void {
    succeeded(native().hold(descriptor, mapping), 'hold')
  },

  /**
   * Calls whenever the descriptor is readable, in a turn of the event loop; makes it non-blocking.
   * After an error the poll has stopped.
   * @throws SystemError EEXIST when it is watched already, EPERM for a file
   */
  poll(descriptor: Descriptor, listener: RawListener, options?: RawPollOptions): Poller {
    const { buffer = null, size = 0, busyMicroseconds } = options ?? {}
    const call = (count: number): void => {
      if (count >= 0) listener(undefined, count)
      else listener(new SystemError(count, 'poll'), 0)
    }
    return made(native().poll(descriptor, buffer, size, call, busyMicroseconds), 'poll')
  },
} as const

function made<T extends object>(result: T | number, syscall: string, path?: string): T {
  if (typeof result !== 'number') return result
  throw new SystemError(result, syscall, path === undefined ? {} : { path })
}

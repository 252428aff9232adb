/** Device nodes opened, and numbers taken over, with refusals that say what to do. */
import { SystemError, succeeded } from '../errors'
import { native } from '../native'
import type { Descriptor } from '../native'
import { IOCTLS, STRUCTS, encodeStruct } from './uapi'

const O_RDWR = 2
const O_NONBLOCK = 0o4000

/** What can be done about a refusal, by its code. */
export type Hints = Readonly<Partial<Record<string, string>>>

export function refusal(errno: number, syscall: string, path: string, hints?: Hints): SystemError {
  const hint = hints?.[new SystemError(errno, syscall).code]
  return new SystemError(errno, syscall, hint === undefined ? { path } : { path, hint })
}

/** @throws SystemError */
export function openNode(path: string, hints: Hints): Descriptor {
  const descriptor = native().open(path, O_RDWR | O_NONBLOCK)
  if (typeof descriptor === 'number') throw refusal(descriptor, 'open', path, hints)
  return descriptor
}

/**
 * A second descriptor for an open number, non-blocking: a read of a blocking one would stop the
 * event loop. The number stays the caller's until `release`, so that a refusal costs it nothing.
 * @throws SystemError EBADF
 */
export function borrowed(fd: number): Descriptor {
  const path = `fd ${fd}`
  const descriptor = native().duplicate(fd)
  if (typeof descriptor === 'number') throw refusal(descriptor, 'fcntl', path)
  const yes = encodeStruct(STRUCTS.s32, { value: 1 })
  const { request, size } = IOCTLS.FIONBIO
  const result = native().ioctl(descriptor, request, yes, size)
  if (result < 0) descriptor.close()
  succeeded(result, 'ioctl FIONBIO', { path })
  return descriptor
}

/** Closes a number whose open file is kept by a borrowed descriptor: it is taken over now. */
export function release(fd: number): void {
  const original = native().adopt(fd)
  if (typeof original === 'number') throw refusal(original, 'fcntl', `fd ${fd}`)
  original.close()
}

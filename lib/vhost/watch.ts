/** `native.poll` for callers who cannot go on without it. */
import { SystemError } from '../errors'
import { native } from '../native'
import type { Descriptor, Poller } from '../native'

/**
 * @param busyMicroseconds 0 to 1000: how long to look for more before the loop has its turn
 * @throws SystemError EEXIST for a descriptor that is watched already, EBADF for a closed one
 */
export function watch(
  descriptor: Descriptor,
  buffer: ArrayBufferView | null,
  size: number,
  listener: (count: number) => void,
  busyMicroseconds = 0,
): Poller {
  const poller = native().poll(descriptor, buffer, size, listener, busyMicroseconds)
  if (typeof poller === 'number') throw new SystemError(poller, 'poll')
  return poller
}

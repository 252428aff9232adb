/** `native.poll` for callers who cannot go on without it. */
import { SystemError } from '../errors'
import { native } from '../native'
import type { Descriptor, Poller } from '../native'

/** @throws SystemError EEXIST for a descriptor that is watched already, EBADF for a closed one */
export function watch(
  descriptor: Descriptor,
  buffer: ArrayBufferView | null,
  size: number,
  listener: (count: number) => void,
): Poller {
  const poller = native().poll(descriptor, buffer, size, listener)
  if (typeof poller === 'number') throw new SystemError(poller, 'poll')
  return poller
}

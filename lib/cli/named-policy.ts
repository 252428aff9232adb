/** Reply policies by the names that they have on a command line. */
import { exact, merged } from '../iotlb/reply-policy'
import type { ReplyPolicy } from '../iotlb/reply-policy'

/** `exact`, or `merged:` and the largest reply in bytes. @throws RangeError for another name */
export function replyPolicy(name: string): ReplyPolicy {
  if (name === 'exact') return exact
  const bytes = /^merged:(\d+)$/.exec(name)?.at(1)
  if (bytes === undefined) throw new RangeError(`a policy is exact or merged:BYTES, not ${name}`)
  return merged(Number(bytes))
}

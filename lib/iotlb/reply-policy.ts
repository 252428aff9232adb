/**
 * How much to answer when one page was asked for.
 *
 * A policy is a function that may only ask the reply to grow; the reply grows by what the tables
 * grant next to it, so no policy can send more than is true. A new policy is a new function.
 */
import { PAGE_SIZE } from '../address'

/** The answer to a miss, before it is sent. It begins as the translation's own range. */
export interface GrowingReply {
  /** How many pages it covers. */
  readonly pages: number
  /**
   * Adds the pages above, if the tables map them, to the host memory that follows, with the same
   * access, and the device does not hold them. At most `most` pages, and at most one translation.
   * @returns how many pages were added; 0 when it cannot grow
   */
  growUp(most: number): number
  /** The same below. */
  growDown(most: number): number
}

export type ReplyPolicy = (reply: GrowingReply) => void

/** A policy in words that another thread understands. */
export type ReplyPolicyName =
  { readonly kind: 'exact' } | { readonly kind: 'merged'; readonly limitBytes: number }

const limits = new WeakMap<ReplyPolicy, number>()

/** The translation's own range: the leaf of the table, or all that is identical. */
export const exact: ReplyPolicy = () => {
  // The reply already is the translation's own range.
}

/**
 * Neighbours too, up to `limitBytes` an entry: first those above, because buffers are read
 * upwards, then those below. Saves misses where a buffer or a ring of small pages is contiguous;
 * costs a walk a neighbour, and an entry is dropped whole when any page of it is invalidated.
 * @throws RangeError unless `limitBytes` is a positive multiple of the page size
 */
export function merged(limitBytes: number): ReplyPolicy {
  const limit = limitBytes / PAGE_SIZE
  if (!Number.isSafeInteger(limit) || limit < 1) {
    throw new RangeError(`a reply's limit is a positive multiple of ${PAGE_SIZE}: ${limitBytes}`)
  }
  const policy: ReplyPolicy = function merged(reply) {
    while (reply.pages < limit && reply.growUp(limit - reply.pages) > 0);
    while (reply.pages < limit && reply.growDown(limit - reply.pages) > 0);
  }
  limits.set(policy, limitBytes)
  return policy
}

/** undefined for a policy that is not of this file. */
export function policyName(policy: ReplyPolicy): ReplyPolicyName | undefined {
  if (policy === exact) return { kind: 'exact' }
  const limitBytes = limits.get(policy)
  return limitBytes === undefined ? undefined : { kind: 'merged', limitBytes }
}

export function namedPolicy(name: ReplyPolicyName): ReplyPolicy {
  return name.kind === 'exact' ? exact : merged(name.limitBytes)
}

/** What a network device counts: the sums of its pairs, named. */
import type { MissStats } from '../iotlb/stats'
import type { NetPair } from './net-pair'
import { STALL_REASONS } from './stall'
import type { StallReason } from './stall'

/** Sums over the pairs, since the device was opened. */
export interface VhostNetStats extends MissStats {
  /** Kicks given to the kernel, and calls that came from it. */
  readonly kicks: number
  readonly calls: number
  /** Chains that the kernel completed. */
  readonly chains: number
  /** Chains that needed no miss, 0 to 1; 0 where there were none. */
  readonly hitRate: number
  /** Reports of rings that stood still, and those of them that ended in a repair or a kick. */
  readonly stalls: number
  readonly healed: number
  readonly stallsByReason: Readonly<Record<StallReason, number>>
  /** Chains that the fault policy completed with nothing in them. */
  readonly dropped: number
  /** How often the kernel was made to forget misses that no one can answer. */
  readonly purges: number
  /** Messages of a type that this library does not know. */
  readonly unknownMessages: number
}

type Counted = Omit<VhostNetStats, 'hitRate' | 'stallsByReason'>

const NOTHING: Counted = {
  misses: 0,
  coalesced: 0,
  updates: 0,
  invalidates: 0,
  invalidations: 0,
  filtered: 0,
  translations: 0,
  faults: 0,
  obsolete: 0,
  refused: 0,
  repairs: 0,
  refreshed: 0,
  resent: 0,
  ahead: 0,
  forgotten: 0,
  evictions: 0,
  entries: 0,
  pages: 0,
  unanswered: 0,
  kicks: 0,
  calls: 0,
  chains: 0,
  stalls: 0,
  healed: 0,
  dropped: 0,
  purges: 0,
  unknownMessages: 0,
}

export function sum(pairs: readonly NetPair[]): VhostNetStats {
  const total: Record<string, number> = { ...NOTHING }
  for (const pair of pairs) {
    for (const [name, value] of Object.entries(counted(pair))) total[name] += value
  }
  const stats = total as unknown as Counted
  const { chains, misses } = stats
  const stallsByReason = Object.fromEntries(
    STALL_REASONS.map((reason) => [
      reason,
      pairs.reduce((count, pair) => count + pair.doctor.stalls[reason], 0),
    ]),
  ) as Record<StallReason, number>
  return { ...stats, stallsByReason, hitRate: chains === 0 ? 0 : Math.max(0, 1 - misses / chains) }
}

function counted(pair: NetPair): Partial<Counted> {
  let [kicks, calls, chains] = [0, 0, 0]
  for (const ring of pair.rings) {
    if (ring.running) ring.sample()
    kicks += ring.kicks
    calls += ring.calls
    chains += ring.chains
  }
  return {
    ...pair.handler?.stats(),
    kicks,
    calls,
    chains,
    stalls: Object.values(pair.doctor.stalls).reduce((total, count) => total + count, 0),
    healed: pair.doctor.healed,
    dropped: pair.dropped,
    purges: pair.purges,
    unknownMessages: pair.unknownMessages,
  }
}

/** A device whose counters a test sets. */
import type { ShadowEntry } from '../../lib/iotlb/shadow'
import type { Access } from '../../lib/address'
import type { Watched } from '../../lib/monitor/monitor'
import type { VhostNetStats } from '../../lib/vhost/net'
import { byte } from '../iotlb/support'

const NOTHING = Object.fromEntries(
  [
    ...['misses', 'coalesced', 'updates', 'invalidates', 'invalidations', 'filtered'],
    ...['translations', 'faults', 'refused', 'repairs', 'refreshed', 'resent', 'ahead'],
    ...['forgotten', 'evictions', 'entries', 'pages', 'unanswered', 'kicks', 'calls', 'chains'],
    ...['hitRate', 'stalls', 'dropped', 'unknownMessages'],
  ].map((name) => [name, 0]),
) as unknown as VhostNetStats

export class FakeDevice implements Watched {
  counters: Partial<VhostNetStats> = {}
  held: ShadowEntry[] = []

  constructor(readonly requester: number | undefined) {}

  stats(): VhostNetStats {
    return { ...NOTHING, ...this.counters }
  }

  entries(): readonly ShadowEntry[] {
    return this.held
  }

  hold(firstPage: number, lastPage: number, access: Access): void {
    const iova = { first: byte(firstPage), last: byte(lastPage + 1) - 1n } as ShadowEntry['iova']
    this.held.push({ iova, hva: byte(0x7000) as ShadowEntry['hva'], access })
    const pages = this.held.reduce(
      (sum, { iova: { first, last } }) => sum + Number((last - first + 1n) >> 12n),
      0,
    )
    this.counters = { ...this.counters, entries: this.held.length, pages }
  }
}

/**
 * How often the device would have asked, had the handler answered in another way.
 *
 * Each policy gets real miss handlers, with shadows of the size that is wanted, over the tables as
 * the trace knows them (`known-tables.ts`). The device is a model: it accesses its rings and each
 * chain, in the order of the trace; a sent chain with the kick that follows it, a received one when
 * it was seen to be complete. It is a model of when, too: the recorded run's own policy, simulated,
 * comes near the recorded misses and need not meet them.
 */
import { PAGE_SIZE, READ, WRITE, pageOf } from '../address'
import type { AccessBits } from '../address'
import { Miss } from '../iotlb/channel'
import type { IotlbChannel } from '../iotlb/channel'
import type { LookAheadMode } from '../iotlb/look-ahead'
import { MissHandler } from '../iotlb/miss-handler'
import type { HostRegion } from '../iotlb/reply'
import type { ReplyPolicy } from '../iotlb/reply-policy'
import { ringLayout } from '../virtio/ring-layout'
import type { EventOf, TraceEvent } from './event'
import { KnownTables } from './known-tables'
import { FLAG } from './recorder'

export interface SimulatedPolicy {
  readonly reply: ReplyPolicy
  readonly lookAhead: LookAheadMode
  /** Entries of the device; as recorded unless given. */
  readonly entries?: number
}

/** Sums over the devices. */
export interface SimulationResult {
  readonly misses: number
  readonly updates: number
  readonly invalidates: number
  readonly evictions: number
  /** Chains that the device took. */
  readonly chains: number
  /** Chains that needed no miss, 0 to 1. */
  readonly hitRate: number
  /** Accesses to pages that the trace knows nothing of: they are left out. */
  readonly unknown: number
}

/** Pages that one look grants at most (`iotlb/look-ahead.ts`). */
const LOOK_PAGES = 1024
const NO_RING = { size: 1, desc: 0n, avail: 0n, used: 0n } as const

/** @returns a result for each policy, in their order */
export function simulate(
  events: Iterable<TraceEvent>,
  policies: readonly SimulatedPolicy[],
): readonly SimulationResult[] {
  const run = new Simulation(policies)
  for (const event of events) run.take(event)
  return run.results()
}

class Simulation {
  readonly #policies: readonly SimulatedPolicy[]
  readonly #regions: HostRegion[] = []
  readonly #devices: SimulatedDevice[] = []

  constructor(policies: readonly SimulatedPolicy[]) {
    this.#policies = policies
  }

  take(event: TraceEvent): void {
    if (event.kind === 'region') {
      const { gpaPage, pages, hvaPage } = event
      this.#regions.push({ start: gpaPage * 4096, end: (gpaPage + pages) * 4096, hvaPage })
    } else if (event.kind === 'handler') {
      this.#devices[event.device] = new SimulatedDevice(event, this.#policies, this.#regions)
    } else if ('device' in event && event.device in this.#devices) {
      this.#devices[event.device].take(event)
    }
  }

  results(): readonly SimulationResult[] {
    return this.#policies.map((_, policy) => {
      const sum = { misses: 0, updates: 0, invalidates: 0, evictions: 0, chains: 0, unknown: 0 }
      for (const { runs, chains } of this.#devices.filter(Boolean)) {
        const { updates, invalidates, evictions } = runs[policy].handler.stats()
        sum.misses += runs[policy].misses
        sum.unknown += runs[policy].unknown
        sum.updates += updates
        sum.invalidates += invalidates
        sum.evictions += evictions
        sum.chains += chains
      }
      const { misses, chains } = sum
      return { ...sum, hitRate: chains === 0 ? 0 : Math.max(0, 1 - misses / chains) }
    })
  }
}

/** Page, offset, bytes and 1 if writable, of each buffer. */
interface SimulatedChain {
  readonly buffers: readonly number[]
  readonly indirectPage: number
  taken: boolean
}

class SimulatedRing {
  readonly offered = new Map<number, SimulatedChain>()
  /** First page, last page, access, of each part. */
  readonly parts: readonly (readonly [number, number, AccessBits])[]

  constructor({ size, desc, avail, used }: EventOf<'ring'>) {
    const { descBytes, availBytes, usedBytes } = ringLayout(size)
    const part = (at: bigint, bytes: number, access: AccessBits) =>
      [pageOf(at), pageOf(at + BigInt(bytes - 1)), access] as const
    this.parts = [
      part(desc, descBytes, READ),
      part(avail, availBytes, READ),
      part(used, usedBytes, WRITE),
    ]
  }
}

class SimulatedDevice {
  readonly runs: readonly SimulatedRun[]
  chains = 0
  readonly #tables = new KnownTables()
  readonly #rings = new Map<number, SimulatedRing>()
  #fresh: SimulatedChain[] = []

  constructor(
    event: EventOf<'handler'>,
    policies: readonly SimulatedPolicy[],
    regions: readonly HostRegion[],
  ) {
    this.runs = policies.map(
      (policy) => new SimulatedRun(event, policy, this.#tables, regions, this.#rings),
    )
  }

  take(event: TraceEvent): void {
    // Chains that become visible together are granted together, the newest first.
    if (this.#fresh.length > 0 && event.kind !== 'offer' && event.kind !== 'mapped') {
      for (const run of this.runs) {
        if (run.policy.lookAhead !== 'on-kick') continue
        for (let i = this.#fresh.length - 1; i >= 0; i--) run.grant(this.#fresh[i])
      }
      this.#fresh = []
    }
    if (event.kind === 'offer') this.#offer(event)
    else if (event.kind === 'complete') this.#complete(event)
    else if (event.kind === 'mapped') this.#tables.learn(event)
    else if (event.kind === 'walk') {
      if (event.ok === 1 && event.access !== 0) this.#tables.learn(event)
    } else if (event.kind === 'kick') {
      const ring = this.#rings.get(event.queue)
      if (ring !== undefined && event.queue === 1) {
        for (const chain of ring.offered.values()) this.#access(ring, chain)
      }
    } else if (event.kind === 'invalidation') {
      this.#tables.invalidate(event, this.#needed)
    } else if (event.kind === 'ring') {
      this.#rings.set(event.queue, new SimulatedRing(event))
    } else for (const run of this.runs) run.forward(event)
  }

  #offer({ queue, head, buffers, indirectPage }: EventOf<'offer'>): void {
    const chain = { buffers, indirectPage, taken: false }
    this.#rings.get(queue)?.offered.set(head, chain)
    this.#fresh.push(chain)
  }

  #complete({ queue, head }: EventOf<'complete'>): void {
    const ring = this.#rings.get(queue)
    const chain = ring?.offered.get(head)
    if (ring === undefined || chain === undefined) return
    this.#access(ring, chain)
    ring.offered.delete(head)
  }

  #access(ring: SimulatedRing, chain: SimulatedChain): void {
    if (chain.taken) return
    chain.taken = true
    this.chains++
    for (const run of this.runs) run.access(ring, chain)
  }

  /** The rings and what is offered are mapped, whatever else is not. */
  readonly #needed = (keep: (page: number) => void): void => {
    for (const { parts, offered } of this.#rings.values()) {
      for (const [first, last] of parts) for (let page = first; page <= last; page++) keep(page)
      for (const chain of offered.values()) for (const page of pagesOf(chain)) keep(page)
    }
  }
}

/** One policy on one device. */
class SimulatedRun implements IotlbChannel {
  readonly limit: number
  readonly handler: MissHandler
  misses = 0
  unknown = 0
  readonly #rings: ReadonlyMap<number, SimulatedRing>
  readonly #miss: readonly Miss[] = [new Miss()]
  #asked = false
  #looked = true

  constructor(
    event: EventOf<'handler'>,
    readonly policy: SimulatedPolicy,
    tables: KnownTables,
    regions: readonly HostRegion[],
    rings: ReadonlyMap<number, SimulatedRing>,
  ) {
    this.limit = policy.entries ?? event.limit
    this.#rings = rings
    this.handler = new MissHandler({
      ...{ channel: this, addressSpace: tables, reply: policy.reply },
      memory: { find: (gpa) => regions.find(({ start, end }) => gpa >= start && gpa < end) },
      lookAhead: policy.lookAhead === 'off' ? 'off' : 'on-miss',
      paranoid: (event.flags & FLAG.paranoid) !== 0,
      split: (event.flags & FLAG.split) !== 0,
    })
    const locate = (): boolean => {
      this.#look()
      return false
    }
    // Where the handler would look into the rings, it comes here.
    this.handler.lookInto({ generation: 0, locate }, NO_RING, 0)
  }

  /** What the device layer told the handler, whatever its policy. */
  forward(event: TraceEvent): void {
    const { handler } = this
    if (event.kind === 'preload') {
      handler.preload(event.firstPage, event.lastPage, event.access as AccessBits)
    } else if (event.kind === 'flush') handler.flush()
    else if (event.kind === 'reset') handler.reset()
    else if (event.kind === 'forget') handler.forgetMisses()
  }

  access(ring: SimulatedRing, chain: SimulatedChain): void {
    for (const [first, last, access] of ring.parts) {
      for (let page = first; page <= last; page++) this.#touch(page, access)
    }
    if (chain.indirectPage > 0) this.#touch(chain.indirectPage, READ)
    const { buffers } = chain
    for (let i = 0; i + 3 < buffers.length; i += 4) {
      const last = buffers[i] + Math.floor((buffers[i + 1] + buffers[i + 2] - 1) / PAGE_SIZE)
      const access = buffers[i + 3] === 1 ? WRITE : READ
      for (let page = buffers[i]; page <= last; page++) this.#touch(page, access)
    }
  }

  /** Looks ahead at one chain. @returns how many pages were asked for */
  grant(chain: SimulatedChain): number {
    const pages = pagesOf(chain)
    for (const page of pages) this.handler.prefetch(page)
    return pages.length
  }

  drain(): readonly Miss[] {
    if (!this.#asked) return []
    this.#asked = false
    return this.#miss
  }

  updatePages(): void {
    // The shadow is the device.
  }

  invalidatePages(): void {
    // The shadow is the device.
  }

  update(): never {
    throw new TypeError('a handler writes in pages')
  }

  invalidate(): never {
    throw new TypeError('a handler writes in pages')
  }

  onReadable(): Disposable {
    return { [Symbol.dispose]: () => undefined }
  }

  #touch(page: number, access: AccessBits): void {
    const { shadow } = this.handler
    if ((shadow.granted(page) & access) === access) return
    const [miss] = this.#miss
    miss.page = page
    miss.access = access
    this.#asked = true
    this.#looked = false
    this.handler.handle()
    if ((shadow.granted(page) & access) === access) this.misses++
    else {
      this.unknown++
      this.handler.forgetMisses()
    }
  }

  /** All that is offered, the newest first, so that what is waited for comes last. */
  #look(): void {
    if (this.#looked) return
    this.#looked = true
    for (const { offered } of this.#rings.values()) {
      let left = LOOK_PAGES
      for (const chain of [...offered.values()].reverse()) {
        if (left <= 0) break
        left -= this.grant(chain)
      }
    }
  }
}

/** Pages of a chain, in the order in which a look grants them: backwards, its table last. */
function pagesOf({ buffers, indirectPage }: SimulatedChain): readonly number[] {
  const pages: number[] = []
  for (let i = buffers.length - 4; i >= 0; i -= 4) {
    const last = buffers[i] + Math.floor((buffers[i + 1] + buffers[i + 2] - 1) / PAGE_SIZE)
    for (let page = buffers[i]; page <= last && pages.length < LOOK_PAGES; page++) pages.push(page)
  }
  if (indirectPage > 0) pages.push(indirectPage)
  return pages
}

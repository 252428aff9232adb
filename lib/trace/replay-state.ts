/**
 * What is known at one event of a trace: for whoever looks at the moment before a hang.
 *
 * Handlers say what they hold and what they could not answer; the rest is put together from the
 * notes of the trace: registers as they were written last, table entries as they were read last,
 * chains that were offered and are not complete.
 */
import { accessOf } from '../address'
import type { Access } from '../address'
import type { MissHandler } from '../iotlb/miss-handler'
import type { HostRegion } from '../iotlb/reply'
import type { ShadowEntry } from '../iotlb/shadow'
import type { MissStats } from '../iotlb/stats'
import type { UnansweredMiss } from '../iotlb/unanswered'
import type { EventKind, TraceEvent } from './event'

/** Registers are at least four bytes; table entries eight. */
export interface ReplaySnapshot {
  /** Of the last event, in nanoseconds. */
  readonly at: number
  readonly counts: Readonly<Partial<Record<EventKind, number>>>
  readonly devices: readonly DeviceSnapshot[]
  /** Guest-physical address and last known value, in the order of addresses. */
  readonly tables: readonly { readonly gpa: number; readonly value: bigint }[]
  /** Offset, bytes and value of the last write to each register. */
  readonly registers: readonly {
    readonly offset: number
    readonly size: number
    readonly value: bigint
  }[]
}

export interface DeviceSnapshot {
  readonly device: number
  /** What the device holds, the oldest entry first. */
  readonly shadow: readonly ShadowEntry[]
  readonly unanswered: readonly UnansweredMiss[]
  readonly stats: MissStats
  /** Chains offered and not seen to be complete. */
  readonly inFlight: readonly FlyingChain[]
}

export interface FlyingChain {
  readonly queue: number
  readonly index: number
  readonly head: number
  readonly buffers: readonly {
    readonly page: number
    readonly offset: number
    readonly bytes: number
    readonly wants: Access
  }[]
}

type Handlers = ReadonlyMap<number, { readonly handler: MissHandler }>

export class ReplayState {
  readonly regions: HostRegion[] = []
  readonly #counts: Partial<Record<EventKind, number>> = {}
  readonly #tables = new Map<number, bigint>()
  readonly #registers = new Map<number, { readonly size: number; readonly value: bigint }>()
  /** By device, then by queue and head. */
  readonly #flying = new Map<number, Map<string, FlyingChain>>()
  #at = 0
  #frozen: ReplaySnapshot | undefined

  note(event: TraceEvent): void {
    this.#at = event.at
    this.#counts[event.kind] = (this.#counts[event.kind] ?? 0) + 1
    if (event.kind === 'region') {
      const { gpaPage, pages, hvaPage } = event
      this.regions.push({ start: gpaPage * 4096, end: (gpaPage + pages) * 4096, hvaPage })
    } else if (event.kind === 'entry') {
      this.#tables.set(event.gpa, event.value)
    } else if (event.kind === 'register') {
      this.#registers.set(event.offset, { size: event.size, value: event.value })
    } else if (event.kind === 'offer') {
      const { queue, index, head, buffers } = event
      const chain = { queue, index, head, buffers: named(buffers) }
      this.#chains(event.device).set(`${queue}:${head}`, chain)
    } else if (event.kind === 'complete') {
      this.#chains(event.device).delete(`${event.queue}:${event.head}`)
    }
  }

  /** Remembers this moment: what `snapshot` is going to answer. */
  freeze(handlers: Handlers): void {
    this.#frozen ??= this.#now(handlers)
  }

  snapshot(handlers: Handlers): ReplaySnapshot {
    return this.#frozen ?? this.#now(handlers)
  }

  #now(handlers: Handlers): ReplaySnapshot {
    const devices = [...handlers].map(([device, { handler }]) => ({
      device,
      shadow: handler.shadow.snapshot(),
      unanswered: handler.unanswered(),
      stats: handler.stats(),
      inFlight: [...this.#chains(device).values()],
    }))
    const tables = [...this.#tables]
      .sort(([a], [b]) => a - b)
      .map(([gpa, value]) => ({ gpa, value }))
    const registers = [...this.#registers]
      .sort(([a], [b]) => a - b)
      .map(([offset, { size, value }]) => ({ offset, size, value }))
    return { at: this.#at, counts: { ...this.#counts }, devices, tables, registers }
  }

  #chains(device: number): Map<string, FlyingChain> {
    let chains = this.#flying.get(device)
    if (chains === undefined) this.#flying.set(device, (chains = new Map<string, FlyingChain>()))
    return chains
  }
}

function named(buffers: readonly number[]): FlyingChain['buffers'] {
  const out: FlyingChain['buffers'][number][] = []
  for (let i = 0; i + 3 < buffers.length; i += 4) {
    const wants = accessOf(buffers[i + 3] === 1 ? 2 : 1)
    out.push({ page: buffers[i], offset: buffers[i + 1], bytes: buffers[i + 2], wants })
  }
  return out
}

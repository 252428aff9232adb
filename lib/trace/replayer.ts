/**
 * Runs miss handlers again from a trace, and holds them to it message by message.
 *
 * A handler does nothing of its own accord: it is called, it reads its channel, it walks, it
 * writes. A replay makes the calls, gives what was read and what the walks found, and compares
 * what is written with what was written then. The first difference is a `Divergence`. Where calls
 * came in while the handler worked (an invalidation within a walk), they come in at the same place.
 * Clocks, queues and tables are not here: this is about what the handler decides.
 */
import { LAST_PAGE } from '../address'
import type { AccessBits } from '../address'
import { SystemError } from '../errors'
import { Miss } from '../iotlb/channel'
import type { IotlbChannel } from '../iotlb/channel'
import { MissHandler } from '../iotlb/miss-handler'
import type { HostRegion } from '../iotlb/reply'
import type { AddressSpace } from '../memory/address-space'
import type { DmaView } from '../virtio/dma-view'
import { EVENTS, SOURCES } from './event'
import type { EventKind, EventOf, TraceEvent } from './event'
import { FLAG } from './recorder'
import { ReplayState } from './replay-state'
import type { ReplaySnapshot } from './replay-state'

export interface ReplayResult {
  /** Events that were replayed, notes included. */
  readonly events: number
  /** UPDATE and INVALIDATE messages that came out as they were recorded. */
  readonly compared: number
  readonly divergence: Divergence | undefined
  /** What was known after the last of them. */
  readonly state: ReplaySnapshot
}

/** The handler did something else than what was recorded. */
export interface Divergence {
  /** The number of the event at which it showed, from 0. */
  readonly event: number
  readonly expected: string
  readonly got: string
}

/** What ends a replay: a difference, or the wish to stop. */
class Halt extends Error {}

/** What a ring of nothing is: the replay looks into none. */
const NO_RING = { size: 1, desc: 0n, avail: 0n, used: 0n } as const

/**
 * @param events of one trace, from its beginning
 * @param stop how many events to replay at most
 */
export function replay(events: Iterable<TraceEvent>, stop = Infinity): ReplayResult {
  return new Replay(events, stop).run()
}

class Replay {
  readonly state = new ReplayState()
  readonly #events: Iterator<TraceEvent>
  readonly #stop: number
  readonly #devices = new Map<number, ReplayedDevice>()
  /** The event that is next, once it was looked at. */
  #ahead: TraceEvent | undefined
  #count = 0
  #compared = 0
  #halted = false
  #divergence: Divergence | undefined

  constructor(events: Iterable<TraceEvent>, stop: number) {
    this.#events = events[Symbol.iterator]()
    this.#stop = stop
  }

  run(): ReplayResult {
    try {
      for (let event = this.#peek(); event !== undefined; event = this.#peek()) this.#step(event)
    } catch (error) {
      if (!(error instanceof Halt)) throw error
    }
    const state = this.state.snapshot(this.#devices)
    return { events: this.#count, compared: this.#compared, divergence: this.#divergence, state }
  }

  /**
   * The answer that the handler is about to get or to give. Calls that came before it are made on
   * the way.
   */
  answer<Kind extends EventKind>(kind: Kind, device: number, got: string): EventOf<Kind> {
    for (;;) {
      const event = this.#peek()
      if (event === undefined) return this.#halt()
      if (event.kind === kind && 'device' in event && event.device === device) {
        this.#take()
        return event as EventOf<Kind>
      }
      if (EVENTS[event.kind].role === 'answer') return this.#diverge(event, got)
      this.#step(event)
    }
  }

  /** The prefetches that come next: what a look into the rings led to. */
  prefetches(device: number): void {
    let failed: unknown
    for (;;) {
      this.notes()
      const event = this.#peek()
      if (event?.kind !== 'prefetch' || event.device !== device) break
      failed ??= this.#step(event)
    }
    if (failed instanceof Error) throw failed
  }

  /** What the reply policy asked for next, if it did. */
  grow(device: number): EventOf<'grow'> | undefined {
    this.notes()
    const event = this.#peek()
    if (event?.kind !== 'grow' || event.device !== device) return undefined
    this.#take()
    return event
  }

  /** Takes what comes before the next input or answer. */
  notes(): void {
    for (let event = this.#peek(); event !== undefined; event = this.#peek()) {
      if (EVENTS[event.kind].role !== 'note') return
      this.#step(event)
    }
  }

  expect(holds: boolean, event: TraceEvent, got: string): void {
    if (!holds) this.#diverge(event, got)
    if (event.kind === 'update' || event.kind === 'invalidate') this.#compared++
  }

  #peek(): TraceEvent | undefined {
    if (this.#halted) throw new Halt()
    if (this.#ahead !== undefined) return this.#ahead
    if (this.#count >= this.#stop) return undefined
    const next = this.#events.next()
    this.#ahead = next.done === true ? undefined : next.value
    return this.#ahead
  }

  #take(): void {
    this.state.note(this.#ahead!)
    this.#ahead = undefined
    this.#count++
  }

  /** @returns what a call of the handler threw */
  #step(event: TraceEvent): unknown {
    const { kind } = event
    if (EVENTS[kind].role === 'answer') this.#diverge(event, 'nothing')
    this.#take()
    if (kind === 'handler') this.#devices.set(event.device, new ReplayedDevice(this, event))
    else if (EVENTS[kind].role === 'input' && 'device' in event) {
      return this.#devices.get(event.device)?.call(event)
    }
    return undefined
  }

  #diverge(event: TraceEvent, got: string): never {
    this.#divergence ??= { event: this.#count, expected: described(event), got }
    return this.#halt()
  }

  /** Also where the handler catches what its channel throws: it does nothing more. */
  #halt(): never {
    if (!this.#halted) this.state.freeze(this.#devices)
    this.#halted = true
    throw new Halt()
  }
}

type Call<Kind extends EventKind> = (handler: MissHandler, event: EventOf<Kind>) => void

const CALLS = {
  handle: (handler) => {
    handler.handle()
  },
  invalidation: (handler, { firstPage, lastPage, source }) => {
    handler.invalidatePages(firstPage, lastPage, SOURCES[source])
  },
  preload: (handler, { firstPage, lastPage, access }) =>
    handler.preload(firstPage, lastPage, access as AccessBits),
  prefetch: (handler, { page }) => handler.prefetch(page),
  repair: (handler, { page, access }) => handler.repair(page, access as AccessBits),
  renew: (handler, { page, access }) => handler.renew(page, access as AccessBits),
  retry: (handler, { firstPage, lastPage }) => handler.retry(firstPage, lastPage),
  flush: (handler) => {
    handler.flush()
  },
  reset: (handler) => {
    handler.reset()
  },
  forget: (handler) => {
    handler.forgetMisses()
  },
  close: (handler) => {
    handler.close()
  },
} as const satisfies { readonly [Kind in EventKind]?: Call<Kind> }

/** A handler between a channel, a memory and tables that say what was recorded. */
export class ReplayedDevice {
  readonly handler: MissHandler
  readonly #replay: Replay
  readonly #id: number
  readonly #misses: Miss[] = []

  constructor(replay: Replay, event: EventOf<'handler'>) {
    this.#replay = replay
    this.#id = event.device
    const channel = this.#channel(event.limit)
    this.handler = new MissHandler({
      channel,
      addressSpace: this.#space(),
      memory: { find: (gpa) => this.#region(gpa) },
      lookAhead: 'on-miss',
      paranoid: (event.flags & FLAG.paranoid) !== 0,
      split: (event.flags & FLAG.split) !== 0,
      reply: (reply) => {
        const next = (): EventOf<'grow'> | undefined => replay.grow(event.device)
        for (let grow = next(); grow !== undefined; grow = next()) {
          if (grow.up === 1) reply.growUp(grow.most)
          else reply.growDown(grow.most)
        }
      },
      onError: () => undefined,
    })
    // The handler looks into this ring whenever it would look into the real ones.
    this.handler.lookInto(this.#look(), NO_RING, 0)
  }

  /**
   * Makes the call that was recorded. @returns what it threw, as it did then; its caller was the
   * device layer, which is not here
   */
  call(event: TraceEvent): unknown {
    try {
      const call = CALLS[event.kind as keyof typeof CALLS] as Call<EventKind>
      call(this.handler, event)
      return undefined
    } catch (error) {
      if (error instanceof Halt) throw error
      return error
    }
  }

  #channel(limit: number): IotlbChannel {
    const nothing = (): never => {
      throw new TypeError('a handler writes in pages')
    }
    return {
      limit,
      drain: () => this.#drain(),
      update: nothing,
      invalidate: nothing,
      updatePages: (firstPage, lastPage, hvaPage, access) => {
        const got = `UPDATE ${pages(firstPage, lastPage)} -> ${hex(hvaPage)} access ${access}`
        const event = this.#replay.answer('update', this.#id, got)
        const same = event.firstPage === firstPage && event.lastPage === lastPage
        const rest = event.hvaPage === hvaPage && event.access === access
        this.#replay.expect(same && rest, event, got)
        if (event.error !== 0) throw new SystemError(event.error, 'write')
      },
      invalidatePages: (firstPage, lastPage) => {
        const got = `INVALIDATE ${pages(firstPage, lastPage)}`
        const event = this.#replay.answer('invalidate', this.#id, got)
        const same = event.firstPage === firstPage && event.lastPage === lastPage
        this.#replay.expect(same, event, got)
        if (event.error !== 0) throw new SystemError(event.error, 'write')
      },
      onReadable: () => ({ [Symbol.dispose]: () => undefined }),
    }
  }

  #drain(): readonly Miss[] {
    const { count, error } = this.#replay.answer('drain', this.#id, 'a read')
    const misses: Miss[] = []
    for (let i = 0; i < count; i++) {
      const { page, offset, access } = this.#replay.answer('miss', this.#id, 'a read')
      const miss = (this.#misses[i] ??= new Miss())
      miss.page = page
      miss.offset = offset
      miss.access = access as AccessBits
      misses.push(miss)
    }
    if (error !== 0) throw new SystemError(error, 'read')
    return misses
  }

  #space(): AddressSpace {
    return {
      state: 'translating',
      generation: 0,
      translate: (): never => {
        throw new TypeError('a handler walks by page')
      },
      translatePage: (page, wanted, out) => {
        const got = `a walk to ${hex(page)} for access ${wanted}`
        const event = this.#replay.answer('walk', this.#id, got)
        this.#replay.expect(event.page === page && event.wanted === wanted, event, got)
        out.firstPage = event.firstPage
        out.lastPage = event.lastPage
        out.gpaPage = event.gpaPage
        out.access = event.access as AccessBits
        out.reason = event.code
        return event.ok === 1
      },
      notify: () => ({ [Symbol.dispose]: () => undefined }),
    }
  }

  #region(gpa: number): HostRegion | undefined {
    this.#replay.notes()
    return this.#replay.state.regions.find(({ start, end }) => gpa >= start && gpa < end)
  }

  #look(): DmaView {
    return {
      generation: 0,
      locate: () => {
        this.#replay.prefetches(this.#id)
        return false
      },
    }
  }
}

function described(event: TraceEvent): string {
  const { kind, at, ...fields } = event
  const words = Object.entries<unknown>(fields).map(
    ([name, value]) => `${name} ${typeof value === 'number' ? hex(value) : String(value)}`,
  )
  return `${kind} at ${at} ns: ${words.join(', ')}`
}

function pages(firstPage: number, lastPage: number): string {
  return lastPage === LAST_PAGE
    ? `${hex(firstPage)} to the end`
    : `${hex(firstPage)}-${hex(lastPage)}`
}

function hex(value: number): string {
  return `0x${value.toString(16)}`
}

/**
 * What a trace is made of: one table of events, which types, codec and documentation all read.
 *
 * A trace holds every input of a miss handler (what it was asked, what its walks found) and every
 * output (what it wrote), so that `replayer.ts` can run the same handler again; and what happened
 * around it (registers, table entries, rings, frames), which explains and is not replayed. How the
 * events are written is in `codec.ts`, and for other languages in `docs/trace-format.md`.
 */

/**
 * number: an integer from 0 to 2^53-1. word: 64 bits, a bigint. bytes: a run of bytes. numbers: a
 * list of integers.
 */
type FieldType = 'number' | 'word' | 'bytes' | 'numbers'

interface FieldValue {
  readonly number: number
  readonly word: bigint
  readonly bytes: Uint8Array
  readonly numbers: readonly number[]
}

/** `role` as a replay sees it. answer: what the handler got or gave. input: what it was told. */
interface EventSpec {
  readonly code: number
  readonly role: 'note' | 'input' | 'answer'
  readonly fields: Readonly<Record<string, FieldType>>
}

const n = 'number'
const range = { firstPage: n, lastPage: n } as const

/** Codes stay as they are within a version of the format; new ones are added at the end. */
export const EVENTS = {
  /** Guest memory that the handler may grant, when it is first used. */
  region: { code: 1, role: 'note', fields: { gpaPage: n, pages: n, hvaPage: n } },
  /** A handler begins. `flags`: 1 paranoid, 2 split. */
  handler: { code: 2, role: 'note', fields: { device: n, requester: n, limit: n, flags: n } },

  /** The handler is to answer what is pending. */
  handle: { code: 3, role: 'input', fields: { device: n } },
  /** The tables under a range are about to change, or have. `source`: an index of `SOURCES`. */
  invalidation: { code: 4, role: 'input', fields: { device: n, ...range, source: n } },
  preload: { code: 5, role: 'input', fields: { device: n, ...range, access: n } },
  prefetch: { code: 6, role: 'input', fields: { device: n, page: n } },
  repair: { code: 7, role: 'input', fields: { device: n, page: n, access: n } },
  retry: { code: 8, role: 'input', fields: { device: n, ...range } },
  flush: { code: 9, role: 'input', fields: { device: n } },
  reset: { code: 10, role: 'input', fields: { device: n } },
  forget: { code: 11, role: 'input', fields: { device: n } },
  close: { code: 12, role: 'input', fields: { device: n } },

  /** A read of the channel: so many `miss` events follow. `error`: an errno, 0 for none. */
  drain: { code: 13, role: 'answer', fields: { device: n, count: n, error: n } },
  miss: { code: 14, role: 'answer', fields: { device: n, page: n, offset: n, access: n } },
  /** Written to the channel. `error` is the errno of a refusal, 0 for none. */
  update: {
    code: 15,
    role: 'answer',
    fields: { device: n, ...range, hvaPage: n, access: n, error: n },
  },
  invalidate: { code: 16, role: 'answer', fields: { device: n, ...range, error: n } },
  /** What the tables said of `page`. `ok`: 1 where `wanted` is granted. `code`: of the refusal. */
  walk: {
    code: 17,
    role: 'answer',
    fields: { device: n, page: n, wanted: n, ok: n, ...range, gpaPage: n, access: n, code: n },
  },
  /** The reply policy asks for neighbours: `up` 1 above, 0 below; at most `most` pages. */
  grow: { code: 18, role: 'answer', fields: { device: n, up: n, most: n } },

  /** Eight bytes that the IOMMU read: a table entry, or another word that has changed. */
  entry: { code: 19, role: 'note', fields: { gpa: n, value: 'word' } },
  /** A register write of the guest. */
  register: { code: 20, role: 'note', fields: { offset: n, size: n, value: 'word' } },

  /** What follows is of a network device; `queue` counts as in `NetDevice`. */
  features: { code: 21, role: 'note', fields: { device: n, bits: 'word' } },
  ring: {
    code: 22,
    role: 'note',
    fields: { device: n, queue: n, size: n, desc: 'word', avail: 'word', used: 'word' },
  },
  start: { code: 23, role: 'note', fields: { device: n } },
  stop: { code: 24, role: 'note', fields: { device: n } },
  kick: { code: 25, role: 'note', fields: { device: n, queue: n } },
  call: { code: 26, role: 'note', fields: { device: n, queue: n } },
  /** A chain is offered. `buffers`: page, offset, bytes, 1 if writable; so four for each. */
  offer: {
    code: 27,
    role: 'note',
    fields: { device: n, queue: n, index: n, head: n, indirectPage: n, buffers: 'numbers' },
  },
  /** A chain was seen to be complete; `index` is the one that it was offered with. */
  complete: {
    code: 28,
    role: 'note',
    fields: { device: n, queue: n, index: n, head: n, written: n },
  },
  /** What the tables said of the pages of a ring or of an offered chain, where it is news. */
  mapped: { code: 29, role: 'note', fields: { device: n, ...range, gpaPage: n, access: n } },
  /** An Ethernet frame that left (odd queues) or came (even ones). `length` before it was cut. */
  frame: { code: 30, role: 'note', fields: { device: n, queue: n, length: n, bytes: 'bytes' } },
  /** A queue stands still for no reason that shows, at a page that is granted anew. */
  renew: { code: 31, role: 'input', fields: { device: n, page: n, access: n } },
} as const satisfies Readonly<Record<string, EventSpec>>

export const SOURCES = ['device-tlb', 'iotlb', 'context', 'disabled'] as const

export type EventKind = keyof typeof EVENTS

/** `at` counts nanoseconds from the beginning of the trace. */
export type TraceEvent = {
  [Kind in EventKind]: { readonly kind: Kind; readonly at: number } & {
    readonly [
      Name in keyof (typeof EVENTS)[Kind]['fields']
    ]: FieldValue[(typeof EVENTS)[Kind]['fields'][Name] & FieldType]
  }
}[EventKind]

export type EventOf<Kind extends EventKind> = Extract<TraceEvent, { readonly kind: Kind }>

/** Takes events as they happen. */
export type TraceSink = (event: TraceEvent) => void

/** Nanoseconds from any beginning, never backwards. */
export type TraceClock = () => number

/** A clock that begins now. */
export function traceClock(): TraceClock {
  const started = performance.now()
  return () => Math.round((performance.now() - started) * 1e6)
}

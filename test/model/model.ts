/**
 * The miss loop, its device and its guest as a state machine of a few small numbers.
 *
 * It exists to try every interleaving: the guest writes its tables at any moment, the vhost worker
 * runs at any moment, and only what one thread does in one turn is in order. The rules R1 to R6 can
 * be switched off one by one, to see that each of them is what keeps something from going wrong.
 *
 * Two pages share one translation, so every entry covers both. Queue 0 uses page 0, queue 1 page 1.
 */

export const RULES = ['R1', 'R2', 'R3', 'R4', 'R5', 'R6'] as const
export type Rule = (typeof RULES)[number]
/** R5 has two halves: never more than the tables grant, and no upgrade beside the old entry. */
export type Broken = Rule | 'R5 upgrade' | 'none'

/** What a translation says: the frame it leads to, 0 for none, and whether it may be written. */
export const MAPPINGS = [
  { frame: 0, writable: false },
  { frame: 1, writable: false },
  { frame: 1, writable: true },
  { frame: 2, writable: true },
] as const
const WRITABLE_TWIN = [0, 2, 2, 3] as const

const IDLE = 0
const READY = 1
const ASLEEP = 2
const DENIED = 3

export interface Queue {
  /** 0 nothing, 1 a read, 2 a write. */
  readonly wants: number
  readonly status: number
  /** The tables refused when its miss, or its silent stop, was last dealt with. */
  readonly excused: boolean
}

export interface State {
  readonly table: number
  /** The device: its entries, the oldest first, and its misses: queue + 2 * what was wanted. */
  readonly entries: readonly number[]
  readonly unread: readonly number[]
  readonly pending: readonly number[]
  readonly queues: readonly [Queue, Queue]
  /** The loop: the misses of its turn, and the mapping that it walked to, or -1. */
  readonly batch: readonly number[]
  readonly walked: number
  /** What the loop believes of the device, as bits of pages; and pages it thinks not present. */
  readonly shadow: number
  readonly negative: boolean
  /** Queues whose error eventfd fired. */
  readonly errors: number
  /** The guest's invalidation: 0 none, 1 queued, 2 half done; of one page. */
  readonly invalidation: number
  readonly page: number
  /** Mappings that each page may still be used with, and may be once the invalidation is done. */
  readonly allowed: readonly [number, number]
  readonly since: number
  /** What the guest and the device may still do. */
  readonly changes: number
  readonly invalidations: number
  readonly accesses: number
  readonly kicks: number
  /** What went wrong. */
  readonly wrong: string
}

const idle: Queue = { wants: 0, status: IDLE, excused: false }

/** How often the guest may do each thing; from this all else follows. */
export interface Budget {
  readonly changes: number
  readonly invalidations: number
  readonly accesses: number
  readonly kicks: number
}

export function start(table: number, budget: Budget): State {
  return {
    table,
    entries: [],
    unread: [],
    pending: [],
    queues: [idle, idle],
    batch: [],
    walked: -1,
    shadow: 0,
    negative: false,
    errors: 0,
    invalidation: 0,
    page: 0,
    allowed: [1 << table, 1 << table],
    since: 0,
    ...budget,
    wrong: '',
  }
}

/** Equal for equal states, and short. */
export function keyOf(state: State): string {
  const [one, other] = state.queues
  const codes = [
    state.table + 4 * (state.walked + 1) + 32 * state.shadow + (state.negative ? 128 : 0),
    state.errors + 4 * state.invalidation + 16 * state.page + 32 * state.since,
    state.changes + 4 * state.invalidations + 16 * state.accesses + 64 * state.kicks,
    one.wants + 4 * one.status + (one.excused ? 16 : 0) + 32 * state.allowed[0],
    other.wants + 4 * other.status + (other.excused ? 16 : 0) + 32 * state.allowed[1],
    codeOf(state.entries),
    codeOf(state.unread),
    codeOf(state.pending),
    codeOf(state.batch),
  ]
  return String.fromCharCode(...codes) + state.wrong
}

/** A list of at most five numbers below 7 as one 16-bit number. */
function codeOf(list: readonly number[]): number {
  let code = 0
  for (const one of list) code = code * 8 + one + 1
  if (code > 0xffff) throw new RangeError('a list is too long for its code')
  return code
}

/** All that may happen next; `internal` is what happens by itself, without guest or driver. */
export function successors(state: State, broken: Broken, internal = false): State[] {
  if (state.wrong !== '') return []
  const next = [...worker(state), ...loop(state, broken), ...invalidation(state, broken)]
  return internal ? next : [...next, ...guest(state)]
}

function withQueue(state: State, index: number, change: Partial<Queue>): State {
  const queue = { ...state.queues[index], ...change }
  return { ...state, queues: index === 0 ? [queue, state.queues[1]] : [state.queues[0], queue] }
}

/** The guest's CPU and its driver: tables, kicks, buffers, invalidations, at any moment. */
function guest(state: State): State[] {
  const next: State[] = []
  if (state.changes > 0) {
    for (let table = 0; table < MAPPINGS.length; table++) {
      if (table === state.table) continue
      const bit = 1 << table
      const allowed: [number, number] = [state.allowed[0] | bit, state.allowed[1] | bit]
      const since = state.invalidation === 0 ? 0 : state.since | bit
      next.push({ ...state, table, allowed, since, changes: state.changes - 1 })
    }
  }
  if (state.invalidations > 0 && state.invalidation === 0) {
    for (const page of [0, 1]) {
      const queued = { invalidation: 1, page, since: 1 << state.table }
      next.push({ ...state, ...queued, invalidations: state.invalidations - 1 })
    }
  }
  state.queues.forEach(({ wants, status }, index) => {
    if (wants === 0 && state.accesses > 0) {
      const accesses = state.accesses - 1
      for (const wants of [1, 2]) {
        next.push(
          withQueue({ ...state, accesses }, index, { wants, status: READY, excused: false }),
        )
      }
    } else if ((status === ASLEEP || status === DENIED) && state.kicks > 0) {
      next.push(withQueue({ ...state, kicks: state.kicks - 1 }, index, { status: READY }))
    }
  })
  return next
}

/** One pass of a vhost worker (K1, K2, K3): the oldest entry decides. */
function worker(state: State): State[] {
  return state.queues.flatMap(({ wants, status }, index) => {
    if (status !== READY) return []
    if (wants === 0) return [withQueue(state, index, idle)]
    if (state.entries.length === 0) {
      const asked = withQueue(state, index, { status: ASLEEP, excused: false })
      return [{ ...asked, unread: [...state.unread, index + 2 * wants] }]
    }
    const [entry] = state.entries
    if (wants === 2 && !MAPPINGS[entry].writable) {
      const denied = withQueue(state, index, { status: DENIED, excused: false })
      return [{ ...denied, errors: state.errors | (1 << index) }]
    }
    const done = withQueue(state, index, idle)
    return [permits(state.allowed[index], entry, wants) ? done : { ...done, wrong: 'stale access' }]
  })
}

/** Whether one of the mappings leads to the entry's frame, and allows what is wanted. */
function permits(mappings: number, entry: number, wants: number): boolean {
  return MAPPINGS.some(
    ({ frame, writable }, mapping) =>
      (mappings & (1 << mapping)) !== 0 &&
      frame === MAPPINGS[entry].frame &&
      (wants === 1 || writable),
  )
}

const grants = (table: number, wants: number): boolean =>
  MAPPINGS[table].frame !== 0 && (wants < 2 || MAPPINGS[table].writable)

/** An invalidation may not run while the loop is in its turn: R1 is that there is one thread. */
function inTurn({ batch, walked }: State): boolean {
  return batch.length > 0 || walked >= 0
}

/** The miss loop: read all, then for each walk, and write; and repair what stopped silently. */
function loop(state: State, broken: Broken): State[] {
  const held = state.invalidation === 2 && broken !== 'R1'
  if (held) return []
  if (state.walked >= 0) return [answer(state, broken)]
  if (state.batch.length > 0) return [walk(state, broken)]
  if (state.errors !== 0) return [repair(state, broken)]
  if (state.unread.length === 0) return []
  const pending = [...state.pending, ...state.unread]
  return [{ ...state, unread: [], pending, batch: [...new Set(state.unread)] }]
}

function walk(state: State, broken: Broken): State {
  const [miss, ...batch] = state.batch
  const next = { ...state, batch }
  const index = miss % 2
  const wants = miss >> 1
  // An UPDATE of this turn woke it already.
  if (!state.pending.includes(miss)) return next
  if (broken === 'R6' && (state.shadow & (1 << index)) !== 0) return next
  const present = !(broken === 'R4' && state.negative)
  if (present && grants(state.table, wants)) return { ...state, walked: state.table }
  const negative = broken === 'R4' && (state.negative || MAPPINGS[state.table].frame === 0)
  const queue = state.queues[index]
  if (queue.status !== ASLEEP || queue.wants !== wants) return { ...next, negative }
  return withQueue({ ...next, negative }, index, { excused: !grants(state.table, wants) })
}

/** INVALIDATE of what is there, then UPDATE; wakes what was read (K1). */
function answer(state: State, broken: Broken): State {
  const [miss, ...batch] = state.batch
  const granted = broken === 'R5' ? WRITABLE_TWIN[state.walked] : state.walked
  const shadow = broken === 'R3' ? state.shadow | (1 << (miss % 2)) : 3
  const beside = broken === 'R5 upgrade' ? state.entries : []
  const entries = [...beside, granted].slice(0, 2)
  const next: State = { ...state, batch, walked: -1, entries, shadow, pending: [] }
  return state.pending.reduce((woken, miss) => withQueue(woken, miss % 2, { status: READY }), next)
}

/** K2: INVALIDATE and UPDATE where the tables grant it by now, then a kick. */
function repair(state: State, broken: Broken): State {
  const index = (state.errors & 1) !== 0 ? 0 : 1
  const next = { ...state, errors: state.errors & ~(1 << index) }
  const { status, wants } = state.queues[index]
  if (status !== DENIED) return next
  if (!grants(state.table, wants)) return withQueue(next, index, { excused: true })
  const beside = broken === 'R5 upgrade' ? state.entries : []
  const entries = [...beside, state.table].slice(0, 2)
  return withQueue({ ...next, entries, shadow: 3 }, index, { status: READY })
}

/** The invalidation queue: INVALIDATE, and only then the wait's status (R2). */
function invalidation(state: State, broken: Broken): State[] {
  if (state.invalidation === 0) return []
  if (broken !== 'R1' && inTurn(state)) return []
  const writes = (state.invalidation === 1) !== (broken === 'R2')
  const done = writes ? takeBack(state) : complete(state)
  return [{ ...done, invalidation: state.invalidation === 1 ? 2 : 0 }]
}

/** Filtered by the shadow; drops every entry that it touches, and all touch both pages (K4). */
function takeBack(state: State): State {
  const known = (state.shadow & (1 << state.page)) !== 0
  return known ? { ...state, entries: [], shadow: 0 } : state
}

function complete(state: State): State {
  const allowed: [number, number] = [state.allowed[0], state.allowed[1]]
  allowed[state.page] = state.since
  return { ...state, allowed }
}

/** Nothing happens by itself any more, and a queue waits although nobody refused it. */
export function lostWakeUp(state: State): boolean {
  return state.queues.some(
    ({ status, excused }) => (status === ASLEEP || status === DENIED) && !excused,
  )
}

/**
 * Two threads, one device: every interleaving of the steps of a miss worker and of an invalidation,
 * with the lock of `iotlb/turnstile.ts` and without it.
 *
 * The guest maps its page to frame 1, then to frame 2, and asks for an invalidation. Once that is
 * complete, no access may reach frame 1 (R1 and R2).
 */
import { describe, expect, it } from 'vitest'

interface State {
  /** The frame in the guest's table, and in the device's (0: none). */
  readonly table: number
  readonly device: number
  /** What each thread's shadow says that the device holds; what is in the log for the other. */
  readonly shadows: readonly [number, number]
  readonly told: readonly [readonly number[], readonly number[]]
  /** Who has the lock: 0 nobody, 1 the worker, 2 the main thread. */
  readonly lock: number
  /** Where the threads stand in their programs, and the frame that the worker has walked to. */
  readonly worker: number
  readonly main: number
  readonly walked: number
  readonly misses: number
  readonly complete: boolean
}

type Broken = 'none' | 'lock' | 'catch up' | 'order'
const [WORKER, MAIN] = [1, 2]

const FIRST: State = {
  table: 1,
  device: 0,
  shadows: [0, 0],
  told: [[], []],
  lock: 0,
  worker: 0,
  main: 0,
  walked: 0,
  misses: 2,
  complete: false,
}

/** Each state in turn, as its thread applies what the other one told it. */
function caughtUp(state: State, side: 0 | 1): State {
  const shadow = state.told[side].at(-1) ?? state.shadows[side]
  const shadows: [number, number] = [...state.shadows]
  const told: [readonly number[], readonly number[]] = [...state.told]
  shadows[side] = shadow
  told[side] = []
  return { ...state, shadows, told }
}

/** The device and the own shadow now hold a frame; the other side will hear of it. */
function holds(state: State, side: 0 | 1, frame: number, device = frame): State {
  const shadows: [number, number] = [...state.shadows]
  const told: [readonly number[], readonly number[]] = [...state.told]
  shadows[side] = frame
  told[1 - side] = [...told[1 - side], frame]
  return { ...state, device, shadows, told }
}

/** Enter, walk, UPDATE, leave. */
function worker(state: State, broken: Broken): State[] {
  const free = broken === 'lock' || state.lock === 0
  switch (state.worker) {
    case 0:
      if (state.misses === 0 || !free) return []
      return [{ ...caughtUp(state, 0), lock: WORKER, worker: 1, misses: state.misses - 1 }]
    case 1:
      return [{ ...state, walked: state.table, worker: 2 }]
    case 2:
      return [{ ...holds(state, 0, state.walked), worker: 3 }]
    default:
      return [{ ...state, lock: 0, walked: 0, worker: 0 }]
  }
}

/** The guest changes its table; enter, filtered INVALIDATE, leave, complete. */
function main(state: State, broken: Broken): State[] {
  const free = broken === 'lock' || state.lock === 0
  switch (state.main) {
    case 0:
      return [{ ...state, table: 2, main: 1 }]
    case 1: {
      if (!free) return []
      const entered = { ...state, lock: MAIN, main: 2 }
      const early = broken === 'order' ? { complete: true } : {}
      return [{ ...(broken === 'catch up' ? entered : caughtUp(entered, 1)), ...early }]
    }
    case 2:
      return [{ ...(state.shadows[1] === 0 ? state : holds(state, 1, 0)), main: 3 }]
    case 3:
      return [{ ...state, lock: 0, main: 4 }]
    case 4:
      return [{ ...state, complete: true, main: 5 }]
    default:
      return []
  }
}

/** @returns the steps to a stale access, or undefined, and how many states there are */
function explore(broken: Broken): { readonly stale: State | undefined; readonly states: number } {
  const seen = new Set<string>()
  const open: State[] = [FIRST]
  for (let state = open.pop(); state !== undefined; state = open.pop()) {
    const key = JSON.stringify(state)
    if (seen.has(key)) continue
    seen.add(key)
    if (state.complete && state.device === 1) return { stale: state, states: seen.size }
    open.push(...worker(state, broken), ...main(state, broken))
  }
  return { stale: undefined, states: seen.size }
}

describe('in every interleaving of two threads', () => {
  it('no access is stale once the invalidation is complete', () => {
    const { stale, states } = explore('none')
    expect(stale).toBeUndefined()
    expect(states).toBeGreaterThan(30)
  })

  it.each([
    { broken: 'lock', way: 'an UPDATE follows the INVALIDATE that ended its walk' },
    { broken: 'catch up', way: 'the filter does not know what the other thread granted' },
    { broken: 'order', way: 'the guest is told before the INVALIDATE' },
  ] as const)('without the $broken there is one: $way', ({ broken }) => {
    expect(explore(broken).stale).toBeDefined()
  })
})

/** Every interleaving, breadth first, each state once: to the end, or to the first thing wrong. */
import { keyOf, lostWakeUp, start, successors } from './model'
import type { Broken, Budget, State } from './model'

export interface Explored {
  readonly states: number
  /** The longest way from the start, or the way to what went wrong, in steps. */
  readonly steps: number
  /** undefined when nothing went wrong. */
  readonly wrong: string | undefined
  /** What was done when it went wrong, as states. */
  readonly trace: readonly State[]
}

/** How many steps the loop, the worker and the invalidation queue may take to come to rest. */
const REST = 60

interface Node {
  readonly state: State
  readonly from: Node | undefined
}

/** @param broken the rule that is switched off */
export function explore(tables: readonly number[], budget: Budget, broken: Broken): Explored {
  const seen = new Set<string>()
  const rests = new Set<string>()
  let frontier: Node[] = tables.map((table) => ({ state: start(table, budget), from: undefined }))
  for (let steps = 0; ; steps++) {
    const next: Node[] = []
    for (const node of frontier) {
      const found = rest(node, broken, rests)
      if (found !== undefined) return { ...found, states: seen.size }
      for (const state of successors(node.state, broken)) {
        const key = keyOf(state)
        if (seen.has(key)) continue
        seen.add(key)
        next.push({ state, from: node })
      }
    }
    if (next.length === 0) return { states: seen.size, steps, wrong: undefined, trace: [] }
    frontier = next
  }
}

/** Lets everything come to rest by itself: does it, and does nobody sleep who should not? */
function rest(
  start: Node,
  broken: Broken,
  rests: Set<string>,
): Omit<Explored, 'states'> | undefined {
  const path: string[] = []
  let node = start
  for (let step = 0; step < REST; step++) {
    const key = keyOf(node.state)
    if (rests.has(key)) break
    path.push(key)
    if (node.state.wrong !== '') return failed(node, node.state.wrong)
    const state = successors(node.state, broken, true).at(0)
    if (state === undefined) {
      if (lostWakeUp(node.state)) return failed(node, 'lost wake-up')
      break
    }
    node = { state, from: node }
    if (step === REST - 1) return failed(node, 'no rest')
  }
  for (const key of path) rests.add(key)
  return undefined
}

function failed(node: Node, wrong: string): Omit<Explored, 'states'> {
  const trace: State[] = []
  for (let at: Node | undefined = node; at !== undefined; at = at.from) trace.unshift(at.state)
  return { steps: trace.length - 1, wrong, trace }
}

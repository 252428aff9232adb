/**
 * The design's rules R1 to R6 in every interleaving of guest, worker, loop and invalidation queue:
 * nothing goes wrong with all of them, and something does without any one.
 *
 * The budgets say what the guest may do in one history; every order of it is tried, to the end.
 * `MODEL=full` tries the larger one too (760,117 states).
 */
import { describe, expect, it } from 'vitest'
import { explore } from './explore'
import { RULES } from './model'

/** Before anything happens nothing is mapped, or a frame that may only be read. */
const TABLES = [0, 1]

const BUDGETS = [
  { changes: 2, invalidations: 1, accesses: 2, kicks: 0 },
  { changes: 1, invalidations: 0, accesses: 2, kicks: 1 },
  { changes: 0, invalidations: 1, accesses: 2, kicks: 1 },
  ...(process.env['MODEL'] === 'full'
    ? [{ changes: 2, invalidations: 1, accesses: 2, kicks: 1 }]
    : []),
]

describe('in every interleaving there is no lost wake-up and no stale access', () => {
  it.each(BUDGETS)(
    'of $changes table changes, $invalidations invalidation, $accesses accesses, $kicks kicks',
    (budget) => {
      const { wrong, trace, states } = explore(TABLES, budget, 'none')
      expect(wrong, JSON.stringify(trace, undefined, 1)).toBeUndefined()
      expect(states).toBeGreaterThan(1000)
    },
    120_000,
  )
})

const WITHOUT = [
  ['R1', 'walk and UPDATE in one turn', 'stale access', 1, 0],
  ['R2', 'the wait’s status after the INVALIDATE', 'stale access', 1, 0],
  ['R3', 'a filter that knows all pages of an entry', 'stale access', 1, 0],
  ['R4', 'asking again what was not present', 'lost wake-up', 1, 1],
  ['R5', 'sending no more than the tables grant', 'stale access', 0, 0],
  ['R5 upgrade', 'an INVALIDATE before more is granted', 'no rest', 1, 0],
  ['R6', 'answering every miss that was read', 'lost wake-up', 0, 0],
] as const

/** With budgets that are part of those above, so that the rule is all that is different. */
describe('without a rule', () => {
  it.each(WITHOUT)('%s, %s, there is a way to a %s', (broken, _, wrong, changes, kicks) => {
    const budget = { changes, invalidations: 1 - kicks, accesses: 2, kicks }
    expect(explore(TABLES, budget, broken).wrong).toBe(wrong)
  })

  it('is tried for each of them', () => {
    const tried = new Set(WITHOUT.map(([rule]) => rule.slice(0, 2)))
    expect([...tried]).toEqual([...RULES])
  })
})

import { describe, expect, it } from 'vitest'
import { frameOf, interleaved } from '../../lib/cli/bench-contestant'
import type { Contestant } from '../../lib/cli/bench-contestant'
import { difference, hitRate } from '../../lib/cli/l2fwd'

const quiet = (): void => undefined

function contestant(name: string, run: Contestant['run']): Contestant {
  return { section: 'out', name, run }
}

describe('contestants', () => {
  it('run in turn, each once in a round, and give the median of their rounds', async () => {
    const order: string[] = []
    const answers: Record<string, number[]> = { a: [1, 9, 2], b: [5, 4, 6] }
    const all = ['a', 'b'].map((name) =>
      contestant(name, (ms) => {
        order.push(`${name}${ms}`)
        return Promise.resolve({ pps: answers[name].shift() ?? NaN })
      }),
    )
    const { rows, missing } = await interleaved(all, { rounds: 3, ms: 7 }, quiet)
    expect(order.join(' ')).toBe('a7 b7 a7 b7 a7 b7')
    expect(rows.map(({ figures }) => figures['pps'])).toEqual([2, 5])
    expect(missing).toEqual([])
  })

  it('that fail in any round have no row, are named with the reason, and stop nobody', async () => {
    let runs = 0
    const all = [
      contestant('bad', () => {
        runs += 1
        return runs === 2 ? Promise.reject(new Error('gone')) : Promise.resolve({ pps: 1 })
      }),
      contestant('good', () => Promise.resolve({ pps: 3 })),
    ]
    const { rows, missing } = await interleaved(all, { rounds: 3, ms: 1 }, quiet)
    expect(rows.map(({ name }) => name)).toEqual(['good'])
    expect(missing).toEqual([{ name: 'out: bad', reason: 'gone' }])
    expect(runs).toBe(2)
  })

  it('send to an address that is nobody’s, not to a group', () => {
    const frame = frameOf(64)
    expect(frame.length).toBe(64)
    expect(frame[0] & 1).toBe(0)
  })
})

describe('forwarding', () => {
  it('has a hit rate of exactly 1 without misses only', () => {
    expect(hitRate({ misses: 0, chains: 2_000_000 })).toBe(1)
    expect(hitRate({ misses: 1, chains: 2_000_000 })).toBeLessThan(1)
    expect(hitRate({ misses: 0, chains: 0 })).toBe(0)
  })

  it('counts what came after the warm-up', () => {
    const before = {
      forwarded: [10, 20] as const,
      ...{ dropped: 1, misses: 2, updates: 3, invalidates: 4, faults: 5, chains: 6 },
    }
    const now = {
      forwarded: [11, 22] as const,
      ...{ dropped: 4, misses: 6, updates: 8, invalidates: 10, faults: 12, chains: 14 },
    }
    expect(difference(now, before)).toEqual({
      forwarded: [1, 2],
      ...{ dropped: 3, misses: 4, updates: 5, invalidates: 6, faults: 7, chains: 8 },
    })
  })
})

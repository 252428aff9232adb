import { describe, expect, it } from 'vitest'
import { frameOf, interleaved, moved, warmedUp } from '../../../lib/cli/bench/contestant'
import type { Contestant } from '../../../lib/cli/bench/contestant'
import { difference, hitRate } from '../../../lib/cli/l2fwd'

const quiet = (): void => undefined

function contestant(name: string, run: Contestant['run']): Contestant {
  return { section: 'out', name, run }
}

describe('contestants', () => {
  it('run in turn, each once in a round, and give the median of their rounds', async () => {
    const order: string[] = []
    const answers: Record<string, number[]> = { a: [1, 9, 2], b: [5, 4, 6] }
    const all = ['a', 'b'].map((name) =>
      contestant(name, (ms, warmMs) => {
        order.push(`${name}${ms},${warmMs}`)
        return Promise.resolve({ pps: answers[name].shift() ?? NaN })
      }),
    )
    const { rows, missing } = await interleaved(all, { rounds: 3, ms: 7, warmMs: 8 }, quiet)
    expect(order.join(' ')).toBe('a7,8 b7,8 a7,2 b7,2 a7,2 b7,2')
    expect(rows.map(({ figures }) => figures)).toEqual([
      { pps: 2, spread: 4 },
      { pps: 5, spread: 0.4 },
    ])
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
    const { rows, missing } = await interleaved(all, { rounds: 3, ms: 1, warmMs: 0 }, quiet)
    expect(rows.map(({ name }) => name)).toEqual(['good'])
    expect(missing).toEqual([{ name: 'out: bad', reason: 'gone' }])
    expect(runs).toBe(2)
  })

  it('are warm once their rate stands, not while it rises, nor before their code ran often', async () => {
    const rates = [10, 10, 10, 2_000, 4_000, 8_000, 9_000, 8_500, 1_000_000]
    let frames = 0
    let time = 0
    const mover = {
      move: (ms: number) => {
        frames += rates[time / 100]
        time += ms
        return Promise.resolve()
      },
      frames: () => frames,
    }
    await warmedUp(mover, 60_000, () => time)
    expect(time).toBe(800)
  })

  it('are warm when the time for it is over', async () => {
    let frames = 0
    let time = 0
    const mover = {
      move: (ms: number) => {
        time += ms
        frames += 1
        return Promise.resolve()
      },
      frames: () => frames,
    }
    await warmedUp(mover, 1000, () => time)
    expect(time).toBe(1000)
    expect((await moved(mover, 5)).frames).toBe(1)
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

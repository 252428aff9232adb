import { describe, expect, it } from 'vitest'
import fc from 'fast-check'
import {
  SECTIONS,
  TARGETS,
  combined,
  compared,
  evaluated,
  figure,
  median,
  percentile,
  spread,
} from '../../../lib/cli/bench/figures'
import type { Row, Section } from '../../../lib/cli/bench/figures'
import { page, short, table } from '../../../lib/cli/bench/report'

/** The names that the bench promises, in its order. */
const PROMISED = [
  'static-1g-misses',
  'static-2m-misses',
  'strict-misses-per-1000',
  'strict-speedup',
  'strict-vs-off',
  'tx-vs-testpmd',
  'tx-vs-node-fs',
  'tx-vs-c',
  'rx-vs-testpmd',
  'rx-vs-node-fs',
  'io-vs-testpmd',
  'gso-vs-c',
  'miss-p50-vs-c',
  'miss-p50-worker-vs-c',
  'miss-p90-busy',
  'walk-ns',
  'walk-vs-c',
  'growth-16384',
  'heap-bytes-per-packet',
  'major-gcs',
  'rss-mib',
]

const row = (section: Section, name: string, figures: Row['figures']): Row => ({
  ...{ section, name, figures },
})

describe('percentiles', () => {
  it('are values that were measured, at the nearest rank', () => {
    expect(percentile([5, 1, 4, 2, 3], 50)).toBe(3)
    expect(percentile([4, 1, 3, 2], 50)).toBe(2)
    expect(percentile([1, 2, 3, 4, 5, 6, 7, 8, 9, 10], 90)).toBe(9)
    expect(percentile([1, 2, 3], 99)).toBe(3)
    expect(percentile([7], 0)).toBe(7)
  })

  it('leave at least their share at or below, whatever the values', () => {
    const values = fc.array(fc.double({ noNaN: true }), { minLength: 1 })
    fc.assert(
      fc.property(values, fc.integer({ min: 0, max: 100 }), (all, percent) => {
        const value = percentile(all, percent)
        const share = all.filter((each) => each <= value).length / all.length
        expect(all).toContain(value)
        expect(share).toBeGreaterThanOrEqual(percent / 100)
      }),
    )
  })

  it('order numbers by value, and leave the array as it was', () => {
    const values = [10, 9, 100]
    expect(median(values)).toBe(10)
    expect(values).toEqual([10, 9, 100])
  })

  it('do not exist without values', () => {
    expect(() => median([])).toThrow(RangeError)
  })
})

describe('rounds', () => {
  it('are combined figure by figure', () => {
    const rounds = [
      { pps: 1, misses: 30 },
      { pps: 3, misses: 10 },
      { pps: 2, misses: 20 },
    ]
    expect(combined(rounds)).toEqual({ pps: 2, misses: 20 })
  })

  it('lose a figure that one of them lacks', () => {
    expect(combined([{ pps: 1, misses: 0 }, { pps: 1 }])).toEqual({ pps: 1 })
  })
})

describe('ratios', () => {
  it('are against the row of the same section', () => {
    const rows = compared([
      row('out', 'c', { pps: 200 }),
      row('out', 'vhost-iotlb', { pps: 50 }),
      row('in', 'vhost-iotlb', { pps: 70 }),
    ])
    expect(rows.map(({ ratio }) => ratio)).toEqual([1, 0.25, undefined])
    expect(rows[1].against).toBe('c')
  })

  it('do not exist where the other row measured nothing', () => {
    const rows = compared([row('out', 'c', { pps: 0 }), row('out', 'node fs', { pps: 5 })])
    expect(rows.every(({ ratio }) => ratio === undefined)).toBe(true)
  })
})

describe('targets', () => {
  it('have the promised names', () => {
    expect(TARGETS.map(({ name }) => name)).toEqual(PROMISED)
  })

  it('are all named when nothing was measured, and none has a value', () => {
    const { targets, notMeasured } = evaluated([])
    expect(targets).toEqual([])
    expect(notMeasured.map(({ name }) => name)).toEqual(PROMISED)
  })

  it('divide one row by another', () => {
    const { targets } = evaluated([
      row('modes', 'strict, on-kick', { pps: 400, misses1000: 2 }),
      row('modes', 'strict, exact', { pps: 100, misses1000: 1000 }),
    ])
    expect(targets).toEqual([
      {
        name: 'strict-misses-per-1000',
        ...{ value: 2, unit: 'misses', target: '<= 2', met: true },
      },
      { name: 'strict-speedup', value: 4, unit: 'ratio', target: '>= 4', met: true },
    ])
  })

  it('are not met just beyond their bound', () => {
    const { targets } = evaluated([
      row('modes', 'strict, on-kick', { pps: 399, misses1000: 2.001 }),
      row('modes', 'strict, exact', { pps: 100 }),
    ])
    expect(targets.map(({ met }) => met)).toEqual([false, false])
  })

  it('count hits exactly: one miss in a million packets is not met', () => {
    const long = (misses: number): Row => row('hits', 'static 1G', { packets: 1e6, misses })
    expect(evaluated([long(0)]).targets[0].met).toBe(true)
    expect(evaluated([long(1)]).targets[0].met).toBe(false)
  })

  it('that speak of a million packets have no value from fewer', () => {
    const { targets, notMeasured } = evaluated([
      row('hits', 'static 1G', { packets: 999_999, misses: 0 }),
    ])
    expect(targets).toEqual([])
    expect(notMeasured[0].reason).toContain('999999')
  })

  it('of the heap are met only below one byte a packet', () => {
    const heap = (bytes: number): Row =>
      row('heap', 'forwarding', { packets: 1e6, heapBytesPerPacket: bytes, majorGcs: 0 })
    expect(evaluated([heap(0.99)]).targets[0].met).toBe(true)
    expect(evaluated([heap(1)]).targets[0].met).toBe(false)
  })

  it('keep the reasons of rows that failed', () => {
    const reason = { name: 'out: testpmd', reason: 'no dpdk-testpmd' }
    expect(evaluated([], [reason]).notMeasured[0]).toEqual(reason)
  })

  it('name only sections that there are', () => {
    const named = TARGETS.flatMap(({ of, by }) => (by === undefined ? [of] : [of, by]))
    expect(named.filter(([section]) => !(section in SECTIONS))).toEqual([])
  })
})

describe('the report', () => {
  const rows = compared([
    row('out', 'c', { pps: 250_000 }),
    { ...row('out', 'vhost-iotlb', { pps: 237_500.4, hitRate: 1 }), note: 'bursts of 64' },
  ])
  const report = { env: { kernel: '6.12', date: '2026-01-02' }, rows, ...evaluated(rows) }

  it('is whole as JSON', () => {
    expect(JSON.parse(JSON.stringify(report))).toEqual(report)
    expect(Object.keys(report).sort()).toEqual(['env', 'notMeasured', 'rows', 'targets'])
  })

  it('is a table with a cell for every figure and an empty one where there is none', () => {
    const lines = table(report).split('\n')
    const cells = lines.filter((line) => line.startsWith('| c ')).map((line) => line.split('|'))
    expect(cells[0].map((cell) => cell.trim())).toEqual(['', 'c', '250000', '', '1.00', ''])
    expect(table(report)).toContain('vhost-iotlb (bursts of 64)')
  })

  it('names what was not measured, and the machine', () => {
    expect(page(report)).toContain('- tx-vs-testpmd: no row')
    expect(page(report)).toContain('- kernel: 6.12')
  })

  it('shows counts as they are and the rest by what matters of them', () => {
    expect([0, 1_000_000, 0.123456, 12.3456, 1234.56].map(short)).toEqual([
      ...['0', '1000000', '0.123', '12.3', '1235'],
    ])
  })

  it('judges the targets of the sections that were asked for', () => {
    const { targets, notMeasured } = evaluated(rows, [], ['walk'])
    const names = [...targets, ...notMeasured].map(({ name }) => name)
    expect(names.sort()).toEqual(['walk-ns', 'walk-vs-c'])
  })

  it('says how far rounds lie apart, where there are several', () => {
    expect(spread([{ pps: 80 }, { pps: 100 }, { pps: 130 }], 'pps')).toEqual({ spread: 0.5 })
    expect(spread([{ pps: 80 }], 'pps')).toEqual({})
    expect(spread([{ pps: 80 }, { ns: 1 }], 'pps')).toEqual({})
  })

  it('finds a figure by its place only', () => {
    expect(figure(rows, 'out', 'c', 'pps')).toBe(250_000)
    expect(figure(rows, 'out', 'c', 'misses')).toBeUndefined()
    expect(figure(rows, 'in', 'c', 'pps')).toBeUndefined()
  })
})

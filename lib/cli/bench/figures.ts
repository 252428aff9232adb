/**
 * What the bench makes of its samples: medians, ratios, targets, a table. Pure; it measures
 * nothing.
 *
 * A figure that was not measured is not there: a target without its rows is named in
 * `notMeasured`, with the reason where there is one.
 */

/** Numbers by name; a name says its unit unless it is a count. */
export type Sample = Readonly<Record<string, number>>

export interface Row {
  readonly section: Section
  readonly name: string
  readonly figures: Sample
  /** The row that this one is compared with, and how: in the section's main figure. */
  readonly against?: string
  readonly ratio?: number
  readonly note?: string
}

export interface TargetResult {
  readonly name: string
  readonly value: number
  readonly unit: string
  readonly target: string
  readonly met: boolean
}

export interface Missing {
  readonly name: string
  readonly reason: string
}

export interface Report {
  readonly env: Readonly<Record<string, string | number>>
  readonly rows: readonly Row[]
  readonly targets: readonly TargetResult[]
  /** Targets without a value, and rows that could not be measured. */
  readonly notMeasured: readonly Missing[]
}

/**
 * Each section with the figure that its rows are compared by, and the row they are compared with.
 */
export const SECTIONS = {
  modes: { main: 'pps', against: 'off, exact', title: 'Mappings and policies, 64-byte frames out' },
  out: { main: 'pps', against: 'c', title: 'Frames out, by other means' },
  in: { main: 'pps', against: 'c', title: 'Frames in, by other means' },
  forward: { main: 'pps', against: 'c', title: 'Forwarding, by other means' },
  bytes: { main: 'mbytesPerSecond', against: 'c, 1500', title: 'Bytes out' },
  hits: { main: 'pps', against: 'static 2M', title: 'Forwarding after warm-up' },
  miss: { main: 'p50us', against: 'c, poll', title: 'Round trip of a miss' },
  mappings: { main: 'p50us', against: '64 mappings', title: 'Round trip by live mappings' },
  rings: { main: 'pps', against: 'ring 256', title: 'Ring sizes, strict, on-kick' },
  pairs: { main: 'pps', against: '1 pair', title: 'Pairs of queues, strict, on-kick' },
  exposure: {
    main: 'staleKiB',
    against: 'strict',
    title: 'What the device can reach that was unmapped, that is in flight, and in all; means',
  },
  walk: { main: 'ns', against: 'c', title: 'A walk of four levels' },
  heap: { main: 'heapBytesPerPacket', against: 'loopback, off', title: 'Heap' },
  memory: { main: 'rssMiB', against: 'node alone', title: 'Resident memory' },
} as const

export type Section = keyof typeof SECTIONS

export function median(values: readonly number[]): number {
  return percentile(values, 50)
}

/** The nearest rank: a value that was measured. @throws RangeError without values */
export function percentile(values: readonly number[], percent: number): number {
  if (values.length === 0) throw new RangeError('no values')
  const sorted = Float64Array.from(values).sort()
  const rank = Math.ceil((percent / 100) * sorted.length)
  return sorted[Math.min(sorted.length - 1, Math.max(0, rank - 1))]
}

/** Figure by figure the median of the rounds. A figure that one round lacks is left out. */
export function combined(samples: readonly Sample[]): Sample {
  const [first] = samples
  const names = Object.keys(first).filter((name) => samples.every((sample) => name in sample))
  return Object.fromEntries(names.map((name) => [name, median(samples.map((s) => s[name]))]))
}

/** How far the rounds lie apart in a figure, as a share of their median; nothing for one round. */
export function spread(samples: readonly Sample[], which: string): Sample {
  if (samples.length < 2 || !samples.every((sample) => which in sample)) return {}
  const values = samples.map((sample) => sample[which])
  const middle = median(values)
  return middle === 0 ? {} : { spread: (Math.max(...values) - Math.min(...values)) / middle }
}

/** Adds to each row its ratio against the row that its section is compared by. */
export function compared(rows: readonly Row[]): readonly Row[] {
  return rows.map((row) => {
    const { main, against } = SECTIONS[row.section]
    const base = figure(rows, row.section, against, main)
    const value = main in row.figures ? row.figures[main] : undefined
    if (base === undefined || value === undefined || base === 0) return row
    return { ...row, against, ratio: value / base }
  })
}

/** undefined where it was not measured. */
export function figure(
  rows: readonly Row[],
  section: Section,
  name: string,
  which: string,
): number | undefined {
  const row = rows.find((each) => each.section === section && each.name === name)
  return row !== undefined && which in row.figures ? row.figures[which] : undefined
}

type Place = readonly [section: Section, name: string, which: string]

interface Target {
  readonly name: string
  readonly unit: string
  /** At least, or at most, this much. */
  readonly bound: readonly ['>=' | '<=' | '<', number]
  readonly of: Place
  /** What it is divided by. */
  readonly by?: Place
  /** A value counts only from so many packets on. */
  readonly packets?: number
}

const STRICT_OLD: Place = ['modes', 'strict, exact', 'pps']
const STRICT_NEW: Place = ['modes', 'strict, on-kick', 'pps']
const OURS = 'vhost-iotlb'

/** What is promised; each name once. */
export const TARGETS: readonly Target[] = [
  target('static-1g-misses', 'misses', ['<=', 0], ['hits', 'static 1G', 'misses'], 1e6),
  target('static-2m-misses', 'misses', ['<=', 0], ['hits', 'static 2M', 'misses'], 1e6),
  target('strict-misses-per-1000', 'misses', ['<=', 2], ['modes', 'strict, on-kick', 'misses1000']),
  ratio('strict-speedup', ['>=', 4], STRICT_NEW, STRICT_OLD),
  ratio('strict-vs-off', ['>=', 0.5], STRICT_NEW, ['modes', 'off, exact', 'pps']),
  ratio('tx-vs-testpmd', ['>=', 1], ['out', OURS, 'pps'], ['out', 'testpmd', 'pps']),
  ratio('tx-vs-node-fs', ['>=', 3], ['out', OURS, 'pps'], ['out', 'node fs', 'pps']),
  ratio('tx-vs-c', ['>=', 0.95], ['out', OURS, 'pps'], ['out', 'c', 'pps']),
  ratio('rx-vs-testpmd', ['>=', 1], ['in', OURS, 'pps'], ['in', 'testpmd', 'pps']),
  ratio('rx-vs-node-fs', ['>=', 1.2], ['in', OURS, 'pps'], ['in', 'node fs', 'pps']),
  ratio('io-vs-testpmd', ['>=', 0.9], ['forward', OURS, 'pps'], ['forward', 'testpmd', 'pps']),
  ratio(
    'gso-vs-c',
    ['>=', 5],
    ['bytes', 'vhost-iotlb, 64 KiB segments', 'mbytesPerSecond'],
    ['bytes', 'c, 1500', 'mbytesPerSecond'],
  ),
  ratio(
    'miss-p50-vs-c',
    ['<=', 1.3],
    ['miss', 'loop, exact', 'p50us'],
    ['miss', 'c, poll', 'p50us'],
  ),
  ratio(
    'miss-p50-worker-vs-c',
    ['<=', 1.2],
    ['miss', 'worker, spinning', 'p50us'],
    ['miss', 'c, spinning', 'p50us'],
  ),
  ratio(
    'miss-p90-busy',
    ['<=', 10],
    ['miss', 'worker, main thread busy', 'p90us'],
    ['miss', 'loop, exact', 'p90us'],
  ),
  target('walk-ns', 'ns', ['<=', 20], ['walk', OURS, 'ns']),
  ratio('walk-vs-c', ['<=', 3.5], ['walk', OURS, 'ns'], ['walk', 'c', 'ns']),
  ratio(
    'growth-16384',
    ['<=', 1.3],
    ['mappings', '16384 mappings', 'p50us'],
    ['mappings', '64 mappings', 'p50us'],
  ),
  target(
    'heap-bytes-per-packet',
    'bytes',
    ['<', 1],
    ['heap', 'forwarding', 'heapBytesPerPacket'],
    1e6,
  ),
  target('major-gcs', 'collections', ['<=', 0], ['heap', 'forwarding', 'majorGcs'], 1e6),
  target('rss-mib', 'MiB', ['<=', 80], ['memory', 'one port', 'rssMiB']),
]

/**
 * @param reasons why rows are not there, by target name or by row
 * @param only sections whose targets count, or none for all
 */
export function evaluated(
  rows: readonly Row[],
  reasons: readonly Missing[] = [],
  only: readonly string[] = [],
): Pick<Report, 'targets' | 'notMeasured'> {
  const targets: TargetResult[] = []
  const notMeasured: Missing[] = [...reasons]
  for (const each of TARGETS) {
    if (only.length > 0 && !only.includes(each.of[0])) continue
    const value = valueOf(rows, each)
    if (typeof value === 'number') targets.push(judged(each, value))
    else notMeasured.push({ name: each.name, reason: value })
  }
  return { targets, notMeasured }
}

function valueOf(rows: readonly Row[], { of, by, packets }: Target): number | string {
  const value = figure(rows, ...of)
  if (value === undefined) return `no row '${of[0]}: ${of[1]}'`
  if (packets !== undefined) {
    const count = figure(rows, of[0], of[1], 'packets') ?? 0
    if (count < packets) return `counts from ${packets} packets on, and these were ${count}`
  }
  if (by === undefined) return value
  const base = figure(rows, ...by)
  if (base === undefined || base === 0) return `no row '${by[0]}: ${by[1]}'`
  return value / base
}

function judged({ name, unit, bound }: Target, value: number): TargetResult {
  const [relation, limit] = bound
  const met = relation === '>=' ? value >= limit : relation === '<' ? value < limit : value <= limit
  return { name, value, unit, target: `${relation} ${limit}`, met }
}

function target(
  name: string,
  unit: string,
  bound: Target['bound'],
  of: Place,
  packets?: number,
): Target {
  return { name, unit, bound, of, ...(packets === undefined ? {} : { packets }) }
}

function ratio(name: string, bound: Target['bound'], of: Place, by: Place): Target {
  return { name, unit: 'ratio', bound, of, by }
}

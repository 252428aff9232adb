/** The command `replay`: runs a trace's handlers again, shows a moment of it, or other policies. */
import type { LookAheadMode } from '../iotlb/look-ahead'
import { readTrace } from '../trace/codec'
import type { Trace } from '../trace/codec'
import type { TraceEvent } from '../trace/event'
import { replay } from '../trace/replayer'
import type { ReplayResult } from '../trace/replayer'
import type { DeviceSnapshot } from '../trace/replay-state'
import { simulate } from '../trace/simulator'
import type { SimulatedPolicy, SimulationResult } from '../trace/simulator'
import { replyPolicy } from './named-policy'

export interface ReplayOptions {
  readonly stop?: number
  readonly policy?: readonly string[]
  readonly lookAhead?: readonly LookAheadMode[]
  readonly entries?: readonly number[]
  readonly all: boolean
  readonly json: boolean
}

/** Lines of one list, unless all are wanted. */
const LINES = 16
const LOOK_AHEADS: readonly LookAheadMode[] = ['on-miss']

/** @returns the exit status: 0 where the handlers did what was recorded */
export function replayCommand(path: string, options: ReplayOptions): number {
  const trace = readTrace(path)
  const { policy, lookAhead, entries } = options
  if (policy !== undefined || lookAhead !== undefined || entries !== undefined) {
    showPolicies(trace, options)
    return 0
  }
  const result = replay(trace.events, options.stop)
  if (options.json) console.log(JSON.stringify({ ...trace.header, ...result }, plain))
  else for (const line of described(trace, result, options.all)) console.log(line)
  return result.divergence === undefined ? 0 : 1
}

interface Row extends SimulationResult {
  readonly policy: string
  readonly lookAhead: string
  readonly entries: number | string
}

function showPolicies(trace: Trace, options: ReplayOptions): void {
  const started = performance.now()
  const { policy = ['merged:131072'], lookAhead = LOOK_AHEADS, entries = [undefined] } = options
  const plans = policy.flatMap((name) =>
    lookAhead.flatMap((mode) => entries.map((count) => ({ name, mode, count }))),
  )
  const policies = plans.map(({ name, mode, count }): SimulatedPolicy => {
    const size = count === undefined ? {} : { entries: count }
    return { reply: replyPolicy(name), lookAhead: mode, ...size }
  })
  const counts = new Map<string, number>()
  const results = simulate(counted(trace.events, counts), policies)
  const rows = results.map((result, i): Row => {
    const { name, mode, count = 'recorded' } = plans[i]
    return { policy: name, lookAhead: mode, entries: count, ...result }
  })
  const recorded = {
    ...{ misses: counts.get('miss') ?? 0, updates: counts.get('update') ?? 0 },
    invalidates: counts.get('invalidate') ?? 0,
  }
  const events = [...counts.values()].reduce((sum, count) => sum + count, 0)
  const seconds = (performance.now() - started) / 1000
  if (options.json) {
    console.log(JSON.stringify({ ...trace.header, events, seconds, recorded, simulated: rows }))
    return
  }
  console.log(head(trace))
  console.log(`${events} events in ${seconds.toFixed(2)} s`)
  console.log('')
  const columns = ['misses', 'updates', 'invalidates', 'evictions', 'hit rate']
  console.log(cells(['policy', 'look-ahead', 'entries'], columns))
  console.log(cells(['as recorded', '', ''], [...Object.values(recorded), '', '']))
  for (const row of rows) {
    const { misses, updates, invalidates, evictions, hitRate } = row
    const rate = `${(hitRate * 100).toFixed(2)} %`
    console.log(
      cells(
        [row.policy, row.lookAhead, String(row.entries)],
        [misses, updates, invalidates, evictions, rate],
      ),
    )
  }
  const unknown = Math.max(0, ...rows.map((row) => row.unknown))
  if (unknown > 0) console.log(`\nup to ${unknown} accesses to pages that the trace does not know`)
}

function* counted(
  events: Iterable<TraceEvent>,
  counts: Map<string, number>,
): Generator<TraceEvent, void> {
  for (const event of events) {
    counts.set(event.kind, (counts.get(event.kind) ?? 0) + 1)
    yield event
  }
}

function cells(names: readonly string[], figures: readonly (string | number)[]): string {
  const [first, second, third] = names
  const left = `${first.padEnd(16)} ${second.padEnd(10)} ${third.padEnd(9)}`
  return left + figures.map((figure) => String(figure).padStart(10)).join('')
}

function head({ header }: Trace): string {
  const about = Object.entries(header.about).map(([name, value]) => `${name} ${value}`)
  const when = new Date(header.startedAt).toISOString()
  return `recorded ${when}${about.length === 0 ? '' : `: ${about.join(', ')}`}`
}

function* described(trace: Trace, result: ReplayResult, all: boolean): Generator<string, void> {
  const { divergence, state, events, compared } = result
  const limit = all ? Infinity : LINES
  yield head(trace)
  yield `${events} events replayed, ${(state.at / 1e9).toFixed(6)} s; ${compared} messages as recorded`
  if (divergence !== undefined) {
    yield `DIFFERENT at event ${divergence.event}`
    yield `  recorded: ${divergence.expected}`
    yield `  replayed: ${divergence.got}`
  }
  for (const device of state.devices) yield* describedDevice(device, limit)
  yield* list(
    `${state.registers.length} registers were written`,
    state.registers.map(({ offset, value }) => `${hex(offset).padEnd(6)} ${hex(value)}`),
    limit,
  )
  yield* list(
    `${state.tables.length} table entries are known`,
    state.tables.map(({ gpa, value }) => `gpa ${hex(gpa)}  ${hex(value)}`),
    limit,
  )
}

function* describedDevice(device: DeviceSnapshot, limit: number): Generator<string, void> {
  const { shadow, unanswered, inFlight, stats } = device
  yield ''
  yield (
    `device ${device.device}: ${stats.misses} misses, ${stats.updates} updates, ` +
    `${stats.invalidates} invalidates, ${stats.faults} faults`
  )
  yield* list(
    `holds ${shadow.length} entries, the oldest first`,
    shadow.map(
      ({ iova, hva, access }) =>
        `iova ${hex(iova.first)}-${hex(iova.last)} -> hva ${hex(hva)} ${access}`,
    ),
    limit,
  )
  yield* list(
    `${unanswered.length} misses wait`,
    unanswered.map(({ iova, wanted, cause }) => `iova ${hex(iova)} for ${wanted}: ${cause}`),
    limit,
  )
  yield* list(
    `${inFlight.length} chains are offered and not complete`,
    inFlight.map(({ queue, index, head: at, buffers }) => {
      const parts = buffers.map(
        ({ page, offset, bytes, wants }) => `${hex(page * 4096 + offset)}+${bytes} ${wants}`,
      )
      return `queue ${queue} chain ${index} head ${at}: ${parts.join(', ')}`
    }),
    limit,
  )
}

function* list(title: string, lines: readonly string[], limit: number): Generator<string, void> {
  yield title
  for (const line of lines.slice(0, limit)) yield `  ${line}`
  if (lines.length > limit) yield `  and ${lines.length - limit} more (--all)`
}

function hex(value: number | bigint): string {
  return `0x${value.toString(16)}`
}

/** 64-bit numbers as JSON can't say them. */
function plain(_name: string, value: unknown): unknown {
  return typeof value === 'bigint' ? hex(value) : value
}

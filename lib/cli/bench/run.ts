/** All of the bench, in its order: first what needs vhost-net, then what does not. */
import { messageOf } from '../../errors'
import { heapContestants, memoryContestants, walkContestants } from './alone'
import { interleaved } from './contestant'
import type { Contestant, Effort, Measured } from './contestant'
import { exposureContestants } from './exposure'
import { SECTIONS } from './figures'
import type { Missing, Row, Section } from './figures'
import { cFloor, mappingContestants, missContestants } from './miss'
import { cLoops, nodeFs, testpmd } from './peers'
import { growthContestants, longForward, modeContestants, ours } from './ports'
import { hasPktgen } from '../pktgen'

export interface BenchPlan {
  /** Fewer rounds, shorter ones. */
  readonly quick: boolean
  /** Sections to measure, or none for all; `hits` brings the heap of forwarding with it. */
  readonly only: readonly string[]
  /** Where the compiled programs are; undefined without a compiler. */
  readonly programs: string | undefined
}

interface Extent extends Effort {
  readonly questions: number
  readonly packets: number
  readonly limitMs: number
}

const FULL: Extent = {
  ...{ rounds: 3, ms: 1000, warmMs: 10_000 },
  ...{ questions: 2000, packets: 1e6, limitMs: 120_000 },
}
const QUICK: Extent = {
  ...{ rounds: 1, ms: 500, warmMs: 10_000 },
  ...{ questions: 200, packets: 20_000, limitMs: 5_000 },
}
const WALKS = { full: 2_000_000, quick: 500_000 } as const
const HEAP_PACKETS = { full: 1_000_000, quick: 100_000 } as const
/** Sections whose frames come from the kernel's generator. */
const NEED_TRAFFIC = ['in', 'forward', 'hits']

/** What needs root, taps and vhost-net. */
export async function benchWithVhost(
  plan: BenchPlan,
  say: (line: string) => void,
): Promise<Measured> {
  const effort = plan.quick ? QUICK : FULL
  const { programs } = plan
  const floor = programs === undefined ? [] : cFloor(programs, effort.questions)
  const groups: readonly (readonly Contestant[])[] = [
    modeContestants(),
    side([
      ...(programs === undefined ? [] : cLoops(programs)),
      ...nodeFs,
      ...testpmd,
      ...oursAll(),
    ]),
    [...floor, ...missContestants(effort.questions), ...mappingContestants(effort.questions)],
    growthContestants(),
    exposureContestants,
    memoryContestants,
  ]
  const rows: Row[] = []
  const missing: Missing[] = []
  if (programs === undefined) {
    missing.push({ name: 'rows in C', reason: 'no sources, or no gcc: apt-get install gcc' })
  }
  for (const group of groups) {
    const wanted = group.filter(({ section }) => wants(plan, section))
    const { possible, without } = withTraffic(wanted)
    missing.push(...without)
    const measured = await interleaved(possible, effort, say)
    rows.push(...measured.rows)
    missing.push(...measured.missing)
  }
  if (wants(plan, 'hits')) {
    const long = await hits(effort, say)
    rows.push(...long.rows)
    missing.push(...long.missing)
  }
  return { rows, missing }
}

/** What the host can do itself, without an emulated processor under it. */
export async function benchAlone(plan: BenchPlan, say: (line: string) => void): Promise<Measured> {
  const effort = plan.quick ? 'quick' : 'full'
  const groups = [
    { contestants: walkContestants(WALKS[effort], plan.programs), rounds: plan.quick ? 1 : 3 },
    { contestants: heapContestants(HEAP_PACKETS[effort]), rounds: 1 },
  ]
  const rows: Row[] = []
  const missing: Missing[] = []
  for (const { contestants, rounds } of groups) {
    const wanted = contestants.filter(({ section }) => wants(plan, section))
    const measured = await interleaved(wanted, { rounds, ms: 0, warmMs: 0 }, say)
    rows.push(...measured.rows)
    missing.push(...measured.missing)
  }
  return { rows, missing }
}

function oursAll(): readonly Contestant[] {
  return Object.values(ours)
}

/** Those that are compared run one after another. */
function side(contestants: readonly Contestant[]): readonly Contestant[] {
  const order = Object.keys(SECTIONS) as Section[]
  return [...contestants].sort((a, b) => order.indexOf(a.section) - order.indexOf(b.section))
}

function wants({ only }: BenchPlan, section: string): boolean {
  return only.length === 0 || only.includes(section)
}

function withTraffic(contestants: readonly Contestant[]): {
  readonly possible: readonly Contestant[]
  readonly without: readonly Missing[]
} {
  if (hasPktgen()) return { possible: contestants, without: [] }
  const needing = contestants.filter(({ section }) => NEED_TRAFFIC.includes(section))
  return {
    possible: contestants.filter((each) => !needing.includes(each)),
    without: needing.map(({ section, name }) => ({
      name: `${section}: ${name}`,
      reason: 'no /proc/net/pktgen: modprobe pktgen',
    })),
  }
}

async function hits(effort: Extent, say: (line: string) => void): Promise<Measured> {
  const rows: Row[] = []
  const missing: Missing[] = []
  for (const size of ['1G', '2M'] as const) {
    const name = `static ${size}`
    try {
      const { hits, heap } = await longForward(size, effort.packets, effort.limitMs)
      rows.push({ section: 'hits', name, figures: hits })
      if (size === '1G') rows.push({ section: 'heap', name: 'forwarding', figures: heap })
      say(`hits: ${name}`)
    } catch (error) {
      const reason = messageOf(error)
      missing.push({ name: `hits: ${name}`, reason })
    }
  }
  return { rows, missing }
}

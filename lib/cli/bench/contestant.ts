/** What the bench measures, one after another in rounds: something that runs for a time. */
import { readFileSync } from 'node:fs'
import { messageOf } from '../../errors'
import { SECTIONS, combined, spread } from './figures'
import type { Missing, Row, Sample, Section } from './figures'

export interface Contestant {
  readonly section: Section
  readonly name: string
  readonly note?: string
  /**
   * Measures for about so many milliseconds, after at most `warmMs` in which it comes up to its
   * speed (`warmedUp`).
   */
  run(ms: number, warmMs: number): Promise<Sample>
}

export interface Effort {
  readonly rounds: number
  /** Of each measurement. */
  readonly ms: number
  /** At most, before the measurement of the first round; a quarter of it in the others. */
  readonly warmMs: number
}

/** Something that moves frames for as long as it is told to. */
export interface Mover {
  move(ms: number): Promise<void>
  /** Frames moved so far. */
  frames(): number
}

const SLICE_MS = 100
/** That many equal slices in a row are steady; equal means within this share of the largest. */
const SLICES = 3
const EQUAL = 0.2
/** Code that ran less often is still interpreted. */
const LEAST_FRAMES = 5_000

/** Lets it move frames until its rate changes no more, or the time is over. */
export async function warmedUp(
  mover: Mover,
  mostMs: number,
  now: () => number = () => performance.now(),
): Promise<void> {
  const begin = mover.frames()
  const end = now() + mostMs
  const rates: number[] = []
  while (now() < end) {
    const before = mover.frames()
    const started = now()
    await mover.move(SLICE_MS)
    rates.push((mover.frames() - before) / (now() - started))
    const last = rates.slice(-SLICES)
    const steady = last.length === SLICES && Math.min(...last) >= (1 - EQUAL) * Math.max(...last)
    if (steady && mover.frames() - begin >= LEAST_FRAMES) return
  }
}

/** @returns frames in so many seconds */
export async function moved(
  mover: Mover,
  ms: number,
): Promise<{ readonly frames: number; readonly seconds: number }> {
  const before = mover.frames()
  const started = performance.now()
  await mover.move(ms)
  const frames = mover.frames() - before
  return { frames, seconds: (performance.now() - started) / 1000 }
}

export interface Measured {
  readonly rows: Row[]
  readonly missing: Missing[]
}

/** Every contestant once in each round, so that a change of the machine's mood meets them all. */
export async function interleaved(
  contestants: readonly Contestant[],
  { rounds, ms, warmMs }: Effort,
  say: (line: string) => void,
): Promise<Measured> {
  const samples = new Map<Contestant, Sample[]>(contestants.map((each) => [each, []]))
  const missing: Missing[] = []
  for (let round = 0; round < rounds; round++) {
    for (const [contestant, mine] of samples) {
      const { section, name } = contestant
      try {
        mine.push(finite(await contestant.run(ms, round === 0 ? warmMs : warmMs / 4)))
        say(`${section}: ${name}${rounds > 1 ? `, round ${round + 1} of ${rounds}` : ''}`)
      } catch (error) {
        samples.delete(contestant)
        const reason = messageOf(error)
        missing.push({ name: `${section}: ${name}`, reason })
        say(`${section}: ${name} is not measured: ${reason}`)
      }
    }
  }
  const rows = [...samples].map(([{ section, name, note }, mine]) => ({
    ...{ section, name, figures: { ...combined(mine), ...spread(mine, SECTIONS[section].main) } },
    ...(note === undefined ? {} : { note }),
  }))
  return { rows, missing }
}

/** @throws RangeError for what is no figure, such as a share of nothing */
function finite(sample: Sample): Sample {
  for (const [name, value] of Object.entries(sample)) {
    if (!Number.isFinite(value)) throw new RangeError(`${name} is ${value}`)
  }
  return sample
}

export interface Counters {
  /** Frames that came out of the tap: written by its owner. */
  readonly out: number
  readonly outBytes: number
  /** Frames that went in: read by its owner. */
  readonly in: number
  /** Those, and the ones for which its queue had no room. */
  readonly offered: number
}

/** The kernel's own counts, the same for whoever moves the frames. */
export function counters(name: string): Counters {
  const line = readFileSync('/proc/net/dev', 'latin1')
    .split('\n')
    .find((each) => each.trimStart().startsWith(`${name}:`))
  if (line === undefined) throw new Error(`no interface ${name}`)
  // Documentation of /proc/net/dev: eight fields received, then eight transmitted.
  const fields = line
    .slice(line.indexOf(':') + 1)
    .trim()
    .split(/\s+/)
    .map(Number)
  return { outBytes: fields[0], out: fields[1], in: fields[9], offered: fields[9] + fields[11] }
}

/** To nobody, in an Ethernet type for experiments. */
export function frameOf(bytes: number): Uint8Array {
  const frame = new Uint8Array(bytes)
  frame.set([2, 0, 0, 0, 0, 0x12, 2, 0, 0, 0, 0, 0x11, 0x88, 0xb5])
  return frame
}

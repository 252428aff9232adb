/**
 * Sequences done to two devices at once, until they tell something different; and the shortest
 * part of such a sequence that still does.
 */
import type { BareDevice } from '../bare-device'
import { Random, sequence } from './random'
import { parseStep, stepText } from './step'
import type { Step } from './step'
import { World } from './world'

/** A sequence on which the devices differ, as short as it became. */
export interface Difference {
  /** Which sequence of the seed it was. */
  readonly sequence: number
  /** Each step with what the first device told; see `corpusText`. */
  readonly text: string
  /** What the second told at the last step. */
  readonly other: string
}

export interface FuzzResult {
  readonly seed: number
  readonly sequences: number
  readonly steps: number
  /** How many steps of each kind were done. */
  readonly kinds: Readonly<Record<string, number>>
  readonly differences: readonly Difference[]
  /** Sequences that differed once, and did not again. */
  readonly unsteady: number
}

/** How often a difference is tried again before it counts. */
const AGAIN = 2
/** After so many the rest says nothing new. */
const MOST_DIFFERENCES = 5

/** @param say is told of progress, now and then */
export function fuzz(
  one: BareDevice,
  other: BareDevice,
  seed: number,
  sequences: number,
  say: (line: string) => void = () => undefined,
): FuzzResult {
  const differences: Difference[] = []
  const kinds: Record<string, number> = {}
  let steps = 0
  let unsteady = 0
  let done = 0
  for (; done < sequences && differences.length < MOST_DIFFERENCES; done++) {
    const made = sequence(new Random(Math.imul(seed, 0x9e37_79b9) + done))
    steps += made.length
    for (const step of made) kinds[step.do] = (kinds[step.do] ?? 0) + 1
    if (done % 100 === 99) say(`${done + 1} sequences, ${steps} steps`)
    if (differs(one, other, made) === undefined) continue
    if (!steadily(one, other, made)) {
      unsteady++
      continue
    }
    const short = shrunk(made, (fewer) => steadily(one, other, fewer))
    const text = corpusText(short, tellings(one, short))
    const last = tellings(other, short).at(-1) ?? ''
    differences.push({ sequence: done, text, other: last })
    say(`sequence ${done} differs`)
  }
  return { seed, sequences: done, steps, kinds, differences, unsteady }
}

/** The index of the first step of which the two tell different things. */
function differs(one: BareDevice, other: BareDevice, steps: readonly Step[]): number | undefined {
  const worlds = [new World(one), new World(other)]
  const at = steps.findIndex((step) => worlds[0].take(step) !== worlds[1].take(step))
  return at < 0 ? undefined : at
}

function steadily(one: BareDevice, other: BareDevice, steps: readonly Step[]): boolean {
  for (let i = 0; i < AGAIN; i++) if (differs(one, other, steps) === undefined) return false
  return true
}

/**
 * Takes away steps as long as what is left still fails: halves first, then smaller parts
 * (Zeller's delta debugging).
 */
export function shrunk<T>(all: readonly T[], fails: (part: readonly T[]) => boolean): readonly T[] {
  let left = all
  for (let size = Math.ceil(left.length / 2); size >= 1;) {
    let smaller: readonly T[] | undefined
    for (let from = 0; from < left.length && smaller === undefined; from += size) {
      const rest = [...left.slice(0, from), ...left.slice(from + size)]
      if (rest.length > 0 && fails(rest)) smaller = rest
    }
    if (smaller !== undefined) left = smaller
    else if (size === 1) break
    else size = Math.ceil(size / 2)
    size = Math.min(size, left.length)
  }
  return left
}

/** What a device tells of each step. */
export function tellings(device: BareDevice, steps: readonly Step[]): string[] {
  const world = new World(device)
  return steps.map((step) => world.take(step))
}

/** A sequence with its tellings, as it is kept: each step on a line, what was told below it. */
export function corpusText(steps: readonly Step[], told: readonly string[]): string {
  return steps.map((step, i) => `${stepText(step)}\n  ${told[i]}\n`).join('')
}

export interface Kept {
  readonly steps: readonly Step[]
  readonly told: readonly string[]
}

/** Reads it back; lines that begin with # are remarks. @throws RangeError */
export function parseCorpus(text: string): Kept {
  const lines = text.split('\n').filter((line) => line.trim() !== '' && !line.startsWith('#'))
  const steps = lines.filter((line) => !line.startsWith('  ')).map(parseStep)
  const told = lines.filter((line) => line.startsWith('  ')).map((line) => line.trim())
  if (steps.length !== told.length) throw new RangeError('each step has one telling')
  return { steps, told }
}

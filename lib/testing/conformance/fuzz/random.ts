/** Random sequences from a seed: the same seed gives the same sequences, everywhere. */
import type { Access } from '../../../address'
import { PAGE } from '../bench'
import { DATA_BYTES, RINGS, SIZE, TABLES } from './step'
import type { Chained, Place, RingName, Step } from './step'

/** Numbers of 32 bits (mulberry32). */
export class Random {
  #state: number

  constructor(seed: number) {
    this.#state = seed >>> 0
  }

  /** 0 to `below` - 1. */
  number(below: number): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0
    let mixed = this.#state
    mixed = Math.imul(mixed ^ (mixed >>> 15), mixed | 1)
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)
    return ((mixed ^ (mixed >>> 14)) >>> 0) % below
  }

  one<T>(choices: readonly T[]): T {
    return choices[this.number(choices.length)]
  }

  chance(percent: number): boolean {
    return this.number(100) < percent
  }

  /** By weight. */
  pick<T>(choices: readonly (readonly [number, T])[]): T {
    let at = this.number(choices.reduce((sum, [weight]) => sum + weight, 0))
    for (const [weight, choice] of choices) {
      if (at < weight) return choice
      at -= weight
    }
    throw new RangeError('nothing to pick from')
  }
}

const ACCESSES: readonly Access[] = ['none', 'read', 'write', 'readwrite']
const PARTS = ['desc', 'avail', 'used'] as const
/** Lengths of buffers: frames, pages, pieces of a header, nothing, and what no buffer has. */
const LENGTHS = [
  ...[60, 72, 200, 1514, PAGE, 5000, 2 * PAGE],
  ...[12, 20, 26, 40, 54],
  ...[0, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff],
]
/** Shorter than a header: the worker tries it again and again, and costs its processor. */
const SHORT = [1, 11]
const MOST_STEPS = 40

/** A sequence: rings that mostly run, then anything. */
export function sequence(random: Random): Step[] {
  const steps: Step[] = []
  for (const ring of RINGS) {
    if (random.chance(90)) steps.push(...running(random, ring))
    if (random.chance(60)) steps.push(...offered(random, ring))
  }
  if (random.chance(70)) steps.push({ do: 'receive', count: 1 + random.number(3) })
  const more = 5 + random.number(MOST_STEPS - 5)
  while (steps.length < more) steps.push(...random.pick(KINDS)(random))
  return steps
}

type Kind = (random: Random) => readonly Step[]

const KINDS: readonly (readonly [number, Kind])[] = [
  [10, (random) => [grant(random)]],
  [6, (random) => [{ do: 'invalidate', ...range(random) }]],
  [8, (random) => offered(random, random.one(RINGS))],
  [3, (random) => [descriptor(random, random.one(RINGS))]],
  [3, (random) => [entry(random)]],
  [3, (random) => [{ do: 'offer', ring: random.one(RINGS), head: head(random) }]],
  [7, (random) => [{ do: 'kick', ring: random.one(RINGS) }]],
  [6, () => [{ do: 'drain' }]],
  [10, () => [{ do: 'answer' }]],
  [4, (random) => [{ do: 'receive', count: 1 + random.number(3) }]],
  [1, (random) => [{ do: 'features', mergeable: random.chance(70) }]],
  [
    1,
    (random) => [{ do: random.one(['stop', 'base', 'resize'] as const), ring: random.one(RINGS) }],
  ],
  [2, (random) => [{ do: 'start', ring: random.one(RINGS) }]],
  [1, (random) => [{ do: 'move', ring: random.one(RINGS), half: random.number(2) }]],
  [1, (random) => running(random, random.one(RINGS))],
  [1, (random) => [{ do: random.chance(70) ? 'memory' : 'owner' }]],
]

function running(random: Random, ring: RingName): Step[] {
  const access: Access = random.chance(95) ? 'readwrite' : random.one(ACCESSES)
  const parts = PARTS.map((part): Step => {
    const at = { name: `${ring}.${part}`, offset: 0 }
    return { do: 'update', at, bytes: random.chance(90) ? 0x1_0000 : PAGE, access }
  })
  return [...parts, { do: 'start', ring }]
}

/** A chain of one to three descriptors, offered and mostly kicked. */
function offered(random: Random, ring: RingName): Step[] {
  const first = random.number(SIZE)
  const count = random.chance(70) ? 1 : 2 + random.number(2)
  const steps = Array.from({ length: count }, (_, i): Step => {
    const next = (first + i + 1) % SIZE
    const chain = buffer(random, ring === 'rx')
    const last = i === count - 1
    const flags = last ? chain.flags : chain.flags | 1
    return { do: 'descriptor', of: ring, index: (first + i) % SIZE, ...chain, flags, next }
  })
  const kick: Step[] = random.chance(80) ? [{ do: 'kick', ring }] : []
  return [...steps, { do: 'offer', ring, head: first }, ...kick]
}

/** A buffer of the right direction, mostly. */
function buffer(random: Random, writable: boolean): Chained {
  const indirect = random.chance(10)
  const right = random.chance(95) ? writable : !writable
  const flags = (right ? 2 : 0) | (indirect ? 4 : 0)
  if (!indirect) return { at: dataPlace(random), length: length(random), flags, next: 0 }
  const entries = random.number(4)
  const offset = TABLES + random.one([0, 16, PAGE - 16])
  return {
    at: random.chance(90) ? { name: 'buf', offset } : dataPlace(random),
    length: random.chance(90) ? 16 * entries : length(random),
    flags,
    next: random.number(SIZE),
  }
}

/** Anything at all in a descriptor: loops, tables in tables, indices past the end. */
function descriptor(random: Random, of: RingName): Step {
  return { do: 'descriptor', of, index: random.number(SIZE), ...anything(random) }
}

/** The table begins at three places of its two pages; so entries are where those are. */
function entry(random: Random): Step {
  const index = random.pick([
    [4, random.number(4)],
    [1, PAGE / 16 - 1 + random.number(3)],
  ])
  const usual = { ...buffer(random, random.chance(50)), next: random.number(4) }
  const flags = random.chance(50) ? usual.flags : usual.flags | 1
  return { do: 'entry', index, ...usual, flags }
}

function anything(random: Random): Chained {
  return {
    at: dataPlace(random),
    length: length(random),
    flags: random.number(8),
    next: random.chance(80) ? random.number(SIZE) : random.one([SIZE, 0xffff]),
  }
}

function head(random: Random): number {
  return random.chance(90) ? random.number(SIZE) : random.one([SIZE, 255, 0xffff])
}

function length(random: Random): number {
  return random.chance(2) ? random.one(SHORT) : random.one(LENGTHS)
}

function dataPlace(random: Random): Place {
  const page = random.number(DATA_BYTES / PAGE) * PAGE
  const within = random.pick([
    [6, 0],
    [2, random.number(PAGE)],
    [1, PAGE - 1],
    [1, PAGE - 30],
  ])
  const name = random.pick([
    [40, 'buf'],
    [4, 'top'],
    [1, 'far'],
    [1, 'odd'],
    [1, `${random.one(RINGS)}.${random.one(PARTS)}`],
  ])
  return { name, offset: page + within }
}

/** What an UPDATE grants; more than the memory that is known only to be written. */
function grant(random: Random): Step {
  const { at, bytes } = range(random)
  if (at.name === 'buf' && random.chance(3)) {
    return { do: 'update', at, bytes: random.one([2 ** 32, 2 ** 40]), access: 'write' }
  }
  return { do: 'update', at, bytes, access: random.one(ACCESSES) }
}

/** Pages of the buffers, or of a ring; now and then no whole ones. */
function range(random: Random): { readonly at: Place; readonly bytes: number } {
  const name = random.pick([
    [20, 'buf'],
    [3, 'top'],
    [3, `${random.one(RINGS)}.${random.one(PARTS)}`],
  ])
  const first = random.number(name === 'buf' ? 10 : 8)
  const most = name === 'buf' ? 10 : 8
  const pages = random.chance(60) ? 1 : 1 + random.number(most - first)
  if (random.chance(92)) return { at: { name, offset: first * PAGE }, bytes: pages * PAGE }
  const offset = first * PAGE + random.number(PAGE)
  const room = most * PAGE - offset
  return { at: { name, offset }, bytes: Math.min(room, random.one([1, 3, 7, 100, 2048, 5000])) }
}

/**
 * One step of a random sequence, and its line of text: what a driver or a VMM can do to a device.
 *
 * Places are written as a name and an offset (`buf+0x1000`), so that a sequence can be read. Each
 * place leads to memory of its own, wherever an UPDATE names it; so nothing that is granted leads
 * out of the memory that both sides know.
 */
import type { Access } from '../../../address'
import { BUFFERS, BUFFERS_GPA, ROOM } from '../bench'

export const RINGS = ['rx', 'tx'] as const
export type RingName = (typeof RINGS)[number]
/** Descriptors of each ring. */
export const SIZE = 8
/** Data is in the first pages of `buf`, indirect tables in the two that follow. */
export const DATA_BYTES = 0x8000
export const TABLES = DATA_BYTES
/** Where a moved ring has its parts: in the upper half of each room. */
export const MOVED = 0x8000

/** Where a name begins: as iova, and in guest memory. */
const PLACES: Readonly<Record<string, { readonly iova: bigint; readonly gpa: number }>> = {
  ...Object.fromEntries(
    RINGS.flatMap((ring, index) =>
      ['desc', 'avail', 'used'].map((part, i) => [
        `${ring}.${part}`,
        {
          iova: 0x1000_0000n + BigInt(index) * 0x100_0000n + BigInt(i * ROOM),
          gpa: (index * 3 + i) * ROOM,
        },
      ]),
    ),
  ),
  buf: { iova: BUFFERS, gpa: BUFFERS_GPA },
  /** The last eight pages of the address space; the same memory as the first of `buf`. */
  top: { iova: (1n << 64n) - 0x8000n, gpa: BUFFERS_GPA },
  /** Never granted. */
  far: { iova: 0x5000_0000n, gpa: BUFFERS_GPA },
  /** Neither half of a 48-bit address space. */
  odd: { iova: 0x8000_0000_0000_0000n, gpa: BUFFERS_GPA },
}
export type PlaceName = string

export interface Place {
  readonly name: PlaceName
  readonly offset: number
}

export interface Chained {
  readonly at: Place
  readonly length: number
  /** 1 NEXT, 2 WRITE, 4 INDIRECT. */
  readonly flags: number
  readonly next: number
}

export type Step =
  | { readonly do: 'update'; readonly at: Place; readonly bytes: number; readonly access: Access }
  | { readonly do: 'invalidate'; readonly at: Place; readonly bytes: number }
  /** A descriptor of a ring, or of the table that indirect descriptors name. */
  | ({ readonly do: 'descriptor'; readonly of: RingName; readonly index: number } & Chained)
  | ({ readonly do: 'entry'; readonly index: number } & Chained)
  | { readonly do: 'offer'; readonly ring: RingName; readonly head: number }
  | { readonly do: 'kick' | 'start' | 'stop' | 'base' | 'resize'; readonly ring: RingName }
  /** SET_VRING_ADDR, running or not: to the lower or the upper half of each room. */
  | { readonly do: 'move'; readonly ring: RingName; readonly half: number }
  /** All questions are read; and each page of them is granted for reading and writing. */
  | { readonly do: 'drain' | 'answer' }
  | { readonly do: 'receive'; readonly count: number }
  | { readonly do: 'features'; readonly mergeable: boolean }
  | { readonly do: 'memory' | 'owner' }

export function iovaOf({ name, offset }: Place): bigint {
  return (PLACES[name].iova + BigInt(offset)) & ((1n << 64n) - 1n)
}

export function gpaOf({ name, offset }: Place): number {
  return PLACES[name].gpa + offset
}

/** The place that an iova is in, if any. */
export function placeOf(iova: bigint): Place | undefined {
  for (const [name, { iova: first }] of Object.entries(PLACES)) {
    if (iova >= first && iova < first + BigInt(ROOM)) return { name, offset: Number(iova - first) }
  }
  return undefined
}

export function placeText({ name, offset }: Place): string {
  return offset === 0 ? name : `${name}+0x${offset.toString(16)}`
}

function parsePlace(text: string): Place {
  const [name, offset = '0'] = text.split('+')
  if (!(name in PLACES)) throw new RangeError(`no place of this name: ${text}`)
  return { name, offset: whole(offset) }
}

function whole(text: string): number {
  const number = Number(text)
  if (!Number.isSafeInteger(number) || number < 0) throw new RangeError(`not a number: ${text}`)
  return number
}

const hex = (value: number): string => (value < 10 ? String(value) : `0x${value.toString(16)}`)

export function stepText(step: Step): string {
  switch (step.do) {
    case 'update':
      return `update ${placeText(step.at)} ${hex(step.bytes)} ${step.access}`
    case 'invalidate':
      return `invalidate ${placeText(step.at)} ${hex(step.bytes)}`
    case 'descriptor':
      return `descriptor ${step.of} ${step.index} ${chainedText(step)}`
    case 'entry':
      return `entry ${step.index} ${chainedText(step)}`
    case 'offer':
      return `offer ${step.ring} ${step.head}`
    case 'move':
      return `move ${step.ring} ${step.half}`
    case 'receive':
      return `receive ${step.count}`
    case 'features':
      return `features ${step.mergeable ? 'mergeable' : 'plain'}`
    case 'kick':
    case 'start':
    case 'stop':
    case 'base':
    case 'resize':
      return `${step.do} ${step.ring}`
    case 'drain':
    case 'answer':
    case 'memory':
    case 'owner':
      return step.do
  }
}

function chainedText({ at, length, flags, next }: Chained): string {
  return `${placeText(at)} ${hex(length)} ${flags} ${next}`
}

/** @throws RangeError for a line that is no step */
export function parseStep(line: string): Step {
  const [word, ...words] = line.trim().split(/\s+/)
  switch (word) {
    case 'update':
      return {
        do: word,
        at: parsePlace(words[0]),
        bytes: whole(words[1]),
        access: access(words[2]),
      }
    case 'invalidate':
      return { do: word, at: parsePlace(words[0]), bytes: whole(words[1]) }
    case 'descriptor':
      return { do: word, of: ring(words[0]), index: whole(words[1]), ...chained(words.slice(2)) }
    case 'entry':
      return { do: word, index: whole(words[0]), ...chained(words.slice(1)) }
    case 'offer':
      return { do: word, ring: ring(words[0]), head: whole(words[1]) }
    case 'move':
      return { do: word, ring: ring(words[0]), half: whole(words[1]) }
    case 'receive':
      return { do: word, count: whole(words[0]) }
    case 'features':
      return { do: word, mergeable: words[0] === 'mergeable' }
    case 'kick':
    case 'start':
    case 'stop':
    case 'base':
    case 'resize':
      return { do: word, ring: ring(words[0]) }
    case 'drain':
    case 'answer':
    case 'memory':
    case 'owner':
      return { do: word }
    default:
      throw new RangeError(`not a step: ${line}`)
  }
}

function chained(words: readonly string[]): Chained {
  const [at, length, flags, next] = words
  return { at: parsePlace(at), length: whole(length), flags: whole(flags), next: whole(next) }
}

function ring(word: string): RingName {
  const found = RINGS.find((name) => name === word)
  if (found === undefined) throw new RangeError(`rings are rx and tx: ${word}`)
  return found
}

function access(word: string): Access {
  const found = (['none', 'read', 'write', 'readwrite'] as const).find((name) => name === word)
  if (found === undefined) throw new RangeError(`not an access: ${word}`)
  return found
}

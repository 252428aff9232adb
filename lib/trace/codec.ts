/**
 * Traces as bytes: a header that says what was recorded, then one record an event.
 *
 * Numbers are little-endian base-128 (LEB128), times are differences, so that a million events are
 * about ten megabytes. A trace that ends in the middle of a record, because its writer was killed,
 * is read up to the last whole one. The layout is described in `docs/trace-format.md`.
 */
import { closeSync, openSync, readFileSync, writeSync } from 'node:fs'
import { EVENTS } from './event'
import type { EventKind, TraceEvent, TraceSink } from './event'

export const TRACE_VERSION = 1
const MAGIC = Uint8Array.from('IOTLBTRC', (letter) => letter.charCodeAt(0))
const CHUNK = 1 << 16
/**
 * A record other than its bytes and lists: ten numbers of eight bytes at most, and words of ten.
 */
const RECORD = 160
/** Numbers of a list, and bytes of a run: what is longer is no record. */
const LONGEST = 1 << 20

/** What is said once, in words. */
export interface TraceHeader {
  readonly version: number
  /** When `at` was 0, in milliseconds since 1970. */
  readonly startedAt: number
  /** What the recording program wants to be known: its mapping, policy, kernel … */
  readonly about: Readonly<Record<string, string | number | boolean>>
}

interface Plan {
  readonly kind: EventKind
  readonly code: number
  readonly names: readonly string[]
  readonly types: readonly string[]
}

const plans = Object.entries(EVENTS).map(([kind, { code, fields }]): Plan => {
  return {
    kind: kind as EventKind,
    code,
    names: Object.keys(fields),
    types: Object.values(fields),
  }
})
const planOf = new Map<string, Plan>(plans.map((plan) => [plan.kind, plan]))
const planOfCode: readonly (Plan | undefined)[] = plans.reduce<(Plan | undefined)[]>(
  (all, plan) => {
    all[plan.code] = plan
    return all
  },
  [],
)

type Fields = Readonly<Record<string, number | bigint | Uint8Array | readonly number[]>>

/** Encodes events and hands out chunks of bytes; `close()` hands out the last. */
export class TraceWriter implements Disposable {
  readonly sink: TraceSink = (event) => {
    this.#append(event)
  }
  #bytes = new Uint8Array(CHUNK)
  #used = 0
  #before = 0
  #events = 0
  readonly #write: (chunk: Uint8Array) => void

  constructor(
    write: (chunk: Uint8Array) => void,
    { startedAt = Date.now(), about = {} }: Partial<Omit<TraceHeader, 'version'>> = {},
  ) {
    this.#write = write
    const header: TraceHeader = { version: TRACE_VERSION, startedAt, about }
    const json = new TextEncoder().encode(JSON.stringify(header))
    this.#bytes.set(MAGIC)
    this.#used = MAGIC.length
    this.#number(TRACE_VERSION)
    this.#number(json.length)
    this.#run(json)
  }

  get events(): number {
    return this.#events
  }

  /** Hands out what was not handed out yet. */
  flush(): void {
    if (this.#used > 0) this.#write(this.#bytes.subarray(0, this.#used))
    this.#used = 0
  }

  close(): void {
    this.flush()
  }

  [Symbol.dispose](): void {
    this.close()
  }

  #append(event: TraceEvent): void {
    const plan = planOf.get(event.kind)!
    const fields = event as unknown as Fields
    if (this.#used + RECORD > CHUNK) this.flush()
    this.#bytes[this.#used++] = plan.code
    this.#number(Math.max(0, event.at - this.#before))
    this.#before = Math.max(this.#before, event.at)
    for (const [i, name] of plan.names.entries()) this.#field(plan.types[i], fields[name])
    this.#events++
  }

  #field(type: string, value: Fields[string]): void {
    if (typeof value === 'number') this.#number(value)
    else if (typeof value === 'bigint') {
      this.#number(Number(value & 0xffffffffn))
      this.#number(Number((value >> 32n) & 0xffffffffn))
    } else if (value instanceof Uint8Array) {
      this.#number(value.length)
      this.#run(value)
    } else {
      if (type !== 'numbers') throw new TypeError(`a field of a trace is a ${type}`)
      this.#number(value.length)
      for (const each of value) {
        if (this.#used + 8 > CHUNK) this.flush()
        this.#number(each)
      }
    }
  }

  #number(value: number): void {
    const bytes = this.#bytes
    let rest = value
    while (rest > 0x7fffffff) {
      bytes[this.#used++] = (rest % 128) | 128
      rest = Math.floor(rest / 128)
    }
    while (rest > 127) {
      bytes[this.#used++] = (rest & 127) | 128
      rest >>>= 7
    }
    bytes[this.#used++] = rest
  }

  #run(run: Uint8Array): void {
    for (let done = 0; done < run.length;) {
      if (this.#used === CHUNK) this.flush()
      const length = Math.min(run.length - done, CHUNK - this.#used)
      this.#bytes.set(run.subarray(done, done + length), this.#used)
      this.#used += length
      done += length
    }
    if (this.#used + RECORD > CHUNK) this.flush()
  }
}

/** A writer into a new file. @throws Error as Node's `openSync` and `writeSync` */
export function traceFile(
  path: string,
  options: Partial<Omit<TraceHeader, 'version'>> = {},
): TraceWriter {
  const file = openSync(path, 'w')
  const writer = new TraceWriter((chunk) => writeSync(file, chunk), options)
  let open = true
  const close = writer.close.bind(writer)
  writer.close = () => {
    if (!open) return
    open = false
    close()
    closeSync(file)
  }
  return writer
}

export interface Trace {
  readonly header: TraceHeader
  /** Each iteration reads from the beginning. */
  readonly events: Iterable<TraceEvent>
}

/** @throws SyntaxError for what is no trace, or one of another version */
export function readTrace(from: string | Uint8Array): Trace {
  const read = typeof from === 'string' ? readFileSync(from) : from
  const bytes = new Uint8Array(read.buffer, read.byteOffset, read.byteLength)
  if (!MAGIC.every((byte, i) => bytes[i] === byte)) throw new SyntaxError('this is not a trace')
  const cursor = new Cursor(bytes, MAGIC.length)
  const version = cursor.number()
  if (version !== TRACE_VERSION) {
    throw new SyntaxError(`a trace of version ${version}; this library reads ${TRACE_VERSION}`)
  }
  const header = JSON.parse(new TextDecoder().decode(cursor.run(cursor.number()))) as TraceHeader
  const start = cursor.at
  return { header, events: { [Symbol.iterator]: () => decoded(new Cursor(bytes, start)) } }
}

function* decoded(cursor: Cursor): Generator<TraceEvent, void> {
  let at = 0
  while (!cursor.done) {
    const record = cursor.at
    const plan = planOfCode[cursor.number()]
    if (plan === undefined) throw new SyntaxError(`no such event at byte ${record}`)
    at += cursor.number()
    const event: Record<string, unknown> = { kind: plan.kind, at }
    for (let i = 0; i < plan.names.length; i++) event[plan.names[i]] = cursor.field(plan.types[i])
    if (cursor.short) return
    yield event as unknown as TraceEvent
  }
}

class Cursor {
  /** Something was read beyond the end: the record is not whole. */
  short = false

  constructor(
    private readonly bytes: Uint8Array,
    public at: number,
  ) {}

  get done(): boolean {
    return this.at >= this.bytes.length
  }

  number(): number {
    const { bytes } = this
    let value = 0
    let scale = 1
    for (let read = 0; read < 8; read++) {
      if (this.at >= bytes.length) {
        this.short = true
        return 0
      }
      const byte = bytes[this.at++]
      value += (byte & 127) * scale
      if (byte < 128) return value
      scale *= 128
    }
    throw new SyntaxError(`no number ends at byte ${this.at}`)
  }

  run(length: number): Uint8Array {
    const { at } = this
    this.at += length
    if (this.at > this.bytes.length) this.short = true
    return this.bytes.subarray(at, this.at)
  }

  field(type: string): number | bigint | Uint8Array | readonly number[] {
    if (type === 'number') return this.number()
    if (type === 'word') {
      const low = this.number()
      return (BigInt(this.number()) << 32n) | BigInt(low)
    }
    const length = this.number()
    if (length > LONGEST) throw new SyntaxError(`a run of ${length} at byte ${this.at}`)
    if (type === 'bytes') return this.run(length)
    return Array.from({ length: this.short ? 0 : length }, () => this.number())
  }
}

import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { TRACE_VERSION, TraceWriter, readTrace, traceFile } from '../../lib/trace/codec'
import { EVENTS } from '../../lib/trace/event'
import type { TraceEvent } from '../../lib/trace/event'

function encoded(events: readonly TraceEvent[], about = {}): Uint8Array {
  const chunks: Uint8Array[] = []
  using writer = new TraceWriter((chunk) => chunks.push(chunk.slice()), { startedAt: 1, about })
  for (const event of events) writer.sink(event)
  writer.close()
  return Buffer.concat(chunks)
}

const number = fc.oneof(fc.nat(300), fc.integer({ min: 0, max: Number.MAX_SAFE_INTEGER }))
const VALUES = {
  number,
  word: fc.bigInt(0n, 2n ** 64n - 1n),
  bytes: fc.uint8Array({ maxLength: 2000 }),
  numbers: fc.array(number, { maxLength: 40 }),
} as const
const kinds = Object.entries(EVENTS).map(([kind, { fields }]) =>
  fc.record({
    kind: fc.constant(kind),
    at: fc.nat(10_000),
    ...Object.fromEntries(Object.entries(fields).map(([name, type]) => [name, VALUES[type]])),
  }),
)
const anyEvents = fc.array(fc.oneof(...kinds), { maxLength: 60 }).map((events) => {
  let at = 0
  return events.map((event) => ({ ...event, at: (at += event.at) })) as unknown as TraceEvent[]
})

describe('the codec of traces', () => {
  it('reads what it wrote, whatever it was', () => {
    fc.assert(
      fc.property(anyEvents, (events) => {
        const trace = readTrace(encoded(events, { mapping: 'strict' }))
        expect(trace.header).toEqual({
          ...{ version: TRACE_VERSION, startedAt: 1, about: { mapping: 'strict' } },
        })
        expect([...trace.events]).toEqual(events)
        expect([...trace.events]).toHaveLength(events.length)
      }),
      { seed: 6, numRuns: 100 },
    )
  })

  it('reads a trace that was cut short up to its last whole event', () => {
    const events = Array.from({ length: 50 }, (_, i): TraceEvent => {
      return { kind: 'miss', at: i * 1000, device: 0, page: 2 ** 40 + i, offset: 7, access: 1 }
    })
    const bytes = encoded(events)
    for (let cut = 1; cut < 30; cut++) {
      const read = [...readTrace(bytes.subarray(0, bytes.length - cut)).events]
      expect(read).toEqual(events.slice(0, read.length))
      expect(read.length).toBeGreaterThan(46)
      expect(read.length).toBeLessThan(50)
    }
  })

  it('refuses what is no trace, another version, and an event that it does not know', () => {
    expect(() => readTrace(Buffer.from('hello, world'))).toThrow('not a trace')
    const bytes = encoded([])
    const other = Uint8Array.from(bytes)
    other[8] = TRACE_VERSION + 1
    expect(() => readTrace(other)).toThrow(`a trace of version ${TRACE_VERSION + 1}`)
    expect(() => [...readTrace(Buffer.concat([bytes, Buffer.of(99, 0)])).events]).toThrow(
      'no such event',
    )
  })

  it('takes less than 20 bytes an event', () => {
    const events: TraceEvent[] = []
    for (let i = 0; i < 1000; i++) {
      const [device, page] = [0, 0xffe00 + i]
      events.push({ kind: 'miss', at: i * 30_000, device, page, offset: 0x123, access: 1 })
      const pages = { firstPage: page, lastPage: page }
      const walk = { page, wanted: 1, ok: 1, ...pages, gpaPage: 0x2000 + i, access: 3, code: 0 }
      events.push({ kind: 'walk', at: i * 30_000 + 3000, device, ...walk })
      const update = { ...pages, hvaPage: 0x7f0012345, access: 3, error: 0 }
      events.push({ kind: 'update', at: i * 30_000 + 9000, device, ...update })
    }
    expect(encoded(events).length / events.length).toBeLessThan(20)
  })

  it('writes a file', () => {
    const directory = mkdtempSync(join(tmpdir(), 'trace-'))
    try {
      const path = join(directory, 'run.trace')
      const writer = traceFile(path)
      const event: TraceEvent = { kind: 'kick', at: 5, device: 0, queue: 1 }
      for (let i = 0; i < 20_000; i++) writer.sink(event)
      writer.close()
      writer.close()
      expect(writer.events).toBe(20_000)
      expect([...readTrace(path).events]).toHaveLength(20_000)
      writeFileSync(path, readFileSync(path).subarray(0, 4))
      expect(() => readTrace(path)).toThrow(SyntaxError)
    } finally {
      rmSync(directory, { recursive: true })
    }
  })
})

describe('the table of events', () => {
  it('has each code once', () => {
    const codes = Object.values(EVENTS).map(({ code }) => code)
    expect(new Set(codes).size).toBe(codes.length)
  })

  it('is what docs/trace-format.md says', () => {
    const page = readFileSync(join(__dirname, '../../docs/trace-format.md'), 'utf8')
    const rows = [...page.matchAll(/^\| (\d+) \| `(\w+)` \| (\w+) \| ([^|]*) \|/gm)]
    const told = rows.map(([, code, kind, role, fields]) => [
      Number(code),
      kind,
      role,
      fields.trim(),
    ])
    const real = Object.entries(EVENTS).map(([kind, { code, role, fields }]) => {
      const list = Object.entries(fields).map(([name, type]) => {
        return (type as string) === 'number' ? name : `${name}: ${type}`
      })
      return [code, kind, role, list.join(', ')]
    })
    expect(told).toEqual(real)
  })
})

import { openSync, writeFileSync } from 'node:fs'
import { afterEach, describe, expect, it } from 'vitest'
import { native } from '../../lib/native'
import {
  EFAULT,
  O_NONBLOCK,
  O_RDWR,
  PAGE,
  cleanUp,
  eventfd,
  flagsOf,
  loopback,
  made,
  mapped,
  run,
  temporary,
  turn,
  until,
} from './support'

const EEXIST = -17
const EPERM = -1
const ENODATA = -61
const SIZE = 72
const ONE = new BigUint64Array([1n])

afterEach(cleanUp)

/** Turns of the loop in which five events were read, each of them sent by the listener before. */
async function turnsTaken(busyMicroseconds: number): Promise<number> {
  const event = eventfd(1)
  const turns = new Set<number>()
  let turnNumber = 0
  let left = 5
  const listener = (): void => {
    turns.add(turnNumber)
    if (--left > 0) native().write(event, ONE, 0, 8)
  }
  const poller = made(native().poll(event, new Uint8Array(8), 8, listener, busyMicroseconds))
  while (left > 0) {
    await turn()
    turnNumber++
  }
  poller.close()
  event.close()
  return turns.size
}

describe('a poll', () => {
  it('reads the pending messages first, and calls once per batch with their number', async () => {
    const { fifo } = loopback()
    const buffer = new Uint8Array(4 * SIZE)
    const counts: number[] = []
    const poller = made(native().poll(fifo, buffer, SIZE, (count) => counts.push(count)))
    native().writeMany(fifo, new Uint8Array(6 * SIZE).fill(5), SIZE, 6)
    await until(() => counts.length === 2)
    expect(counts).toEqual([4, 2])
    expect(buffer.every((byte) => byte === 5)).toBe(true)
    poller.close()
    fifo.close()
  })

  it('without a buffer calls with the poll events', async () => {
    const event = eventfd(1)
    const calls: number[] = []
    const poller = made(
      native().poll(event, null, 0, (events) => {
        calls.push(events)
        native().read(event, new Uint8Array(8), 0, 8)
      }),
    )
    await until(() => calls.length > 0)
    await turn()
    expect(calls).toEqual([1])
    poller.close()
    event.close()
  })

  it('makes a blocking descriptor non-blocking', () => {
    const { fifo } = loopback(O_RDWR)
    const poller = made(native().poll(fifo, null, 0, () => undefined))
    expect(flagsOf(fifo.fd) & O_NONBLOCK).toBe(O_NONBLOCK)
    poller.close()
    fifo.close()
  })

  it('is silent once closed, and may be closed again', async () => {
    const event = eventfd(1)
    let calls = 0
    const poller = made(native().poll(event, new Uint8Array(8), 8, () => calls++))
    poller.close()
    poller.close()
    poller.ref()
    poller.unref()
    for (let i = 0; i < 5; i++) await turn()
    expect(calls).toBe(0)
    expect(native().readMany(event, new Uint8Array(8), 8)).toBe(1)
    event.close()
  })

  it('may close itself, or its descriptor, in its own listener', async () => {
    for (const what of ['poller', 'descriptor', 'both'] as const) {
      const event = eventfd(1)
      let calls = 0
      const poller = made(
        native().poll(event, null, 0, () => {
          calls++
          if (what !== 'descriptor') poller.close()
          if (what !== 'poller') event.close()
        }),
      )
      for (let i = 0; i < 5; i++) await turn()
      expect(calls).toBe(1)
      event.close()
    }
  })

  it('ends with its descriptor', async () => {
    const event = eventfd(1)
    let calls = 0
    const poller = made(native().poll(event, null, 0, () => calls++))
    event.close()
    const heir = eventfd(1)
    for (let i = 0; i < 5; i++) await turn()
    expect(calls).toBe(0)
    poller.close()
    heir.close()
  })

  it('may follow another on the same descriptor, but not join it', async () => {
    const event = eventfd(1)
    let calls = 0
    const first = made(native().poll(event, new Uint8Array(8), 8, () => undefined))
    expect(native().poll(event, null, 0, () => undefined)).toBe(EEXIST)
    first.close()
    const second = made(native().poll(event, new Uint8Array(8), 8, () => calls++))
    await until(() => calls === 1)
    second.close()
    event.close()
  })

  it('is refused for a file', () => {
    const path = temporary('file')
    writeFileSync(path, '')
    const file = made(native().adopt(openSync(path, 'r')))
    expect(native().poll(file, null, 0, () => undefined)).toBe(EPERM)
    file.close()
  })

  it('stops with -ENODATA at the end of a stream', async () => {
    const { path, fifo } = loopback()
    const reader = made(native().open(path, O_NONBLOCK))
    const counts: number[] = []
    made(native().poll(reader, new Uint8Array(SIZE), SIZE, (count) => counts.push(count)))
    native().write(fifo, new Uint8Array(SIZE), 0, SIZE)
    fifo.close()
    await until(() => counts.length === 2)
    for (let i = 0; i < 5; i++) await turn()
    expect(counts).toEqual([1, ENODATA])
    reader.close()
  })

  it('stops with -EFAULT when its buffer was detached', async () => {
    const memory = mapped()
    for (const detach of [
      (buffer: ArrayBuffer): unknown => structuredClone(buffer, { transfer: [buffer] }),
      (): void => {
        memory.close()
      },
    ]) {
      const event = eventfd(1)
      const buffer = new Uint8Array(detach.length === 0 ? memory.buffer : new ArrayBuffer(PAGE))
      const counts: number[] = []
      made(native().poll(event, buffer, 8, (count) => counts.push(count)))
      detach(buffer.buffer)
      for (let i = 0; i < 5; i++) await turn()
      expect(counts).toEqual([EFAULT])
      expect(native().readMany(event, new Uint8Array(8), 8)).toBe(1)
      event.close()
    }
  })

  it('that stopped on an error may be started again by its own listener', async () => {
    const event = eventfd(1)
    const memory = mapped()
    const counts: number[] = []
    const start = (buffer: Uint8Array): void => {
      made(
        native().poll(event, buffer, 8, (count) => {
          counts.push(count)
          if (count === EFAULT) start(new Uint8Array(8))
        }),
      )
    }
    start(new Uint8Array(memory.buffer))
    memory.close()
    await until(() => counts.length === 2)
    native().write(event, ONE, 0, 8)
    await until(() => counts.length === 3)
    expect(counts).toEqual([EFAULT, 1, 1])
    event.close()
  })

  it('busy polls for what comes within its time, in one turn of the loop', async () => {
    // Another process may take the processor for longer than the time; not every time.
    let fewest = Infinity
    for (let attempt = 0; attempt < 50 && fewest > 1; attempt++) {
      fewest = Math.min(fewest, await turnsTaken(200))
    }
    expect(fewest).toBe(1)
    expect(await turnsTaken(0)).toBe(5)
  })

  it('gives the loop back after a millisecond of busy polling', async () => {
    const event = eventfd(1)
    const poller = made(
      native().poll(event, new Uint8Array(8), 8, () => native().write(event, ONE, 0, 8), 1000),
    )
    const start = Date.now()
    for (let i = 0; i < 20; i++) await turn()
    expect(Date.now() - start).toBeLessThan(5000)
    poller.close()
    event.close()
  })
})

describe('a listener', () => {
  it('has its ticks and microtasks run before the next, in the async context of its poll', async () => {
    const { output } = await run('order.mjs')
    expect(output.split(',')).toEqual([
      ...['vhost-iotlb:poll', 'vhost-iotlb:poll'],
      ...['a', 'true', 'store', 'a tick', 'a microtask'],
      ...['b', 'true', '', 'b tick', 'b microtask'],
    ])
  })

  it('that throws reaches uncaughtException, each time, and the poll goes on', async () => {
    const { status, output } = await run('throwing.mjs', ['caught'])
    expect(output).toBe([1, 2, 3].map((call) => `uncaughtException: call ${call}; `).join(''))
    expect(status).toBe(0)
  })

  it('that throws ends a process that does not listen, with the stack', async () => {
    const { status, errors } = await run('throwing.mjs', ['uncaught'])
    expect(status).toBe(1)
    expect(errors).toMatch(/Error: from the listener\n\s+at listener .*throwing\.mjs/)
  })

  it('that rejects is an unhandled rejection', async () => {
    const { status, errors } = await run('throwing.mjs', ['rejected'])
    expect(status).toBe(1)
    expect(errors).toContain('Error: from a promise')
  })
})

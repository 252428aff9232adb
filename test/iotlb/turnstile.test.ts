/** The lock between two real threads; the other one runs the compiled library. */
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { Worker } from 'node:worker_threads'
import { afterAll, expect, test } from 'vitest'
import { TURNSTILE_WORDS, Turnstile } from '../../lib/iotlb/turnstile'
import { currentThread, hasEnded } from '../../lib/iotlb/thread-identity'

const DIST = join(import.meta.dirname, '../../dist')
const workers: Worker[] = []

/** Runs `script` in a thread, with `words`, a turnstile and `thread` (who it is) in its scope. */
function thread(words: Int32Array, script: string): Worker {
  const source = `
    const { workerData: { words } } = require('node:worker_threads')
    const { Turnstile } = require(${JSON.stringify(join(DIST, 'iotlb/turnstile.js'))})
    const { currentThread } = require(${JSON.stringify(join(DIST, 'iotlb/thread-identity.js'))})
    const turnstile = new Turnstile({ words })
    ${script}`
  const worker = new Worker(source, { eval: true, execArgv: [], workerData: { words } })
  workers.push(worker)
  return worker
}

const wordsOf = (): Int32Array => new Int32Array(new SharedArrayBuffer(4 * (TURNSTILE_WORDS + 8)))
const [COUNT, READY, TID, BORN, INSIDE] = [2, 3, 4, 5, 6].map((word) => word)

afterAll(async () => {
  for (const worker of workers) await worker.terminate()
})

test('the library is compiled', () => {
  expect(existsSync(join(DIST, 'iotlb/turnstile.js'))).toBe(true)
})

test('two threads that count in it lose nothing, and are never in it together', async () => {
  const words = wordsOf()
  const work = (turnstile: Turnstile): boolean => {
    turnstile.enter()
    const inside = Atomics.add(words, INSIDE, 1)
    words[COUNT] = words[COUNT] + 1
    Atomics.sub(words, INSIDE, 1)
    turnstile.leave()
    return inside === 0
  }
  const worker = thread(
    words,
    `
    Atomics.store(words, ${READY}, 1)
    Atomics.notify(words, ${READY})
    let alone = true
    for (let i = 0; i < 20000; i++) {
      turnstile.enter()
      alone &&= Atomics.add(words, ${INSIDE}, 1) === 0
      words[${COUNT}] = words[${COUNT}] + 1
      Atomics.sub(words, ${INSIDE}, 1)
      turnstile.leave()
    }
    Atomics.store(words, ${READY}, alone ? 2 : 3)`,
  )
  const ended = new Promise((resolve) => worker.once('exit', resolve))
  Atomics.wait(words, READY, 0)
  const turnstile = new Turnstile({ words })
  for (let i = 0; i < 20_000; i++) expect(work(turnstile)).toBe(true)
  await ended
  expect(words[COUNT]).toBe(40_000)
  expect(words[READY]).toBe(2)
})

test.each([
  ['in it', false],
  ['waiting for it', true],
])('who dies %s keeps nobody out', (_, waits) => {
  const words = wordsOf()
  const ready = `Atomics.store(words, ${READY}, 1); Atomics.notify(words, ${READY})`
  const worker = thread(
    words,
    `
    const { thread, born } = currentThread()
    words[${TID}] = thread
    words[${BORN}] = born
    ${waits ? ready : ''}
    turnstile.enter()
    ${ready}
    for (;;);`,
  )
  const otherIsGone = (): boolean => hasEnded({ thread: words[TID], born: words[BORN] })
  const turnstile = new Turnstile({ words, otherIsGone })
  if (waits) turnstile.enter()
  Atomics.wait(words, READY, 0)
  while (waits && !turnstile.wanted);
  expect(otherIsGone()).toBe(false)
  void worker.terminate()
  if (waits) {
    while (!otherIsGone());
    turnstile.leave()
  }
  turnstile.enter()
  expect(turnstile.alone).toBe(true)
  turnstile.leave()
  turnstile.enter()
  expect(turnstile.depth).toBe(1)
})

test('a thread that only takes its time is waited for', async () => {
  const words = wordsOf()
  thread(
    words,
    `
    turnstile.enter()
    Atomics.store(words, ${READY}, 1)
    Atomics.notify(words, ${READY})
    for (const end = performance.now() + 200; performance.now() < end;);
    words[${COUNT}] = 1
    turnstile.leave()`,
  )
  Atomics.wait(words, READY, 0)
  let asked = 0
  const turnstile = new Turnstile({ words, otherIsGone: () => asked++ < 0 })
  turnstile.enter()
  expect(words[COUNT]).toBe(1)
  expect(asked).toBeGreaterThan(0)
  expect(turnstile.alone).toBe(false)
  await Promise.resolve()
})

test('who is in may enter again', () => {
  const turnstile = new Turnstile({ words: wordsOf() })
  turnstile.enter()
  turnstile.enter()
  expect(turnstile.depth).toBe(2)
  turnstile.leave()
  turnstile.leave()
  expect(turnstile.depth).toBe(0)
  expect(turnstile.wanted).toBe(false)
})

test('a thread is told from one that had its number before', () => {
  const me = currentThread()
  expect(hasEnded(me)).toBe(false)
  expect(hasEnded({ ...me, born: me.born ^ 1 })).toBe(true)
  expect(hasEnded({ thread: 0x3fffffff, born: 0 })).toBe(true)
})

/** Looking at a word that somebody else changes. */
import { Worker } from 'node:worker_threads'
import { describe, expect, it } from 'vitest'
import { native } from '../../lib/native'

/** Another thread, which counts up until it is told to end. */
const COUNTER = `
const { workerData } = require('node:worker_threads')
const words = new Int32Array(workerData)
while (Atomics.load(words, 1) === 0) Atomics.add(words, 0, 1)
`

describe('awaitChange', () => {
  it('answers true at once for a word that is another already', () => {
    const words = new Uint32Array([5, 0xffffffff])
    expect(native().awaitChange(words, 0, 4, 0)).toBe(true)
    expect(native().awaitChange(words, 4, 0xffffffff, 0)).toBe(false)
  })

  it('answers false when its time is over', () => {
    const started = performance.now()
    expect(native().awaitChange(new Uint32Array(1), 0, 0, 1000)).toBe(false)
    expect(performance.now() - started).toBeGreaterThanOrEqual(1)
  })

  it('sees what another thread writes', async () => {
    const words = new Int32Array(new SharedArrayBuffer(8))
    const worker = new Worker(COUNTER, { eval: true, workerData: words.buffer })
    let seen = 0
    while (seen < 100) {
      const before = Atomics.load(words, 0)
      if (native().awaitChange(words, 0, before, 1000)) seen++
      await new Promise((resolve) => setImmediate(resolve))
    }
    Atomics.store(words, 1, 1)
    await new Promise((resolve) => worker.once('exit', resolve))
    expect(Atomics.load(words, 0)).toBeGreaterThanOrEqual(100)
  })

  it('takes a place within the view, aligned in memory', () => {
    const bytes = new Uint8Array(8)
    expect(native().awaitChange(bytes, 4, 1, 0)).toBe(true)
    for (const at of [1, 2, 5, 8, -4]) {
      expect(() => native().awaitChange(bytes, at, 0, 0)).toThrow(RangeError)
    }
    expect(() => native().awaitChange(new Uint8Array(3), 0, 0, 0)).toThrow(RangeError)
    expect(() => native().awaitChange(bytes.subarray(2), 0, 0, 0)).toThrow(RangeError)
  })

  it.each<[string, unknown[]]>([
    ['no view', [{}, 0, 0, 0]],
    ['a value of more than 32 bits', [new Uint8Array(4), 0, 2 ** 32, 0]],
    ['more than a millisecond', [new Uint8Array(4), 0, 0, 1001]],
    ['a value that is no number', [new Uint8Array(4), 0, '0', 0]],
  ])('refuses %s', (_, args) => {
    const call = native().awaitChange.bind(native()) as (...args: unknown[]) => unknown
    expect(() => call(...args)).toThrow()
  })
})

/**
 * What stays flat: descriptors, threads and memory over many cycles and under a soak. Short here;
 * CYCLES=10000 and SOAK=1800 are the long forms.
 */
import { execFileSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { expect, test } from 'vitest'
import { MiB } from '../../lib/address'

const CYCLES = Number(process.env['CYCLES'] ?? 30)
const SOAK = Number(process.env['SOAK'] ?? 10)

function run(script: string, ...args: readonly string[]): Record<string, unknown> {
  const path = new URL(`../${script}`, import.meta.url).pathname
  const text = execFileSync(process.execPath, ['--expose-gc', path, ...args])
  return JSON.parse(text.toString()) as Record<string, unknown>
}

test(`${CYCLES} times opened, started, stopped and closed`, { timeout: 3_600_000 }, () => {
  const { more, seconds, late } = run('children/cycles.mjs', String(CYCLES)) as {
    more: Record<string, number>
    seconds: number
    late: Record<string, number>
  }
  console.log(`${CYCLES} cycles in ${seconds.toFixed(0)} s: ${JSON.stringify(more)}`)
  expect(more).toMatchObject({ descriptors: 0, threads: 0, mappings: 0 })
  expect(late).toMatchObject({ mappings: 0 })
  expect(more['arrayBuffers']).toBeLessThan(MiB)
  expect(more['heapUsed']).toBeLessThan(4 * MiB)
  expect(more['rss']).toBeLessThan(24 * MiB)
  expect(more['slab']).toBeLessThan(8 * MiB)
})

test(`a soak of ${SOAK} s`, { timeout: 3_600_000 }, () => {
  const out = new URL('../../build/soak', import.meta.url).pathname
  const summary = run('soak.mjs', '--seconds', String(SOAK), '--seed', '5', '--out', out) as {
    answers: number
    lost: number
    episodes: number
    errors: Record<string, number>
    drift: Record<string, { early: number; late: number }>
  }
  const { answers, lost, episodes, errors, drift } = summary
  console.log(`soak: ${JSON.stringify(summary)}`)
  expect(readFileSync(`${out}.ndjson`, 'utf8').split('\n').length).toBeGreaterThan(5)
  expect(errors).toEqual({})
  expect([answers > 10 * lost, episodes > 5]).toEqual([true, true])
  // An interface that goes down may take a question with it, and the answer to it.
  const grown = (key: string): number => drift[key].late - drift[key].early
  expect(grown('descriptors')).toBeLessThanOrEqual(2)
  expect(grown('threads')).toBeLessThanOrEqual(1)
  expect(grown('rss')).toBeLessThan(24 * MiB)
  expect(grown('slab')).toBeLessThan(8 * MiB)
})

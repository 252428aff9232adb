/**
 * What stays flat: descriptors, threads and memory over many cycles and under a soak. Short here;
 * `node test/nightly.mjs cycles soak` are the long forms.
 */
import { readFileSync } from 'node:fs'
import { release } from 'node:os'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { MiB } from '../../lib/address'
import * as library from '../../lib/index'

const CYCLES = Number(process.env['CYCLES'] ?? 15)
const SOAK = Math.round(60 * Number(process.env['SOAK_MINUTES'] ?? 0.1))
const SEED = Number(process.env['SEED'] ?? 5)
const HOURS = 2 * 3_600_000

/** Each sample is a garbage collection, which costs a short form more than what it samples. */
const samplesOf = (amount: number): number => (amount > 1000 ? 120 : 4)

type Cycles = (options: {
  readonly count: number
  readonly samples: number
  readonly library: typeof library
}) => Promise<{
  readonly seconds: number
  readonly more: Readonly<Record<string, number>>
  readonly late: Readonly<Record<string, number>>
}>

type Soak = (options: {
  readonly seconds: number
  readonly seed: number
  readonly samples: number
  readonly least: number
  readonly out: string
  readonly library: typeof library
}) => Promise<{
  readonly answers: number
  readonly lost: number
  readonly episodes: number
  readonly errors: Readonly<Record<string, number>>
  /** With no device open. */
  readonly rest: Readonly<Record<'before' | 'after', Readonly<Record<string, number>>>>
  readonly drift: Readonly<Record<string, { readonly early: number; readonly late: number }>>
}>

/** Programs of their own, too, which load what is built. */
async function program(name: string): Promise<unknown> {
  return import(/* @vite-ignore */ new URL(`../${name}`, import.meta.url).pathname)
}

test.skipIf(CYCLES === 0)(
  `${CYCLES} times opened, started, stopped and closed`,
  { timeout: HOURS },
  async () => {
    const { cycles } = (await program('cycles.mjs')) as { readonly cycles: Cycles }
    const { more, late, seconds } = await cycles({
      count: CYCLES,
      samples: samplesOf(CYCLES),
      library,
    })
    console.log(`${CYCLES} cycles in ${seconds.toFixed(0)} s: ${JSON.stringify(more)}`)
    expect(more).toMatchObject({ descriptors: 0, threads: 0, mappings: 0 })
    expect(late).toMatchObject({ mappings: 0 })
    expect(more['arrayBuffers']).toBeLessThan(MiB)
    expect(more['heapUsed']).toBeLessThan(4 * MiB)
    expect(more['rss']).toBeLessThan(24 * MiB)
    expect(more['slab']).toBeLessThan(8 * MiB)
  },
)

test.skipIf(SOAK === 0)(`a soak of ${SOAK} s`, { timeout: HOURS }, async () => {
  const { soak } = (await program('soak.mjs')) as { readonly soak: Soak }
  const out = join(import.meta.dirname, `../../build/soak-${release()}.ndjson`)
  const samples = samplesOf(SOAK)
  const summary = await soak({ seconds: SOAK, seed: SEED, samples, least: 40, out, library })
  console.log(`soak: ${JSON.stringify(summary)}`)
  const { answers, lost, episodes, errors, rest, drift } = summary
  expect(readFileSync(out, 'utf8').split('\n').length).toBeGreaterThan(samples)
  expect(errors).toEqual({})
  // An interface that goes down may take a question with it, and the answer to it.
  expect([answers > 10 * lost, episodes > 1]).toEqual([true, true])
  expect(rest.after).toEqual(rest.before)
  expect(rest.after['mappings']).toBe(0)
  const grown = (key: string): number => drift[key].late - drift[key].early
  expect(grown('rss')).toBeLessThan(24 * MiB)
  expect(grown('slab')).toBeLessThan(8 * MiB)
})

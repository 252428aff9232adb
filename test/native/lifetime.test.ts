/** Ends of threads and processes, and what arbitrary callers do: each in a process of its own. */
import { afterAll, describe, expect, it } from 'vitest'
import { dirname } from 'node:path'
import { run, temporary, cleanUp } from './support'

const RUNS = 2000
const SEED = 20

afterAll(cleanUp)

describe('threads', () => {
  it('the whole layer works in a Worker, and on the main thread after it', async () => {
    expect(await run('whole.mjs')).toMatchObject({ output: 'worker 8192 main 8192', status: 0 })
  })

  it('fifty Workers that are terminated while they poll leave process and memory intact', async () => {
    expect(await run('terminate.mjs')).toMatchObject({ output: '50 workers', status: 0 })
  })
})

it(`four threads share objects and use them in ${RUNS} random steps each, six times`, async () => {
  const { status, signal, output, errors } = await run('orders.mjs', [`${RUNS}`, `${SEED}`, '4'])
  expect({ status, signal, errors }).toEqual({ status: 0, signal: null, errors: '' })
  const { done, refused, thrown, terminated } = JSON.parse(output) as Record<string, number>
  expect(terminated).toBe(8)
  // Of what was not cut short: each kind of answer came often.
  for (const count of [done, refused, thrown]) expect(count).toBeGreaterThan(RUNS)
})

describe('the end of a process with everything open', () => {
  const ends = [
    ['natural', 0],
    ['process.exit', 7],
    ['in the listener', 7],
    ['with a worker', 7],
    ['throw', 1],
  ] as const
  it.each(ends)('%s: exits with %i', async (how, status) => {
    expect(await run('exit.mjs', [how])).toMatchObject({ status, signal: null })
  })

  it('signal: ends by the signal', async () => {
    expect(await run('exit.mjs', ['signal'])).toMatchObject({ status: null, signal: 'SIGTERM' })
  })
})

it('the collector takes what nobody can reach, and nothing else', async () => {
  const outcome = await run('collect.mjs', [], { flags: ['--expose-gc'] })
  expect(outcome).toMatchObject({ output: 'collected', status: 0 })
})

it(`${RUNS} arbitrary calls of each export return or throw an Error`, async () => {
  const cwd = dirname(temporary('fuzz'))
  const { status, signal, output, errors } = await run('fuzz.mjs', [`${RUNS}`, `${SEED}`], { cwd })
  expect({ status, signal, errors }).toEqual({ status: 0, signal: null, errors: '' })
  const tally = JSON.parse(output) as Record<string, Record<string, number>>
  expect(Object.keys(tally)).toHaveLength(21)
  for (const [name, outcomes] of Object.entries(tally)) {
    const known = ['TypeError', 'RangeError', 'Error', 'number', 'boolean', 'object', 'function']
    expect(known, `${name}: ${JSON.stringify(outcomes)}`).toEqual(
      expect.arrayContaining(Object.keys(outcomes)),
    )
    // That the arguments were not all turned away at the door.
    const { number = 0, boolean = 0, object = 0, function: functions = 0 } = outcomes
    expect(number + boolean + object + functions).toBeGreaterThan(RUNS / 20)
  }
})

/**
 * How long a question takes: from the kick that makes the kernel ask to the answer in its table,
 * one question at a time. `miss-loop.c` is the floor.
 *
 * Rows differ in who answers: an event loop that has nothing else to do, one in a Worker that looks
 * for questions all the time, and a device served by a Worker while the main thread computes. Of
 * the last one only the driver's side is seen, so that its time goes on until the frame is sent.
 */
import { spawn } from 'node:child_process'
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { Worker } from 'node:worker_threads'
import { exact, merged } from '../../iotlb/reply-policy'
import type { ReplyPolicy } from '../../iotlb/reply-policy'
import type { Contestant } from './contestant'
import { percentile } from './figures'
import type { Sample } from './figures'
import { text } from './peers'
import { BusyRig } from './miss-busy-rig'
import { MissRig } from './miss-rig'

/** What a compiler needs to have seen, and what it may take under an emulated processor. */
const WARM_ROUNDS = 10_000
const WARM_MS = 4000
const WARM_CHUNK = 500
/** Half of the time the main thread computes, in stretches of 5 ms. */
const BURST_MS = 5

export function missContestants(rounds: number): readonly Contestant[] {
  const loop = (name: string, reply: ReplyPolicy): Contestant => ({
    section: 'miss',
    name,
    run: () => roundTrips({ count: rounds, live: 64, reply }),
  })
  return [
    loop('loop, exact', exact),
    loop('loop, merged', merged(128 * 1024)),
    { section: 'miss', name: 'worker, spinning', run: () => inWorker(rounds) },
    { section: 'miss', name: 'worker, main thread busy', run: () => whileBusy(rounds) },
  ]
}

export function mappingContestants(rounds: number): readonly Contestant[] {
  return [1, 64, 2048, 16384].map((live) => ({
    section: 'mappings',
    name: live === 1 ? '1 mapping' : `${live} mappings`,
    run: () => roundTrips({ count: rounds, live, reply: exact }),
  }))
}

export function cFloor(programs: string, rounds: number): readonly Contestant[] {
  return (['poll', 'spinning'] as const).map((how) => ({
    section: 'miss',
    name: `c, ${how}`,
    run: async () => {
      const flags = how === 'spinning' ? ['spin'] : []
      const output = await text(spawn(join(programs, 'miss-loop'), [String(rounds), ...flags]))
      const { p50, p90, p99 } = JSON.parse(output) as Record<string, number>
      return { p50us: p50 / 1000, p90us: p90 / 1000, p99us: p99 / 1000 }
    },
  }))
}

export interface RoundTripOptions {
  readonly count: number
  readonly live: number
  readonly reply: ReplyPolicy
  readonly busyPollMicroseconds?: number
}

let warmed = 0

/** Measures after enough rounds for the code to be compiled, which is once in a thread. */
export async function roundTrips({ count, ...options }: RoundTripOptions): Promise<Sample> {
  using rig = new MissRig(options)
  const late = performance.now() + WARM_MS
  while (warmed < WARM_ROUNDS && performance.now() < late) {
    await rig.run(WARM_CHUNK)
    warmed += WARM_CHUNK
  }
  warmed = WARM_ROUNDS
  await rig.run(Math.ceil(count / 10))
  return { ...percentiles(await rig.run(count)), entries: rig.handler.stats().entries }
}

/** The same loop in a Worker that does not wait for questions, but looks for them. */
async function inWorker(count: number): Promise<Sample> {
  const entry = join(__dirname, 'miss-thread.js')
  if (!existsSync(entry)) throw new Error(`there is no ${entry}: build the library`)
  const worker = new Worker(entry, { workerData: count })
  return new Promise<Sample>((resolve, reject) => {
    worker.once('message', resolve)
    worker.once('error', reject)
  })
}

/** Half of the time nothing but computing; each question comes up in that half. */
async function whileBusy(count: number): Promise<Sample> {
  using rig = new BusyRig()
  const times: number[] = []
  const warm = Math.ceil(count / 4)
  for (let i = 0; i < warm + count;) {
    for (const end = performance.now() + BURST_MS; performance.now() < end; i++) {
      const us = rig.round()
      if (i >= warm) times.push(us)
    }
    await sleep(BURST_MS)
  }
  return percentiles(times)
}

function percentiles(times: readonly number[]): Sample {
  const [p50us, p90us, p99us] = [50, 90, 99].map((percent) => percentile(times, percent))
  return { p50us, p90us, p99us }
}

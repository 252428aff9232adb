// The whole stack under random mapping modes, policies, faults, restarts and interface flaps, for
// as long as one likes, with what it holds sampled to a file: what leaks shows as a line that rises.
//
//   node vm-tests/soak.mjs [--seconds 1800] [--seed 1] [--out build/soak.ndjson]
//   node vm-tests/soak-plot.mjs build/soak.ndjson docs/soak.svg      (draws what was sampled)
//
// Needs root and /dev/vhost-net: `npx vhost-iotlb vm --timeout 2000 -- node vm-tests/soak.mjs`.
// Prints a summary as one JSON object.
import { appendFileSync, mkdirSync, writeFileSync } from 'node:fs'
import { dirname } from 'node:path'
import { setTimeout as pause } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { holdings } from './children/holdings.mjs'
import { Stack, address, built } from './children/stack.mjs'

const HOST = '10.78.0.1'
const MAPPINGS = ['strict', 'lazy', 'static', 'passthrough', 'off']
/** Small enough that the queues live, as often as each of these comes. */
const MISHAPS = { delay: 0.1, double: 0.1, reorder: 0.3, 'drop-update': 0.01, evict: 0.02 }
const COUNTED = ['misses', 'updates', 'invalidates', 'stalls', 'healed', 'faults', 'purges']

class Soak {
  totals = { episodes: 0, answers: 0, lost: 0, flaps: 0, restarts: 0, flushes: 0, bursts: 0 }
  stats = Object.fromEntries(COUNTED.map((name) => [name, 0]))
  injected = {}
  byReason = {}
  errors = {}
  samples = []
  #library
  #tap
  #stack
  #latencies = []
  #state

  constructor(library, tap, seed) {
    this.#library = library
    this.#tap = tap
    this.#state = Math.imul(seed, 2654435761) | 1
  }

  /** xorshift32. */
  random(below) {
    this.#state ^= this.#state << 13
    this.#state ^= this.#state >>> 17
    this.#state ^= this.#state << 5
    return (this.#state >>> 0) % below
  }

  #pick(list) {
    return list[this.random(list.length)]
  }

  sample(seconds) {
    const now = this.#stack?.nic.stats() ?? {}
    const sorted = this.#latencies.splice(0).sort((a, b) => a - b)
    const at = (part) => sorted[Math.floor(part * (sorted.length - 1))] ?? null
    const count = (name) => this.stats[name] + (now[name] ?? 0)
    const { answers } = this.totals
    const flow = { misses: count('misses'), stalls: count('stalls'), answers }
    this.samples.push({ seconds, ...holdings(), ...flow, p50: at(0.5), p99: at(0.99) })
    return this.samples.at(-1)
  }

  failed(error) {
    const name = `${error.code ?? error.name}: ${error.message}`
    this.errors[name] = (this.errors[name] ?? 0) + 1
  }

  /**
   * One device, from its opening to its close, with whatever was drawn for it.
   * @param length milliseconds of questions; one at least is asked
   * @param look is called between questions
   */
  async episode(length, look) {
    const { exact, merged } = this.#library
    const mapping = this.#pick(MAPPINGS)
    const channels = []
    // None while it starts: a used ring whose answer is lost is refused, and that is no soak.
    const chances = {}
    const withFaults = this.random(3) === 0
    const inWorker = !withFaults && mapping !== 'off' && this.random(4) === 0
    const device = {
      fault: this.#pick(['stall', 'stop', 'drop']),
      reply: this.#pick([exact, merged(16 * 4096), merged(128 * 4096)]),
      lookAhead: this.#pick(['off', 'on-miss', 'on-kick']),
      split: this.random(2) === 0,
      paranoid: this.random(4) === 0,
      watchdog: 100,
      ...(inWorker ? { serve: 'worker' } : {}),
      ...(withFaults ? { channel: (inner) => this.#faulty(inner, chances, channels) } : {}),
    }
    const options = { library: this.#library, host: HOST, tap: this.#tap, mapping, device }
    const stack = await Stack.open(options)
    this.#stack = stack
    stack.nic.onFailure((error) => this.failed(error))
    if (withFaults) Object.assign(chances, MISHAPS)
    // A Worker may take longer to open it than a short form's episode lasts.
    const until = performance.now() + length
    try {
      do {
        await this.#disturb(stack, chances)
        const took = await stack.ask(3000)
        if (took < 0) this.totals.lost++
        else {
          this.totals.answers++
          this.#latencies.push(took)
        }
        look()
      } while (performance.now() < until)
    } finally {
      this.#count(stack.nic.stats(), channels)
      this.#stack = undefined
      stack.release()
      this.totals.episodes++
    }
  }

  #faulty(inner, chances, channels) {
    const channel = this.#library.faulty(inner, { seed: this.random(2 ** 31), chances })
    channels.push(channel)
    return channel
  }

  #count(last, channels) {
    for (const name of COUNTED) this.stats[name] += last[name]
    const add = (sums, counts) => {
      for (const [key, count] of Object.entries(counts)) {
        if (count > 0) sums[key] = (sums[key] ?? 0) + count
      }
    }
    add(this.byReason, last.stallsByReason)
    for (const { counts } of channels) add(this.injected, counts)
  }

  async #disturb({ tap, nic, driver }, chances) {
    switch (this.random(40)) {
      case 0:
        tap.up = false
        await pause(this.random(150))
        tap.up = true
        this.totals.flaps++
        break
      case 1:
      case 2:
        this.#restart(nic, chances)
        break
      case 3:
      case 4:
      case 5:
        driver.dma.flush()
        this.totals.flushes++
        break
      case 6:
      case 7:
        driver.sendBatch(Array.from({ length: 32 }, () => new Uint8Array(60 + this.random(1400))))
        this.totals.bursts++
        break
    }
  }

  #restart(nic, chances) {
    nic.stop()
    const mishaps = { ...chances }
    for (const kind of Object.keys(chances)) chances[kind] = 0
    nic.start()
    Object.assign(chances, mishaps)
    for (let queue = 0; queue < nic.queues; queue++) nic.kick(queue)
    this.totals.restarts++
  }
}

const median = (values) => values.toSorted((a, b) => a - b).at(values.length >>> 1)

/** Medians of the second and of the last quarter: the first one is warming up. */
function drift(samples) {
  const quarter = Math.max(1, Math.floor(samples.length / 4))
  const parts = { early: samples.slice(quarter, 2 * quarter), late: samples.slice(-quarter) }
  const keys = ['rss', 'heapUsed', 'external', 'slab', 'p50']
  return Object.fromEntries(
    keys.map((key) => [
      key,
      Object.fromEntries(
        Object.entries(parts).map(([name, part]) => {
          return [name, median(part.map((one) => one[key]).filter((value) => value !== null))]
        }),
      ),
    ]),
  )
}

/** Counts with no device open; waits for those that are above, as a Worker takes a while to end. */
async function atRest(above = { descriptors: 0, threads: 0, mappings: 0 }) {
  const deadline = performance.now() + (above.threads === 0 ? 0 : 5000)
  for (;;) {
    // Memory goes with the next turn, and the kernel lets go of a closed device a grace period later.
    await pause(50)
    const { descriptors, threads, mappings } = holdings()
    const counts = { descriptors, threads, mappings }
    const settled = Object.keys(counts).every((key) => counts[key] <= above[key])
    if (settled || performance.now() > deadline) return counts
  }
}

/**
 * @param options `seconds`, `seed`, `samples`; `out`, a file for them; `least`, questions that are
 *   answered however long it takes; `library`: what is built
 */
export async function soak(options) {
  const { seconds, seed, out, samples: wanted = 150, least = 0, library = built() } = options
  mkdirSync(dirname(out), { recursive: true })
  writeFileSync(out, '')
  const tap = library.Tap.open('soak0', { up: false })
  address(tap.name, HOST)
  const soaked = new Soak(library, tap, seed)
  const before = await atRest()
  const began = performance.now()
  const elapsed = () => (performance.now() - began) / 1000
  let next = 0
  const sample = () => appendFileSync(out, `${JSON.stringify(soaked.sample(elapsed()))}\n`)
  const look = () => {
    if (elapsed() < next) return
    next += seconds / wanted
    sample()
  }
  while (elapsed() < seconds || soaked.totals.answers < least) {
    const length = Math.min(seconds * 100, 1000 + soaked.random(9000))
    try {
      await soaked.episode(length, look)
    } catch (error) {
      soaked.failed(error)
    }
  }
  const after = await atRest(before)
  // A question that is lost, and an opening, may take longer than a short form's samples lie apart.
  while (soaked.samples.length < wanted) sample()
  tap.close()
  const { totals, stats, byReason, injected, errors, samples } = soaked
  const counts = { ...totals, ...stats, byReason, injected, errors }
  return { seconds: elapsed(), seed, ...counts, rest: { before, after }, drift: drift(samples) }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { values } = parseArgs({
    options: {
      seconds: { type: 'string', default: '1800' },
      seed: { type: 'string', default: '1' },
      out: { type: 'string', default: 'build/soak.ndjson' },
    },
  })
  const [seconds, seed] = [Number(values.seconds), Number(values.seed)]
  process.stdout.write(`${JSON.stringify(await soak({ seconds, seed, out: values.out }))}\n`)
}

// The whole stack under random mapping modes, policies, faults, restarts and interface flaps, for
// as long as one likes, with what it holds sampled to a file: what leaks shows as a line that rises.
//
//   node --expose-gc vm-tests/soak.mjs [--seconds 1800] [--seed 1] [--out build/soak]
//   node vm-tests/soak.mjs --plot build/soak.ndjson      (draws again what was sampled)
//
// Needs root and /dev/vhost-net: `npx vhost-iotlb vm --timeout 2000 -- node --expose-gc …`.
// Writes OUT.ndjson, and OUT.svg where vega is installed; prints a summary as one JSON object.
import { appendFileSync, mkdirSync, readFileSync, readdirSync, writeFileSync } from 'node:fs'
import { dirname } from 'node:path'
import { parseArgs } from 'node:util'
import { Stack, address, library } from './children/stack.mjs'

const { values: options } = parseArgs({
  options: {
    seconds: { type: 'string', default: '1800' },
    seed: { type: 'string', default: '1' },
    out: { type: 'string', default: 'build/soak' },
    plot: { type: 'string' },
  },
})
const SECONDS = Number(options.seconds)
const SAMPLES = 300
const HOST = '10.78.0.1'
const NAME = 'soak0'
const MAPPINGS = ['strict', 'lazy', 'static', 'passthrough', 'off']
/** Small enough that the queues live, as often as each of these comes. */
const MISHAPS = { delay: 0.1, double: 0.1, reorder: 0.3, 'drop-update': 0.01, evict: 0.02 }

let state = Number(options.seed) * 2654435761 + 1
function random(below) {
  state = Math.imul(state ^ (state >>> 15), 0x2c1b3c6d) + 0x9e3779b9
  return ((state ^ (state >>> 13)) >>> 0) % below
}
const pick = (list) => list[random(list.length)]

const { faulty, exact, merged, Tap } = library
const totals = { episodes: 0, answers: 0, lost: 0, flaps: 0, restarts: 0, flushes: 0, bursts: 0 }
const stats = { misses: 0, updates: 0, invalidates: 0, stalls: 0, healed: 0, faults: 0, purges: 0 }
const injected = {}
const byReason = {}
const errors = {}
let stack
let latencies = []
const current = () => stack?.nic.stats() ?? {}

function sample(seconds) {
  globalThis.gc?.()
  const { rss, heapUsed, external } = process.memoryUsage()
  const slab = Number(/SUnreclaim:\s*(\d+)/.exec(readFileSync('/proc/meminfo', 'utf8'))[1]) * 1024
  const sorted = latencies.splice(0).sort((a, b) => a - b)
  const at = (part) => sorted[Math.floor(part * (sorted.length - 1))] ?? null
  return {
    seconds,
    rss,
    heapUsed,
    external,
    slab,
    descriptors: readdirSync('/proc/self/fd').length,
    threads: readdirSync('/proc/self/task').length,
    misses: stats.misses + (current().misses ?? 0),
    stalls: stats.stalls + (current().stalls ?? 0),
    answers: totals.answers,
    p50: at(0.5),
    p99: at(0.99),
  }
}

function failed(error) {
  const name = error.code ?? error.name
  errors[name] = (errors[name] ?? 0) + 1
}

/** One device, from its opening to its close, with whatever was drawn for it. */
async function episode(tap, until) {
  const mapping = pick(MAPPINGS)
  const channels = []
  const withFaults = random(3) === 0
  // None while it starts: a used ring whose answer is lost is refused, and that is no soak.
  const chances = {}
  const device = {
    fault: pick(['stall', 'stop', 'drop']),
    reply: pick([exact, merged(16 * 4096), merged(128 * 4096)]),
    lookAhead: pick(['off', 'on-miss', 'on-kick']),
    split: random(2) === 0,
    paranoid: random(4) === 0,
    watchdog: 100,
    channel: (inner) => {
      if (!withFaults) return inner
      const channel = faulty(inner, { seed: random(2 ** 31), chances })
      channels.push(channel)
      return channel
    },
  }
  stack = await Stack.open({ host: HOST, tap, mapping, device })
  stack.nic.onFailure(failed)
  Object.assign(chances, MISHAPS)
  try {
    while (performance.now() < until) {
      await disturb(stack, withFaults, chances)
      const took = await stack.ask(3000)
      if (took < 0) totals.lost++
      else {
        totals.answers++
        latencies.push(took)
      }
    }
  } finally {
    const last = stack.nic.stats()
    for (const key of Object.keys(stats)) stats[key] += last[key]
    for (const [reason, count] of Object.entries(last.stallsByReason)) {
      byReason[reason] = (byReason[reason] ?? 0) + count
    }
    for (const { counts } of channels) {
      for (const [kind, count] of Object.entries(counts)) {
        if (count > 0) injected[kind] = (injected[kind] ?? 0) + count
      }
    }
    stack.release()
    stack = undefined
    totals.episodes++
  }
}

async function disturb({ tap, nic, driver }, withFaults, chances) {
  switch (random(40)) {
    case 0:
      tap.up = false
      await new Promise((resolve) => setTimeout(resolve, random(150)))
      tap.up = true
      totals.flaps++
      break
    case 1:
    case 2:
      nic.stop()
      for (const key of Object.keys(chances)) chances[key] = 0
      nic.start()
      if (withFaults) Object.assign(chances, MISHAPS)
      for (let queue = 0; queue < nic.queues; queue++) nic.kick(queue)
      totals.restarts++
      break
    case 3:
    case 4:
    case 5:
      driver.dma.flush()
      totals.flushes++
      break
    case 6:
    case 7:
      driver.sendBatch(Array.from({ length: 32 }, () => new Uint8Array(60 + random(1400))))
      totals.bursts++
      break
  }
}

function median(values) {
  return values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)]
}

/** Medians of the second and of the last quarter: the first one is warming up. */
function drift(samples) {
  const quarter = Math.floor(samples.length / 4)
  const early = samples.slice(quarter, 2 * quarter)
  const late = samples.slice(-quarter)
  const keys = ['rss', 'heapUsed', 'external', 'slab', 'descriptors', 'threads', 'p50']
  return Object.fromEntries(
    keys.map((key) => {
      const of = (part) => median(part.map((one) => one[key]).filter((value) => value !== null))
      return [key, { early: of(early), late: of(late) }]
    }),
  )
}

async function draw(samples) {
  let vega, lite
  try {
    vega = await import('vega')
    lite = await import('vega-lite')
  } catch (error) {
    if (error.code === 'ERR_MODULE_NOT_FOUND') return undefined
    throw error
  }
  const line = (title, fields, scale = 1) => ({
    title,
    width: 640,
    height: 110,
    data: {
      values: samples.flatMap((one) =>
        fields.map((field) => ({ minute: one.seconds / 60, field, value: one[field] / scale })),
      ),
    },
    mark: { type: 'line', strokeWidth: 1 },
    encoding: {
      x: { field: 'minute', type: 'quantitative', title: null },
      y: { field: 'value', type: 'quantitative', title: null },
      color: { field: 'field', title: null },
    },
  })
  const { spec } = lite.compile({
    $schema: 'https://vega.github.io/schema/vega-lite/v6.json',
    background: 'white',
    vconcat: [
      line(
        'Memory of the process and unreclaimable slab, MiB',
        ['rss', 'heapUsed', 'slab'],
        2 ** 20,
      ),
      line('Descriptors and threads', ['descriptors', 'threads']),
      line('Misses so far', ['misses']),
      line('Latency of a question, milliseconds', ['p50', 'p99']),
    ],
    resolve: { scale: { color: 'independent' } },
  })
  return new vega.View(vega.parse(spec), { renderer: 'none' }).toSVG()
}

async function plot(file) {
  const lines = readFileSync(file, 'utf8').trim().split('\n')
  const svg = await draw(lines.map((line) => JSON.parse(line)))
  if (svg !== undefined) writeFileSync(file.replace(/\.ndjson$/, '.svg'), svg)
}

async function soak() {
  const file = `${options.out}.ndjson`
  mkdirSync(dirname(file), { recursive: true })
  writeFileSync(file, '')
  const tap = Tap.open(NAME, { up: false })
  address(NAME, HOST)
  const samples = []
  const began = performance.now()
  const end = began + SECONDS * 1000
  const period = (SECONDS * 1000) / SAMPLES
  const timer = setInterval(
    () => {
      samples.push(sample((performance.now() - began) / 1000))
      appendFileSync(file, `${JSON.stringify(samples.at(-1))}\n`)
    },
    Math.max(250, period),
  )
  while (performance.now() < end) {
    const length = Math.min(SECONDS * 50, 1000 + random(9000))
    try {
      await episode(tap, Math.min(end, performance.now() + length))
    } catch (error) {
      failed(error)
    }
  }
  clearInterval(timer)
  tap.close()
  await plot(file)
  const seconds = (performance.now() - began) / 1000
  const summary = {
    seconds,
    ...totals,
    ...stats,
    byReason,
    injected,
    errors,
    drift: drift(samples),
  }
  process.stdout.write(`${JSON.stringify(summary)}\n`)
}

await (options.plot === undefined ? soak() : plot(options.plot))

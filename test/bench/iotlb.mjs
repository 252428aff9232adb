// Measures the miss loop without system calls: node --expose-gc test/bench/iotlb.mjs [dist]
// Prints ns per operation and bytes of garbage per miss, median of five runs.
import { createRequire } from 'node:module'
import { resolve } from 'node:path'

const require = createRequire(import.meta.url)
const dist = resolve(process.argv[2] ?? new URL('../../dist', import.meta.url).pathname)
const { IntervalMap } = require(`${dist}/memory/interval-map.js`)
const { MissHandler } = require(`${dist}/iotlb/miss-handler.js`)
const { merged, exact } = require(`${dist}/iotlb/reply-policy.js`)
const { Miss } = require(`${dist}/iotlb/channel.js`)

const RUNS = 5
const median = (values) => values.sort((a, b) => a - b)[values.length >> 1]
const rest = () => globalThis.gc?.()

function timed(count, run) {
  const ns = []
  for (let i = 0; i < RUNS; i++) {
    rest()
    const start = process.hrtime.bigint()
    run(count)
    ns.push(Number(process.hrtime.bigint() - start) / count)
  }
  return median(ns).toFixed(1)
}

function measureMap(entries) {
  const map = new IntervalMap(entries)
  for (let i = 0; i < entries; i++) map.insert(i * 4, i * 4 + 1)
  let seed = 1
  const random = () => (seed = (seed * 1103515245 + 12345) & 0x7fffffff)
  const page = () => (random() % entries) * 4
  let found = 0
  const find = timed(1_000_000, (n) => {
    for (let i = 0; i < n; i++) found += map.find(page())
  })
  const replace = timed(300_000, (n) => {
    for (let i = 0; i < n; i++) {
      const first = page()
      found += map.removeTouching(first, first)
      map.insert(first, first + 1)
    }
  })
  console.log(`map, ${entries} entries: find ${find} ns, remove and insert ${replace} ns`)
  return found
}

/** A device that holds `entries`, misses a page that was just taken back, and takes any answer. */
function loop(entries, base, policy) {
  const miss = new Miss()
  const one = [miss]
  const none = []
  let pending = false
  const channel = {
    limit: Math.max(entries, 2048),
    drain() {
      if (!pending) return none
      pending = false
      return one
    },
    updatePages() {},
    invalidatePages() {},
    onReadable: () => ({ [Symbol.dispose]() {} }),
  }
  const addressSpace = {
    translatePage(page, wanted, out) {
      out.firstPage = page
      out.lastPage = page
      out.gpaPage = (page * 3) & 0xffff
      out.access = 3
      out.reason = 0
      return true
    },
    notify: () => ({ [Symbol.dispose]() {} }),
  }
  const region = { start: 0, end: 2 ** 28, hvaPage: 0x7f0000000 }
  const memory = { find: (gpa) => (gpa < region.end ? region : undefined) }
  const handler = new MissHandler({ channel, addressSpace, memory, reply: policy })
  const ask = (page) => {
    miss.page = page
    miss.access = 1
    pending = true
    handler.handle()
  }
  for (let i = 0; i < entries; i++) ask(base + i * 2)
  return { handler, ask }
}

function measureLoop(entries, base, name, policy) {
  const { handler, ask } = loop(entries, base, policy)
  let at = 0
  const cycle = (n) => {
    for (let i = 0; i < n; i++) {
      at = (at + 7919) % entries
      handler.invalidatePages(base + at * 2, base + at * 2, 'device-tlb')
      ask(base + at * 2)
    }
  }
  cycle(200_000)
  const ns = timed(1_000_000, cycle)
  const bytes = []
  for (let i = 0; i < RUNS; i++) {
    rest()
    const before = process.memoryUsage().heapUsed
    cycle(10_000)
    bytes.push((process.memoryUsage().heapUsed - before) / 10_000)
  }
  rest()
  const before = process.memoryUsage().heapUsed
  cycle(1_000_000)
  rest()
  const kept = process.memoryUsage().heapUsed - before
  console.log(
    `${name}, ${entries} entries, pages from 0x${base.toString(16)}: invalidation and miss ${ns} ns, ` +
      `garbage ${median(bytes).toFixed(1)} bytes a miss, kept ${kept} bytes in 10^6`,
  )
}

for (const entries of [64, 2048, 16384]) measureMap(entries)
for (const base of [0x1000, 0xf_ffff_0000]) {
  for (const entries of [64, 2048, 16384]) measureLoop(entries, base, 'exact', exact)
}
measureLoop(2048, 0x1000, 'merged 64 KiB', merged(65536))

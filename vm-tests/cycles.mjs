// Opens, starts, stops and closes a device over and over, and watches what is left each time.
//   node --expose-gc cycles.mjs COUNT [SECONDS]      ends after that time with the count it reached
// Prints one JSON object: the samples, and what the last one has more than the one at a quarter.
import { readFileSync, readdirSync } from 'node:fs'
import { library } from './stack.mjs'

const { GuestMemory, IntelIommu, MiB, NetDriver, Tap, VhostNet } = library
const [wanted, limit = Infinity] = process.argv.slice(2).map(Number)
const SAMPLES = 20
const MAPPINGS = ['strict', 'lazy', 'static', 'passthrough', 'off']

function sample(cycles) {
  globalThis.gc()
  const { rss, heapUsed, external, arrayBuffers } = process.memoryUsage()
  const slab = /SUnreclaim:\s*(\d+)/.exec(readFileSync('/proc/meminfo', 'utf8'))
  return {
    cycles,
    descriptors: readdirSync('/proc/self/fd').length,
    threads: readdirSync('/proc/self/task').length,
    mappings: readFileSync('/proc/self/maps', 'utf8').match(/guest-memory/g)?.length ?? 0,
    rss,
    heapUsed,
    external,
    arrayBuffers,
    slab: Number(slab[1]) * 1024,
  }
}

async function cycle(i, kept) {
  const mapping = MAPPINGS[i % MAPPINGS.length]
  const own = i % 10 === 0
  const tap = own ? Tap.open('cycle%d', { up: false }) : kept
  const memory = GuestMemory.allocate(4 * MiB)
  const iommu = new IntelIommu(memory)
  const addressSpace = mapping === 'off' ? {} : { addressSpace: iommu.addressSpace('00:03.0') }
  const nic = VhostNet.open({ memory, backend: tap, ...addressSpace })
  const driver = NetDriver.attach(nic, {
    memory,
    mapping,
    queueSize: 16,
    ...(mapping === 'off' ? {} : { iommu }),
  })
  await driver.start()
  driver.send(new Uint8Array(60))
  // Half of them are closed without a turn of the event loop in between: in the worst places.
  if (i % 2 === 0) await new Promise((resolve) => setImmediate(resolve))
  if (i % 7 === 0) globalThis.gc()
  driver.close()
  nic.close()
  memory.close()
  if (own) tap.close()
}

const kept = Tap.open('cycles0')
const samples = []
const began = performance.now()
const every = Math.ceil(Math.min(wanted, 2000) / SAMPLES)
let count = 0
for (; count < wanted && performance.now() - began < limit * 1000; count++) {
  if (count % every === 0) {
    await new Promise((resolve) => setImmediate(resolve))
    samples.push(sample(count))
  }
  await cycle(count, kept)
}
await new Promise((resolve) => setTimeout(resolve, 50))
samples.push(sample(count))
const [early, late] = [samples[Math.floor(samples.length / 4)], samples.at(-1)]
const more = Object.fromEntries(Object.keys(late).map((key) => [key, late[key] - early[key]]))
const seconds = (performance.now() - began) / 1000
process.stdout.write(`${JSON.stringify({ count, seconds, more, early, late, samples })}\n`)
kept.close()

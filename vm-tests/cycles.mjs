// Opens, starts, stops and closes a device over and over, and watches what is left each time.
//
//   node vm-tests/cycles.mjs [--count 10000] [--seconds 3600]     ends at whichever comes first
//
// Needs root and /dev/vhost-net: `npx vhost-iotlb vm --timeout 4000 -- node vm-tests/cycles.mjs`.
// Prints one JSON object: the samples, and what the last one has more than the one at a quarter.
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { built } from './children/stack.mjs'
import { holdings } from './children/holdings.mjs'

const MAPPINGS = ['strict', 'lazy', 'static', 'passthrough', 'off']

async function cycle(library, i, kept) {
  const { GuestMemory, IntelIommu, MiB, NetDriver, Tap, VhostNet } = library
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
  if (i % 13 === 0) holdings.collect()
  driver.close()
  nic.close()
  memory.close()
  if (own) tap.close()
}

/** @param options `count`, at most; `seconds`, at most; `samples`; `library`: what is built */
export async function cycles({
  count,
  seconds = Infinity,
  samples: wanted = 40,
  library = built(),
}) {
  const kept = library.Tap.open('cycles0')
  const samples = []
  const began = performance.now()
  const elapsed = () => (performance.now() - began) / 1000
  const every = Math.ceil(Math.min(count, 2000) / wanted)
  let done = 0
  for (; done < count && elapsed() < seconds; done++) {
    if (done % every === 0) {
      await new Promise((resolve) => setImmediate(resolve))
      samples.push({ cycles: done, ...holdings() })
    }
    await cycle(library, done, kept)
  }
  // The kernel lets go of a closed device a grace period later.
  await new Promise((resolve) => setTimeout(resolve, 50))
  samples.push({ cycles: done, ...holdings() })
  kept.close()
  const [early, late] = [samples[Math.floor(samples.length / 4)], samples.at(-1)]
  const more = Object.fromEntries(Object.keys(late).map((key) => [key, late[key] - early[key]]))
  return { count: done, seconds: elapsed(), more, early, late, samples }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { values } = parseArgs({
    options: {
      count: { type: 'string', default: '10000' },
      seconds: { type: 'string', default: '3600' },
    },
  })
  const result = await cycles({ count: Number(values.count), seconds: Number(values.seconds) })
  process.stdout.write(`${JSON.stringify(result)}\n`)
}

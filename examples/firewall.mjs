// Forwards frames between two taps, except those that a rule refuses:
//   node firewall.mjs [tap] [tap]
// Both ports share one IOMMU, each behind a requester and tables of its own.
import { once } from 'node:events'
import { GuestMemory, IntelIommu, MiB, NetDriver, Tap, VhostNet } from 'vhost-iotlb'

const TCP = 6
const UDP = 17

/** Frames are let through unless a rule is true. */
const refuse = {
  'discard service': ({ protocol, port }) => protocol === UDP && port === 9,
  telnet: ({ protocol, port }) => protocol === TCP && port === 23,
  'fragments, which hide their ports': ({ fragment }) => fragment,
}

/** What the rules see; IPv4 only, all else is `{}`. */
function headers(bytes) {
  const frame = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  if (frame.length < 34 || frame.readUInt16BE(12) !== 0x0800) return {}
  const transport = 14 + (frame[14] & 15) * 4
  const fragment = (frame.readUInt16BE(20) & 0x3fff) !== 0
  const port = frame.length >= transport + 4 ? frame.readUInt16BE(transport + 2) : undefined
  return { protocol: frame[23], port, fragment }
}

const memory = GuestMemory.allocate(64 * MiB)
const iommu = new IntelIommu(memory)
const counters = { forwarded: 0, full: 0 }

function open(name, requester) {
  const tap = Tap.open(name)
  const nic = VhostNet.open({ memory, addressSpace: iommu.addressSpace(requester), backend: tap })
  return { tap, nic, driver: NetDriver.attach(nic, { memory, iommu, mapping: 'lazy' }) }
}

function forward(from, to) {
  from.driver.onFrame(
    (frame) => {
      const seen = headers(frame)
      const rule = Object.keys(refuse).find((name) => refuse[name](seen))
      if (rule !== undefined) counters[rule] = (counters[rule] ?? 0) + 1
      else counters[to.driver.send(frame) ? 'forwarded' : 'full'] += 1
    },
    // The frame is looked at and sent on within the call, so it need not be copied twice.
    { copy: false },
  )
}

const left = open(process.argv[2] ?? 'left%d', '00:03.0')
const right = open(process.argv[3] ?? 'right%d', '00:04.0')
for (const { driver } of [left, right]) await driver.start()
forward(left, right)
forward(right, left)
console.log(`${left.tap.name} <-> ${right.tap.name}`)
await Promise.race([once(process, 'SIGINT'), once(process, 'SIGTERM')])
console.log(JSON.stringify(counters))
for (const { driver, nic, tap } of [left, right])
  for (const each of [driver, nic, tap]) each.close()
memory.close()

// Answers ARP and ping on a tap, every buffer mapped through the IOMMU just for its frame:
//   node ping-responder.mjs [tap]        and then, elsewhere: ping 192.0.2.2
// Formats: RFC 826 (ARP), RFC 791 (IPv4), RFC 792 (ICMP).
import { execFileSync } from 'node:child_process'
import { once } from 'node:events'
import { GuestMemory, IntelIommu, MiB, NetDriver, Tap, VhostNet } from 'vhost-iotlb'

const MAC = Buffer.from([2, 0, 0, 0, 0, 2])
const IP = Buffer.from([192, 0, 2, 2])

/** The answer to a frame, or undefined. */
function answer(request) {
  const reply = Buffer.from(request)
  const type = reply.readUInt16BE(12)
  reply.set(request.subarray(6, 12), 0)
  reply.set(MAC, 6)
  if (type === 0x0806 && reply.readUInt16BE(20) === 1 && reply.subarray(38, 42).equals(IP)) {
    reply.writeUInt16BE(2, 20)
    reply.set(request.subarray(22, 32), 32)
    reply.set(MAC, 22)
    reply.set(IP, 28)
    return reply
  }
  const icmp = 14 + (reply[14] & 15) * 4
  if (type !== 0x0800 || reply[23] !== 1 || reply[icmp] !== 8) return undefined
  if (!reply.subarray(30, 34).equals(IP)) return undefined
  reply.set(request.subarray(26, 30), 30)
  reply.set(IP, 26)
  reply[icmp] = 0
  // RFC 1624: the checksum of the whole changes with the one byte that did.
  const sum = reply.readUInt16BE(icmp + 2) + 0x0800
  reply.writeUInt16BE((sum & 0xffff) + (sum >> 16), icmp + 2)
  return reply
}

const tap = Tap.open(process.argv[2] ?? 'ping%d')
execFileSync('ip', ['addr', 'add', '192.0.2.1/24', 'dev', tap.name])
const memory = GuestMemory.allocate(64 * MiB)
const iommu = new IntelIommu(memory)
const nic = VhostNet.open({ memory, addressSpace: iommu.addressSpace('00:03.0'), backend: tap })
const driver = NetDriver.attach(nic, { memory, iommu, mapping: 'strict' })
driver.onFrame((frame) => {
  const reply = answer(frame)
  if (reply !== undefined) driver.send(reply)
})
await driver.start()
console.log(`${tap.name}: 192.0.2.2 answers`)
await Promise.race([once(process, 'SIGINT'), once(process, 'SIGTERM')])
const { misses, updates, invalidates } = nic.stats()
console.log(JSON.stringify({ ...driver.stats(), misses, updates, invalidates }))
for (const each of [driver, nic, memory, tap]) each.close()

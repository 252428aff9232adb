// Sends frames into a tap as fast as the ring takes them: node packet-generator.mjs [frames]
import { GuestMemory, IntelIommu, MiB, NetDriver, Tap, VhostNet } from 'vhost-iotlb'

const count = Number(process.argv[2] ?? 10_000)
const tap = Tap.open('gen%d')
const memory = GuestMemory.allocate(64 * MiB)
const iommu = new IntelIommu(memory)
const nic = VhostNet.open({ memory, addressSpace: iommu.addressSpace('00:03.0'), backend: tap })
const driver = NetDriver.attach(nic, { memory, iommu, mapping: 'static' })
await driver.start()

const frame = new Uint8Array(60).fill(0xff, 0, 6) // to everybody, of an experimental type
frame.set([2, 0, 0, 0, 0, 1, 0x88, 0xb5], 6)
const batch = new Array(64).fill(frame)
const began = performance.now()
for (let sent = 0; sent < count;) {
  sent += driver.sendBatch(batch.slice(0, count - sent))
  if (sent < count) await driver.ready(frame.length)
}
await driver.flush()
const seconds = (performance.now() - began) / 1000
const { misses, hitRate } = nic.stats()
console.log(JSON.stringify({ sent: driver.stats().completed, seconds, misses, hitRate }))
for (const each of [driver, nic, memory, tap]) each.close()

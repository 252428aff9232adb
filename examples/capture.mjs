// Frames and IOTLB messages in one timeline, for Wireshark:  node capture.mjs [file]
// Then: wireshark -X lua_script:node_modules/vhost-iotlb/wireshark/vhost-iotlb.lua FILE
import { writeFileSync } from 'node:fs'
import {
  GuestMemory,
  IntelIommu,
  MiB,
  NetDriver,
  Recorder,
  Tap,
  TraceWriter,
  VhostNet,
  exportPcapng,
  readTrace,
} from 'vhost-iotlb'

const file = process.argv[2] ?? 'capture.pcapng'
const trace = []
const writer = new TraceWriter((chunk) => trace.push(chunk.slice()), { about: { example: file } })
const recorder = new Recorder(writer.sink)
const port = recorder.port()

const tap = Tap.open('capture%d')
const memory = GuestMemory.allocate(64 * MiB)
const iommu = new IntelIommu(memory)
const addressSpace = iommu.addressSpace('00:03.0')
const nic = VhostNet.open({ memory, addressSpace, backend: tap, ...port.options })
const device = port.device(nic, { memory, addressSpace, frameBytes: 256 })
const driver = NetDriver.attach(device, { memory, iommu, mapping: 'strict' })
await driver.start()

const frame = new Uint8Array(60).fill(0xff, 0, 6)
frame.set([2, 0, 0, 0, 0, 1, 0x88, 0xb5], 6)
for (let i = 0; i < 20; i++) {
  frame[14] = i
  driver.send(frame)
  await driver.flush()
}
for (const each of [driver, nic, memory, tap]) each.close()
writer.close()

const blocks = []
const counts = exportPcapng(readTrace(Buffer.concat(trace)), (block) => blocks.push(block.slice()))
writeFileSync(file, Buffer.concat(blocks))
console.log(JSON.stringify({ file, ...counts }))

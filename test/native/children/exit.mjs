// A process that ends with everything open. First argument: how it ends.
import { openSync, unlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Worker } from 'node:worker_threads'
import { addon, native } from './addon.mjs'

const [how] = process.argv.slice(2)
const memory = native.mapMemory(1 << 20, 0)
const event = native.eventfd(0)
native.hold(event, memory)
native.poll(event, new Uint8Array(memory.buffer), 8, () => {}).unref()
const ready = native.eventfd(1)

// A processor's thread, which must not outlive the process or hold it up.
const path = join(tmpdir(), `vhost-iotlb-${process.pid}`)
writeFileSync(path, new Uint8Array(4096))
const vcpu = native.vcpu(native.adopt(openSync(path, 'r+')), 4096, () => vcpu.resume())
unlinkSync(path)

const ends = {
  natural: () => {
    native.poll(ready, null, 0, () => {}).unref()
    vcpu.close()
  },
  'process.exit': () => process.exit(7),
  'in the listener': () => native.poll(ready, null, 0, () => process.exit(7)),
  throw: () =>
    native.poll(ready, null, 0, () => {
      throw new Error('the end')
    }),
  signal: () => process.kill(process.pid, 'SIGTERM'),
  'with a worker': () => {
    const source = `
      const { workerData, parentPort } = require('node:worker_threads')
      const native = require(workerData.addon)
      const view = native.openMapping(workerData.id)
      const busy = native.eventfd(1)
      native.hold(busy, view)
      native.poll(busy, null, 0, () => parentPort.postMessage(0))`
    const workerData = { addon, id: memory.id }
    new Worker(source, { eval: true, workerData }).once('message', () => process.exit(7))
  },
}
vcpu.resume()
ends[how]()

// Workers that are terminated while they poll, in every state that a poll can be in.
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { rmSync, writeFileSync } from 'node:fs'
import { Worker, isMainThread, parentPort, workerData } from 'node:worker_threads'
import { assert, native } from './addon.mjs'

const ROUNDS = 50

if (isMainThread) {
  const memory = native.mapMemory(4096, 0)
  const path = join(tmpdir(), `vhost-iotlb-${process.pid}`)
  writeFileSync(path, new Uint8Array(4096))
  for (let round = 0; round < ROUNDS; round++) {
    const worker = new Worker(new URL(import.meta.url), {
      workerData: { id: memory.id, round, path },
    })
    await new Promise((resolve) => worker.once('message', resolve))
    await worker.terminate()
  }
  await new Promise((resolve) => setTimeout(resolve, 20))
  rmSync(path)
  assert(memory.holders === 0, `${memory.holders} holders are left`)
  process.stdout.write(`${ROUNDS} workers`)
} else {
  const { id, round, path } = workerData
  const view = native.openMapping(id)
  const idle = native.eventfd(0)
  const busy = native.eventfd(1)
  const one = new BigUint64Array([1n])
  native.hold(idle, view)
  native.poll(idle, new Uint8Array(view.buffer), 8, () => {})
  native.poll(busy, new Uint8Array(8), 8, () => native.write(busy, one, 0, 8), (round % 2) * 500)
  native.poll(native.eventfd(0), null, 0, () => {}).close()
  if (round % 3 === 0)
    native.poll(native.eventfd(1), null, 0, () => {
      for (;;);
    })
  const vcpu = native.vcpu(native.open(path, 2), 4096, () => vcpu.resume(), round % 3 === 1)
  if (round % 2 === 0) vcpu.resume()
  parentPort.postMessage('polling')
  if (round % 5 === 0) process.exit()
}

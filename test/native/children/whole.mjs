// Everything once, on the main thread or in a Worker: memory, guards, descriptors, polls.
import { Worker, isMainThread, parentPort, workerData } from 'node:worker_threads'
import { assert, native } from './addon.mjs'

async function everything(id) {
  const memory = id === undefined ? native.mapMemory(8192, 0) : native.openMapping(id)
  const bytes = new Uint8Array(memory.buffer)
  bytes[1]++

  const event = native.eventfd(0)
  native.hold(event, memory)
  const word = new BigUint64Array([memory.address])
  const foreign = new BigUint64Array([memory.address + 8192n])
  assert(native.writeMany(event, foreign, 8, 1, [0, -1]) === -14, 'a foreign address is refused')
  assert(native.writeMany(event, word, 8, 1, [0, -8192]) === 1, 'an address inside passes')

  const counter = new BigUint64Array(1)
  const address = await new Promise((resolve, reject) => {
    const poller = native.poll(event, counter, 8, (count) => {
      poller.close()
      if (count === 1) resolve(counter[0])
      else reject(new Error(`count ${count}`))
    })
  })
  assert(address === memory.address, 'the poll delivered the word')
  const { length } = bytes
  event.close()
  memory.close()
  return length - bytes.length
}

if (isMainThread) {
  const memory = native.mapMemory(8192, 0)
  const worker = new Worker(new URL(import.meta.url), { workerData: memory.id })
  worker.on('message', (length) => process.stdout.write(`worker ${length} `))
  worker.on('exit', async (code) => {
    assert(code === 0, `the worker exits with ${code}`)
    assert(new Uint8Array(memory.buffer)[1] === 1, 'what the worker wrote is here')
    assert(memory.holders === 0, 'the worker holds nothing any more')
    process.stdout.write(`main ${await everything()}`)
  })
} else {
  parentPort.postMessage(await everything(workerData))
}

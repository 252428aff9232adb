// Two Workers of one process ask and are answered, each with a stack of its own; a word on stdin
// terminates the first one. Ended from outside.
//   serve.mjs HOST HOST
// Writes `HOST COUNT` for each answer, and `left` with what is left once it is terminated.
import { once } from 'node:events'
import { readdirSync, readlinkSync } from 'node:fs'
import { Worker, isMainThread, parentPort, workerData } from 'node:worker_threads'
import { holdings } from './holdings.mjs'
import { Stack } from './stack.mjs'

async function serve(host) {
  const stack = await Stack.open({ host, memory: 64 * 2 ** 20 })
  // The upper half of it, so that what is left of it afterwards would show.
  for (const { range } of stack.memory.regions) {
    const view = stack.memory.view(Number(range.first), Number(range.last - range.first) + 1)
    for (let at = view.length / 2; at < view.length; at += 4096) view[at] = 1
  }
  for (let count = 1; ; count++) {
    if ((await stack.ask()) < 0) throw new Error(`no answer from ${host}`)
    parentPort.postMessage(`${host} ${count}\n`)
  }
}

if (!isMainThread) {
  await serve(workerData)
} else {
  const [first] = process.argv.slice(2).map((host) => {
    const worker = new Worker(new URL(import.meta.url), { workerData: host })
    worker.on('message', (line) => process.stdout.write(line))
    worker.on('error', (error) => {
      throw error
    })
    return worker
  })
  await once(process.stdin, 'data')
  await first.terminate()
  const open = readdirSync('/proc/self/fd').flatMap((fd) => {
    try {
      return [readlinkSync(`/proc/self/fd/${fd}`)]
    } catch {
      return []
    }
  })
  const count = (path) => open.filter((each) => each === path).length
  const left = {
    memories: holdings().mappings,
    devices: count('/dev/vhost-net'),
    taps: count('/dev/net/tun'),
    interfaces: readdirSync('/sys/class/net').filter((name) => name.startsWith('stack')).length,
  }
  process.stdout.write(`left ${JSON.stringify(left)}\n`)
}

// Asks and is answered until it is ended from outside: as a process, or in Workers of one.
//   serve.mjs HOST            this thread
//   serve.mjs HOST HOST …     a Worker for each, all told of on stdout
// Writes a line for each 10 answers: `HOST COUNT`.
import { Worker, isMainThread, parentPort, workerData } from 'node:worker_threads'
import { Stack } from './stack.mjs'

async function serve(host, tell) {
  const stack = await Stack.open({ host, memory: 64 * 2 ** 20 })
  // All of it, so that what is left of it afterwards would show.
  for (const { range } of stack.memory.regions) {
    const bytes = Number(range.last - range.first) + 1
    const view = stack.memory.view(Number(range.first), bytes)
    for (let at = bytes / 2; at < bytes; at += 4096) view[at] = 1
  }
  for (let count = 1; ; count++) {
    if ((await stack.ask()) < 0) throw new Error(`no answer from ${host}`)
    if (count % 10 === 0) tell(`${host} ${count}\n`)
  }
}

if (!isMainThread) {
  await serve(workerData, (line) => parentPort.postMessage(line))
} else {
  const hosts = process.argv.slice(2)
  if (hosts.length === 1) await serve(hosts[0], (line) => process.stdout.write(line))
  for (const host of hosts) {
    const worker = new Worker(new URL(import.meta.url), { workerData: host })
    worker.on('message', (line) => process.stdout.write(line))
    worker.on('error', (error) => {
      throw error
    })
  }
}

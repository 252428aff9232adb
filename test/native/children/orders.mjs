// Random sequences of calls on objects that several threads share, in every order that a program
// can come to: used after close, closed while polled, held twice, unmapped under a view. Some of the
// threads are terminated in the middle.   orders.mjs STEPS SEED THREADS
import { readFileSync, readdirSync } from 'node:fs'
import { Worker, isMainThread, parentPort, workerData } from 'node:worker_threads'
import { assert, native } from './addon.mjs'

const PAGE = 4096
const FIONREAD = 0x541b

function randomOf(seed) {
  let state = Math.imul(seed ^ 0x9e3779b9, 0x85ebca6b) | 1
  return (below) => {
    state ^= state << 13
    state ^= state >>> 17
    state ^= state << 5
    return (state >>> 0) % below
  }
}

/** Steps on what this thread has and on what all share; each returns or throws an Error. */
function wander({ steps, seed, memories, descriptors: shared }) {
  const random = randomOf(seed)
  const pick = (list) => list[random(list.length)]
  const descriptors = [native.eventfd(0)]
  const mappings = [native.mapMemory(PAGE, 0)]
  const pollers = []
  const tally = { done: 0, refused: 0, thrown: 0 }
  const keep = (list, made) => {
    if (typeof made === 'number') return made
    if (list.length < 30) list.push(made)
    else made.close()
    return 0
  }
  const bytes = () => {
    const { buffer } = pick(mappings)
    return random(3) === 0 ? new Uint8Array(64) : new Uint8Array(buffer).subarray(random(PAGE))
  }
  const acts = [
    () => keep(descriptors, native.eventfd(random(3))),
    () =>
      keep(descriptors, native.duplicate(random(2) === 0 ? pick(shared) : pick(descriptors).fd)),
    () => keep(mappings, native.mapMemory(PAGE * (1 + random(4)), 0)),
    () => keep(mappings, native.openMapping(random(2) === 0 ? pick(memories) : pick(mappings).id)),
    () => native.hold(pick(descriptors), pick(mappings)),
    () => native.letGo(pick(descriptors), pick(mappings)),
    () =>
      keep(
        pollers,
        native.poll(pick(descriptors), random(2) ? null : bytes(), 8, () => {}),
      ),
    () =>
      keep(
        pollers,
        native.poll(pick(descriptors), new Uint8Array(16), 8, () => {}, random(50)),
      ),
    () => native.read(pick(descriptors), bytes(), random(8), random(64)),
    () => native.write(pick(descriptors), new Uint8Array([1, 0, 0, 0, 0, 0, 0, 0]), 0, 8),
    () => native.readMany(pick(descriptors), bytes(), 1 + random(72)),
    () => native.writeMany(pick(descriptors), bytes(), 8, random(3), [0, random(2) ? 8 : -1]),
    () => native.ioctl(pick(descriptors), FIONREAD, new Uint8Array(4), 4),
    () => (pick(descriptors).close(), 0),
    () => (pick(mappings).close(), 0),
    () => (pollers.length > 0 ? (pick(pollers).close(), 0) : 0),
    () => (pollers.length > 0 ? (pick(pollers).unref(), 0) : 0),
    () => pick(mappings).holders * 0,
  ]
  for (let step = 0; step < steps; step++) {
    try {
      const result = pick(acts)()
      tally[result < 0 ? 'refused' : 'done']++
    } catch (error) {
      if (!(error instanceof Error)) throw error
      tally.thrown++
    }
  }
  for (const one of [...pollers, ...descriptors, ...mappings]) one.close()
  return tally
}

if (!isMainThread) {
  parentPort.postMessage('begun')
  parentPort.postMessage(wander(workerData))
} else {
  const [steps, seed, threads] = process.argv.slice(2).map(Number)
  const left = () => ({
    descriptors: readdirSync('/proc/self/fd').length,
    mappings: readFileSync('/proc/self/maps', 'utf8').match(/guest-memory/g)?.length ?? 0,
  })
  const total = { done: 0, refused: 0, thrown: 0, terminated: 0 }
  let memories = []
  let descriptors = []
  const one = (thread, round) =>
    new Promise((resolve, reject) => {
      const worker = new Worker(new URL(import.meta.url), {
        workerData: {
          steps,
          seed: seed + 1000 * thread + round,
          memories: memories.map(({ id }) => id),
          descriptors: descriptors.map(({ fd }) => fd),
        },
      })
      worker.on('error', reject)
      worker.on('message', (tally) => {
        if (tally === 'begun') {
          if (round % 3 === 2) void worker.terminate()
        } else {
          for (const [key, count] of Object.entries(tally)) total[key] += count
        }
      })
      worker.on('exit', () => {
        if (round % 3 === 2) total.terminated++
        resolve()
      })
    })
  const rounds = async (thread) => {
    for (let round = 0; round < 3; round++) await one(thread, round)
  }
  // Once before it is counted what a process with Workers keeps open of itself.
  const all = async () => {
    memories = [native.mapMemory(PAGE, 0), native.mapMemory(2 * PAGE, 0)]
    descriptors = [native.eventfd(0), native.eventfd(1)]
    await Promise.all(Array.from({ length: threads }, (_, thread) => rounds(thread)))
    // What the threads had held by the descriptors that they shared goes with the last of them.
    for (const object of [...memories, ...descriptors]) object.close()
  }
  await all()
  const before = left()
  await all()
  for (let i = 0; i < 200 && left().mappings > 0; i++) {
    await new Promise((resolve) => setTimeout(resolve, 10))
  }
  assert(left().mappings === 0, `${left().mappings} mappings are left`)
  assert(left().descriptors <= before.descriptors, `${left().descriptors} descriptors are left`)
  process.stdout.write(JSON.stringify(total))
}

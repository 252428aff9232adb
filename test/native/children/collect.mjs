// Every object dropped in every state: the collector takes what nobody can use, and nothing else.
import { readFileSync, readdirSync } from 'node:fs'
import { assert, native } from './addon.mjs'

const descriptors = () => readdirSync('/proc/self/fd').length
const mappings = () => readFileSync('/proc/self/maps', 'utf8').match(/guest-memory/g)?.length ?? 0
const one = new BigUint64Array([1n])
const wait = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds))

async function settled(condition) {
  for (let i = 0; i < 200 && !condition(); i++) {
    globalThis.gc()
    await wait(5)
  }
}

function drop() {
  native.eventfd(0)
  native.mapMemory(4096, 0)
  const held = native.eventfd(0)
  native.hold(held, native.mapMemory(4096, 0))
  native.mapMemory(4096, 0).close()
  native.openMapping(native.mapMemory(4096, 0).id)
  native
    .poll(native.eventfd(0), new Uint8Array(native.mapMemory(4096, 0).buffer), 8, () => {})
    .close()
  const closed = native.eventfd(0)
  native.poll(closed, null, 0, () => {})
  closed.close()
}

const before = descriptors()
for (let i = 0; i < 100; i++) drop()
await settled(() => descriptors() === before && mappings() === 0)
assert(descriptors() === before, `${descriptors() - before} descriptors leaked`)
assert(mappings() === 0, `${mappings()} mappings leaked`)

// A buffer outlives its mapping object, and a poll outlives its descriptor and poller objects.
const kept = new Uint8Array(native.mapMemory(4096, 0).buffer)
let calls = 0
const number = (() => {
  const event = native.eventfd(0)
  native.poll(event, new Uint8Array(8), 8, () => calls++)
  return event.fd
})()
for (let i = 0; i < 10; i++) {
  globalThis.gc()
  await wait(5)
}
kept[4095] = 1
assert(mappings() === 1, 'the memory under a buffer stays')
const again = native.duplicate(number)
native.write(again, one, 0, 8)
await settled(() => calls > 0)
assert(calls === 1, 'a poll goes on without its objects')
process.stdout.write('collected')
process.exit()

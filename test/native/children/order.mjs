// What a listener starts (ticks, microtasks) is done before the loop goes on.
import { AsyncLocalStorage, createHook, executionAsyncId } from 'node:async_hooks'
import { native } from './addon.mjs'

const seen = []
createHook({ init: (id, type) => type.startsWith('vhost') && seen.push(type) }).enable()
const storage = new AsyncLocalStorage()
const first = native.eventfd(1)
const second = native.eventfd(1)
const done = (name) => () => {
  seen.push(name, executionAsyncId() > 0)
  process.nextTick(() => seen.push(`${name} tick`))
  Promise.resolve().then(() => seen.push(`${name} microtask`))
  seen.push(storage.getStore())
}
storage.run('store', () => native.poll(first, new Uint8Array(8), 8, done('a')).unref())
native.poll(second, new Uint8Array(8), 8, done('b')).unref()
const end = performance.now() + 5000
const timer = setInterval(() => {
  if (!seen.includes('b microtask') && performance.now() < end) return
  clearInterval(timer)
  process.stdout.write(seen.join())
}, 5)

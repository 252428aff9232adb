// What becomes of an exception in a listener. First argument: caught, uncaught or rejected.
import { native } from './addon.mjs'

const [mode] = process.argv.slice(2)
const event = native.eventfd(1)
const one = new BigUint64Array([1n])
const buffer = new Uint8Array(8)

if (mode === 'caught') {
  let calls = 0
  process.on('uncaughtException', (error, origin) => {
    process.stdout.write(`${origin}: ${error.message}; `)
    native.write(event, one, 0, 8)
  })
  const poller = native.poll(event, buffer, 8, () => {
    if (++calls === 3) poller.close()
    throw new Error(`call ${calls}`)
  })
} else if (mode === 'rejected') {
  native.poll(event, buffer, 8, async () => {
    throw new Error('from a promise')
  })
} else {
  native.poll(event, buffer, 8, function listener() {
    throw new Error('from the listener')
  })
}

/**
 * The first processor runs on the thread of the event loop: a guest that never leaves it by itself
 * is called out for whatever the loop has to do.
 */
import { Worker } from 'node:worker_threads'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { native } from '../../lib/native'
import type { Descriptor } from '../../lib/native'
import type { Tap } from '../../lib/vhost/tap'
import { watch } from '../../lib/vhost/watch'
import { Machine } from '../../lib/vmm/machine'
import { quietTap } from '../support/quiet-tap'

/** jmp $ */
const ENDLESS = Uint8Array.of(0xeb, 0xfe)
const WAKES = 60

/** Writes to the descriptor, and looks how many signals wait in this process (proc(5), SigQ). */
const WAKER = `
const { readFileSync, writeSync } = require('node:fs')
const { parentPort, workerData: { fd, times } } = require('node:worker_threads')
const one = Buffer.from([1, 0, 0, 0, 0, 0, 0, 0])
let most = 0
for (let i = 0; i < times; i++) {
  writeSync(fd, one)
  for (let j = 0; j < 3; j++) {
    const status = readFileSync('/proc/self/status', 'latin1')
    most = Math.max(most, Number(/^SigQ:\\s*(\\d+)/m.exec(status)[1]))
  }
}
parentPort.postMessage(most)
`

let tap: Tap
let event: Descriptor

beforeEach(() => {
  tap = quietTap()
  event = native().eventfd(0) as Descriptor
})

afterEach(() => {
  tap.close()
  event.close()
})

describe('a guest that spins on the thread of the event loop', () => {
  it('is called out by one signal for a descriptor that becomes readable', async () => {
    using machine = new Machine({ image: { code: ENDLESS }, tap, memoryMiB: 256 })
    let woken = 0
    const poller = watch(event, new Uint8Array(8), 8, () => woken++)
    machine.start()
    const waker = new Worker(WAKER, { eval: true, workerData: { fd: event.fd, times: WAKES } })
    // More than a few wait where it is sent them until it has gone: then they delay its going.
    const most = await new Promise<number>((resolve) => waker.once('message', resolve))
    poller.close()
    await waker.terminate()
    expect(woken).toBeGreaterThan(0)
    expect(most).toBeLessThan(5)
  })
})

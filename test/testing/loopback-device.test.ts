import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { MiB } from '../../lib/address'
import { NetDriver } from '../../lib/guest/net-driver'
import { GuestMemory } from '../../lib/memory/guest-memory'
import { LoopbackDevice } from '../../lib/testing/loopback-device'
import { DriverQueue } from '../../lib/virtio/driver-queue'
import { features } from '../../lib/virtio/net'
import { ringLayout } from '../../lib/virtio/ring-layout'
import type { RingAddresses } from '../../lib/virtio/ring-layout'

let memory: GuestMemory
beforeEach(() => {
  memory = GuestMemory.allocate(4 * MiB)
})
afterEach(() => {
  memory.close()
})

function ringAt(at: bigint, size = 8): RingAddresses {
  const { desc, avail, used } = ringLayout(size)
  return { size, desc: at + BigInt(desc), avail: at + BigInt(avail), used: at + BigInt(used) }
}

interface Bare {
  readonly rx: DriverQueue
  readonly tx: DriverQueue
  readonly calls: number[]
  readonly errors: number[]
}

/** Rings worked by hand; buffers are gpas. */
function bare(nic: LoopbackDevice, mergeable = true): Bare {
  const [receiving, sending] = [ringAt(0x1000n), ringAt(0x3000n)]
  const rx = new DriverQueue(memory, receiving)
  const tx = new DriverQueue(memory, sending)
  const calls: number[] = []
  const errors: number[] = []
  nic.setFeatures(
    features('VIRTIO_F_VERSION_1') | (mergeable ? features('VIRTIO_NET_F_MRG_RXBUF') : 0n),
  )
  nic.setQueue(0, receiving)
  nic.setQueue(1, sending)
  for (const index of [0, 1]) nic.onCall(index, () => calls.push(index))
  nic.onError((index) => errors.push(index))
  nic.start()
  return { rx, tx, calls, errors }
}

function offer(queue: DriverQueue, address: bigint, length: number, writable: boolean): void {
  expect(queue.add([{ address, length, writable }], 0)).toBe(true)
  queue.publish()
}

describe('LoopbackDevice', () => {
  it('works in a turn of its own after a kick, or when it is told to', async () => {
    using nic = new LoopbackDevice({ memory })
    const { tx, calls } = bare(nic)
    offer(tx, 0x10000n, 72, false)
    nic.kick(1)
    expect(nic.stats().transmitted).toBe(0)
    await new Promise(setImmediate)
    expect(nic.stats().transmitted).toBe(1)
    offer(tx, 0x10000n, 72, false)
    nic.kick(1)
    nic.run()
    expect(nic.stats().transmitted).toBe(2)
    expect(calls).toEqual([1, 1])
  })

  it('keeps a frame until there is a buffer for it', () => {
    using nic = new LoopbackDevice({ memory })
    const { rx } = bare(nic)
    expect(nic.receive(new Uint8Array(60).fill(7))).toBe(true)
    nic.run()
    expect(rx.collect()).toBe(false)
    offer(rx, 0x20000n, 4096, true)
    nic.kick(0)
    nic.run()
    expect(rx.collect()).toBe(true)
    expect(rx.completion.length).toBe(72)
    expect([...memory.view(0x20000 + 10, 4)]).toEqual([1, 0, 7, 7])
  })

  it('spreads a frame over as many buffers as it needs, or none (5.1.6.4)', () => {
    using nic = new LoopbackDevice({ memory })
    const { rx } = bare(nic)
    offer(rx, 0x20000n, 64, true)
    nic.receive(new Uint8Array(100).fill(7))
    nic.run()
    expect(rx.collect()).toBe(false)
    offer(rx, 0x21000n, 64, true)
    nic.kick(0)
    nic.run()
    const lengths = [0, 1].map(() => rx.collect() && rx.completion.length)
    expect(lengths).toEqual([64, 48])
    expect(memory.u16(0x20000 + 10)).toBe(2)
  })

  it('drops a frame that no buffer holds, where buffers are not merged', () => {
    using nic = new LoopbackDevice({ memory })
    const { rx } = bare(nic, false)
    offer(rx, 0x20000n, 64, true)
    nic.receive(new Uint8Array(100))
    nic.receive(new Uint8Array(52))
    nic.run()
    expect(rx.collect()).toBe(true)
    expect(rx.completion.length).toBe(64)
    expect(nic.stats()).toMatchObject({ dropped: 1, received: 1 })
  })

  it('drops what comes while too much waits', () => {
    using nic = new LoopbackDevice({ memory, backlog: 2 })
    bare(nic)
    const taken = [1, 2, 3].map(() => nic.receive(new Uint8Array(60)))
    expect(taken).toEqual([true, true, false])
    expect(nic.stats().dropped).toBe(1)
  })

  it('leaves a chain that it can not reach where it is, and says so', () => {
    using nic = new LoopbackDevice({ memory })
    const { rx, tx, errors } = bare(nic)
    offer(tx, 2n ** 40n, 72, false)
    offer(rx, 2n ** 41n, 4096, true)
    nic.kick(1)
    nic.receive(new Uint8Array(60))
    nic.run()
    expect(errors).toEqual([1, 0])
    expect([tx.collect(), rx.collect()]).toEqual([false, false])
    expect(nic.stats()).toMatchObject({ transmitted: 0, received: 0, errors: 2 })
  })

  it('completes a chain that breaks a rule without using it', () => {
    using nic = new LoopbackDevice({ memory })
    const { tx } = bare(nic)
    offer(tx, 0x10000n, 12, false)
    offer(tx, 0x10000n, 72, false)
    nic.kick(1)
    nic.run()
    expect([tx.collect(), tx.collect()]).toEqual([true, true])
    expect(nic.stats()).toMatchObject({ transmitted: 1, errors: 1 })
  })

  it('goes on where it stopped', () => {
    using nic = new LoopbackDevice({ memory })
    const { tx } = bare(nic)
    offer(tx, 0x10000n, 72, false)
    nic.kick(1)
    nic.run()
    nic.stop()
    offer(tx, 0x10000n, 73, false)
    nic.kick(1)
    nic.run()
    expect(nic.stats().transmitted).toBe(1)
    nic.start()
    nic.kick(1)
    nic.run()
    expect(nic.stats().transmitted).toBe(2)
  })

  it('hands sent frames to a test, with their headers', async () => {
    const sent: object[] = []
    using nic = new LoopbackDevice({
      memory,
      onTransmit: (frame, { gsoType }, pair) => sent.push([frame.length, gsoType, pair]),
    })
    using driver = NetDriver.attach(nic, { memory, mapping: 'off' })
    await driver.start()
    driver.send(new Uint8Array(3000), { gso: { type: 'tcp6', size: 1440, headerLength: 74 } })
    await driver.flush()
    expect(sent).toEqual([[3000, 4, 0]])
  })

  it('refuses what it does not have', () => {
    using nic = new LoopbackDevice({ memory })
    expect(() => {
      nic.setFeatures(features('VIRTIO_F_ACCESS_PLATFORM'))
    }).toThrow(RangeError)
    expect(() => {
      nic.kick(2)
    }).toThrow(RangeError)
    nic.start()
    expect(() => {
      nic.start()
    }).toThrow(expect.objectContaining({ code: 'ERR_ALREADY_STARTED' }))
  })
})

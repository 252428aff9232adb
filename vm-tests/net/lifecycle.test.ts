/** Start, stop, reset of one queue, and what stays between them. */
import { setImmediate as turn } from 'node:timers/promises'
import { expect, test } from 'vitest'
import { features } from '../../lib/virtio/net'
import { frame, ours } from '../support/frames'
import { IntelGuest, PlainGuest, RX, Rig, TX } from '../support/rig'

const plain = (): PlainGuest => new PlainGuest()

test('a device that was stopped goes on where it was', async () => {
  await using rig = await Rig.open((memory) => new IntelGuest(memory))
  const iova = rig.map(0, 'read')
  const length = rig.write(0, frame(1, 100))
  for (let i = 0; i < 5; i++) rig.offer(TX, iova, length)
  await rig.settle()
  rig.nic.stop()
  expect(rig.nic.queueState(TX)).toEqual({ availIndex: 5 })
  expect(rig.nic.stats()).toMatchObject({ entries: 0, unanswered: 0 })

  // Offered while it is stopped: the kick has no effect, the start finds them.
  for (let i = 0; i < 3; i++) rig.offer(TX, iova, length)
  await rig.settle()
  expect(rig.completed[TX]).toBe(5)
  rig.nic.start()
  rig.nic.kick(TX)
  await rig.settle()
  expect(rig.completed[TX]).toBe(8)
  expect(ours(await rig.packets.sync())).toHaveLength(8)
})

test('what was asked before a stop is not answered after it', async () => {
  await using rig = await Rig.open(plain)
  const iova = rig.map(0, 'read')
  rig.guest.unmap(iova)
  rig.offer(TX, iova, rig.write(0, frame(1, 100)))
  await rig.settle()
  expect(rig.nic.stats()).toMatchObject({ unanswered: 1 })
  rig.nic.stop()
  rig.map(0, 'read')
  await rig.settle()
  expect(rig.nic.stats()).toMatchObject({ unanswered: 0, entries: 0 })
  rig.nic.start()
  rig.nic.kick(TX)
  await rig.settle()
  expect(rig.completed[TX]).toBe(1)
})

test('stopping and starting many times loses nothing', async () => {
  await using rig = await Rig.open(plain)
  const iova = rig.map(0, 'read')
  const length = rig.write(0, frame(1, 100))
  for (let i = 0; i < 10; i++) {
    rig.offer(TX, iova, length)
    rig.nic.stop()
    rig.offer(TX, iova, length)
    rig.nic.start()
    rig.nic.kick(TX)
    await rig.settle()
  }
  expect(rig.completed[TX]).toBe(20)
  expect(ours(await rig.packets.sync())).toHaveLength(20)
})

test('one queue is reset while the other waits for an answer: it asks again', async () => {
  await using rig = await Rig.open(plain)
  const iova = rig.map(0, 'read')
  rig.guest.unmap(iova)
  rig.offer(TX, iova, rig.write(0, frame(1, 100)))
  await rig.settle()
  expect(rig.completed[TX]).toBe(0)
  rig.map(0, 'read')
  rig.nic.resetQueue(RX)
  await rig.settle()
  expect(rig.completed[TX]).toBe(1)

  rig.nic.setQueue(RX, rig.rings[RX])
  rig.offer(RX, rig.map(1, 'write'), 4096)
  await rig.packets.send(frame(2, 100, 'host'))
  await rig.settle()
  expect(rig.completed[RX]).toBe(1)
})

test('a driver that acknowledges other features gets a device without the old tables', async () => {
  await using rig = await Rig.open(plain)
  const iova = rig.map(0, 'read')
  rig.offer(TX, iova, rig.write(0, frame(1, 100)))
  await rig.settle()
  rig.nic.stop()
  rig.nic.setFeatures(features('VIRTIO_F_VERSION_1'))
  const [rx, tx] = [RX, TX].map((index) => {
    const offset = 0x1_0000_0000n
    const { size, desc, avail, used } = rig.rings[index]
    return { size, desc: desc - offset, avail: avail - offset, used: used - offset }
  })
  rig.nic.setQueue(RX, rx)
  rig.nic.setQueue(TX, tx, { availIndex: 1 })
  rig.nic.start()
  rig.offer(TX, BigInt(rig.gpa(0)), rig.write(0, frame(2, 100)))
  await rig.settle()
  expect(rig.completed[TX]).toBe(2)
  expect(ours(await rig.packets.sync())).toEqual([frame(1, 100), frame(2, 100)])

  rig.nic.stop()
  rig.nic.setFeatures(features('VIRTIO_F_VERSION_1', 'VIRTIO_F_ACCESS_PLATFORM'))
  rig.nic.setQueue(RX, rig.rings[RX])
  rig.nic.setQueue(TX, rig.rings[TX], { availIndex: 2 })
  rig.nic.start()
  rig.offer(TX, iova, rig.write(0, frame(3, 100)))
  await rig.settle()
  expect(rig.completed[TX]).toBe(3)
})

test('calls come for completions, and end with their subscription', async () => {
  await using rig = await Rig.open(plain)
  let calls = 0
  const subscription = rig.nic.onCall(TX, () => calls++)
  const iova = rig.map(0, 'read')
  rig.offer(TX, iova, rig.write(0, frame(1, 100)))
  await rig.settle()
  for (let i = 0; i < 5; i++) await turn()
  expect(calls).toBeGreaterThanOrEqual(1)
  const seen = calls
  subscription[Symbol.dispose]()
  rig.offer(TX, iova, 112)
  await rig.settle()
  expect(calls).toBe(seen)
})

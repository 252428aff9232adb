/** What an unmapped buffer is worth: when its invalidation is complete, no byte moves any more. */
import { expect, test } from 'vitest'
import { frame, ours } from '../support/frames'
import { IntelGuest, RX, Rig, TX } from '../support/rig'

const POISON = 0xa5
const open = (): Promise<Rig<IntelGuest>> => Rig.open((memory) => new IntelGuest(memory))

test('nothing is sent from a page that was unmapped, although a descriptor still names it', async () => {
  await using rig = await open()
  const iova = rig.map(0, 'read')
  const length = rig.write(0, frame(1, 200))
  rig.offer(TX, iova, length)
  await rig.settle()
  expect(ours(await rig.packets.sync())).toEqual([frame(1, 200)])

  rig.guest.unmap(iova)
  rig.write(0, frame(2, 200))
  rig.offer(TX, iova, length)
  await rig.settle()
  expect(ours(await rig.packets.sync())).toEqual([])
  expect(rig.completed[TX]).toBe(1)
  expect(rig.guest.faults).toBeGreaterThanOrEqual(1)
  expect(rig.nic.stats().unanswered).toBe(1)
})

test('nothing is written to a page that was unmapped, although it was offered before', async () => {
  await using rig = await open()
  const iova = rig.map(0, 'write')
  rig.bytes(0).fill(0)
  rig.offer(RX, iova, 4096)
  await rig.packets.send(frame(1, 200, 'host'))
  await rig.settle()
  expect(rig.completed[RX]).toBe(1)
  expect(rig.bytes(0).subarray(12, 212)).toEqual(frame(1, 200, 'host'))

  rig.offer(RX, iova, 4096)
  rig.guest.unmap(iova)
  rig.bytes(0).fill(POISON)
  await rig.packets.send(frame(2, 200, 'host'))
  await rig.settle()
  expect(rig.completed[RX]).toBe(1)
  expect(rig.bytes(0).every((byte) => byte === POISON)).toBe(true)
})

test('a page that may only be read is not written', async () => {
  await using rig = await open()
  const iova = rig.map(0, 'read')
  rig.bytes(0).fill(POISON)
  rig.offer(RX, iova, 4096)
  await rig.packets.send(frame(1, 200, 'host'))
  await rig.settle()
  expect(rig.completed[RX]).toBe(0)
  expect(rig.bytes(0).every((byte) => byte === POISON)).toBe(true)
  expect(rig.guest.faults).toBeGreaterThanOrEqual(1)
})

test('a page that may only be written is not sent', async () => {
  await using rig = await open()
  const iova = rig.map(0, 'write')
  rig.offer(TX, iova, rig.write(0, frame(1, 200)))
  await rig.settle()
  expect(ours(await rig.packets.sync())).toEqual([])
  expect(rig.completed[TX]).toBe(0)
})

test('the pages beside a mapped one stay out of reach', async () => {
  await using rig = await open()
  // Iovas are given from the top down: the page above is free again.
  const above = rig.map(2, 'readwrite')
  const iova = rig.map(0, 'readwrite')
  expect(above).toBe(iova + 4096n)
  rig.guest.unmap(above)
  rig.bytes(1).fill(POISON)
  rig.bytes(2).fill(POISON)
  rig.offer(RX, iova + 4000n, 4096)
  await rig.packets.send(frame(1, 1000, 'host'))
  await rig.settle()
  expect(rig.completed[RX]).toBe(0)
  for (const page of [1, 2]) expect(rig.bytes(page).every((byte) => byte === POISON)).toBe(true)
})

test('a used ring that may only be read stops a start, before the kernel writes to it', async () => {
  await using rig = await open()
  rig.nic.stop()
  const gpa = 60 * 1024 * 1024
  const iova = rig.guest.map(gpa, 4096, 'read')
  rig.memory.view(gpa, 4096).fill(POISON)
  rig.nic.setQueue(TX, { ...rig.rings[TX], used: iova })
  expect(() => {
    rig.nic.start()
  }).toThrow(/EFAULT.*used ring of queue 1/)
  expect(rig.memory.view(gpa, 4096).every((byte) => byte === POISON)).toBe(true)
  rig.nic.setQueue(TX, rig.rings[TX])
  rig.nic.start()
})

test('when the driver gives its domain up, the kernel holds nothing of it', async () => {
  await using rig = await open()
  const iova = rig.map(0, 'read')
  const length = rig.write(0, frame(1, 200))
  rig.offer(TX, iova, length)
  await rig.settle()
  expect(rig.completed[TX]).toBe(1)
  rig.guest.driver.disable()
  expect(rig.nic.stats()).toMatchObject({ entries: 0 })
})

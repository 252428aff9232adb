/** Queues that stop: with too little permission (K2), and under each policy for faults. */
import { describe, expect, test } from 'vitest'
import type { StallReport } from '../../lib/vhost/net'
import { frame, ours } from '../support/frames'
import { PlainGuest, RX, Rig, TX } from '../support/rig'

const plain = (): PlainGuest => new PlainGuest()

describe('a page that the device holds with too little permission', () => {
  test('is replaced where the tables grant more by now, and the queue goes on', async () => {
    await using rig = await Rig.open(plain)
    const reports: StallReport[] = []
    rig.nic.onStall((report) => reports.push(report))
    const iova = rig.map(0, 'read')
    rig.offer(TX, iova, rig.write(0, frame(1, 100)))
    await rig.settle()
    // The guest grants more and tells nobody: for hardware, that needs no invalidation.
    expect(rig.map(0, 'readwrite')).toBe(iova)
    rig.offer(RX, iova, 4096)
    await rig.packets.send(frame(2, 200, 'host'))
    await rig.settle()
    expect(rig.completed).toEqual([1, 1])
    expect(rig.bytes(0).subarray(12, 212)).toEqual(frame(2, 200, 'host'))
    expect(reports).toMatchObject([
      { queue: RX, reason: 'permission', noticed: 'error', availIndex: 0, head: 0, repaired: 1 },
    ])
    expect(rig.nic.stats()).toMatchObject({ stalls: 1, healed: 1, repairs: 1 })
  })

  test('is reported where they do not, and asked for no more', async () => {
    await using rig = await Rig.open(plain)
    const reports: StallReport[] = []
    const errors: number[] = []
    rig.nic.onStall((report) => reports.push(report))
    rig.nic.onError((queue) => errors.push(queue))
    const iova = rig.map(0, 'read')
    rig.offer(TX, iova, rig.write(0, frame(1, 100)))
    await rig.settle()
    rig.offer(RX, iova, 4096)
    await rig.packets.send(frame(2, 200, 'host'))
    await rig.settle()
    expect(rig.completed).toEqual([0, 1])
    expect(reports).toMatchObject([{ queue: RX, reason: 'fault', repaired: 0, refused: [iova] }])
    expect(errors).toEqual([RX])
    expect(rig.bytes(0).subarray(12, 112)).toEqual(frame(1, 100))
  })

  test('in an indirect chain behind others, on the sending side', async () => {
    await using rig = await Rig.open(plain)
    const written = rig.map(0, 'write')
    const good = rig.map(1, 'read')
    rig.offer(RX, written, 4096)
    await rig.packets.send(frame(1, 100, 'host'))
    await rig.settle()
    rig.offer(TX, good, rig.write(1, frame(2, 100)))
    rig.map(0, 'readwrite')
    rig.offer(TX, written, rig.write(0, frame(3, 100)))
    await rig.settle()
    expect(ours(await rig.packets.sync())).toEqual([frame(2, 100), frame(3, 100)])
    expect(rig.completed).toEqual([1, 2])
  })
})

describe('a page that is not mapped', () => {
  test("policy 'stall': the queue waits, the mapping and a kick let it go on", async () => {
    await using rig = await Rig.open(plain)
    const iova = rig.map(0, 'read')
    rig.guest.unmap(iova)
    const length = rig.write(0, frame(1, 100))
    rig.offer(TX, iova, length)
    await rig.settle()
    expect([rig.completed[TX], rig.nic.started]).toEqual([0, true])
    expect(rig.nic.stats()).toMatchObject({ faults: 1, unanswered: 1 })
    rig.map(0, 'read')
    rig.nic.kick(TX)
    await rig.settle()
    expect(rig.completed[TX]).toBe(1)
  })

  test("policy 'stop': the device stops, and can be started again", async () => {
    await using rig = await Rig.open(plain, { fault: 'stop' })
    const faults: bigint[] = []
    rig.nic.onFault(({ iova }) => faults.push(iova))
    const iova = rig.map(0, 'read')
    rig.guest.unmap(iova)
    rig.offer(TX, iova, rig.write(0, frame(1, 100)))
    await rig.settle()
    expect(rig.nic.started).toBe(false)
    expect(faults).toEqual([iova])
    expect(rig.nic.queueState(TX)).toEqual({ availIndex: 0 })
    rig.map(0, 'read')
    rig.nic.start()
    rig.nic.kick(TX)
    await rig.settle()
    expect(rig.completed[TX]).toBe(1)
  })

  test("policy 'drop': the chain is completed with nothing in it, and those behind it go on", async () => {
    await using rig = await Rig.open(plain, { fault: 'drop' })
    const bad = rig.map(0, 'read')
    rig.guest.unmap(bad)
    const good = rig.map(1, 'read')
    rig.offer(TX, good, rig.write(1, frame(1, 100)))
    rig.offer(TX, bad, 112)
    rig.offer(TX, good, rig.write(1, frame(1, 100)))
    await rig.settle()
    expect(rig.completed[TX]).toBe(3)
    expect(rig.nic.stats()).toMatchObject({ dropped: 1 })
    expect(ours(await rig.packets.sync())).toEqual([frame(1, 100), frame(1, 100)])
  })

  test("policy 'drop', receiving: the bad buffer is given back empty, the next takes the frame", async () => {
    await using rig = await Rig.open(plain, { fault: 'drop' })
    const bad = rig.map(0, 'write')
    rig.guest.unmap(bad)
    rig.offer(RX, bad, 4096)
    rig.offer(RX, rig.map(1, 'write'), 4096)
    await rig.packets.send(frame(1, 100, 'host'))
    await rig.settle()
    expect(rig.completed[RX]).toBe(2)
    expect(rig.bytes(1).subarray(12, 112)).toEqual(frame(1, 100, 'host'))
    expect(rig.nic.stats()).toMatchObject({ dropped: 1 })
  })
})

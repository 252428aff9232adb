/** Guest memory that comes and goes under a running device, with an IOMMU and without. */
import { setImmediate as turn } from 'node:timers/promises'
import { describe, expect, test } from 'vitest'
import { GiB, MiB, PAGE_SIZE } from '../../lib/address'
import { isMapped, until } from '../../test/native/support'
import { frame, ours } from '../support/frames'
import { HEADER, IntelGuest, RX, Rig, TX, physicalGuest } from '../support/rig'
import type { Guest } from '../support/rig'
import type { GuestMemory } from '../../lib/memory/guest-memory'

const ADDED = 4 * GiB
const LENGTH = HEADER + 200

const GUESTS: readonly { readonly name: string; readonly of: (memory: GuestMemory) => Guest }[] = [
  { name: 'with an IOMMU', of: (memory) => new IntelGuest(memory) },
  { name: 'without an IOMMU', of: () => physicalGuest },
]

function write(rig: Rig<Guest>, gpa: number, number: number): void {
  rig.memory.view(gpa, PAGE_SIZE).fill(0, 0, HEADER).set(frame(number, 200), HEADER)
}

async function sent(rig: Rig<Guest>, iova: bigint): Promise<readonly Uint8Array[]> {
  rig.offer(TX, iova, LENGTH)
  await rig.settle()
  return ours(await rig.packets.sync())
}

describe.each(GUESTS)('$name', ({ of }) => {
  test('frames flow out of and into a region that was added, beside those of the others', async () => {
    await using rig = await Rig.open(of)
    const low = rig.map(0, 'read')
    rig.write(0, frame(1, 200))
    expect(await sent(rig, low)).toEqual([frame(1, 200)])

    rig.memory.add({ gpa: ADDED, bytes: 1 * MiB })
    expect(await sent(rig, low)).toEqual([frame(1, 200)])
    write(rig, ADDED, 2)
    expect(await sent(rig, rig.guest.map(ADDED, PAGE_SIZE, 'read'))).toEqual([frame(2, 200)])

    const into = ADDED + MiB - PAGE_SIZE
    rig.offer(RX, rig.guest.map(into, PAGE_SIZE, 'write'), PAGE_SIZE)
    await rig.packets.send(frame(3, 200, 'host'))
    await rig.settle()
    expect(rig.completed).toEqual([1, 3])
    expect(rig.memory.view(into + HEADER, 200)).toEqual(frame(3, 200, 'host'))
  })

  test('a region that was removed is out of reach, and the device is told so', async () => {
    await using rig = await Rig.open(of)
    const { hva } = rig.memory.add({ gpa: ADDED, bytes: 1 * MiB })
    const iova = rig.guest.map(ADDED, PAGE_SIZE, 'readwrite')
    write(rig, ADDED, 1)
    expect(await sent(rig, iova)).toEqual([frame(1, 200)])

    const told: string[] = []
    rig.nic.onFault(({ cause }) => told.push(cause))
    rig.nic.onStall(() => told.push('stall'))
    rig.memory.remove(ADDED)
    await until(() => !isMapped(hva))
    expect(await sent(rig, iova)).toEqual([])
    expect(rig.completed[TX]).toBe(1)
    await until(() => told.length > 0)
    expect(new Set(told)).toEqual(new Set([rig.guest === physicalGuest ? 'stall' : 'memory']))
  })

  test('what waits for a region goes on when it comes back, with what is in it then', async () => {
    await using rig = await Rig.open(of)
    rig.memory.add({ gpa: ADDED, bytes: 1 * MiB })
    const iova = rig.guest.map(ADDED, PAGE_SIZE, 'readwrite')
    write(rig, ADDED, 1)
    rig.memory.remove(ADDED)
    expect(await sent(rig, iova)).toEqual([])
    expect(rig.completed[TX]).toBe(0)

    // A page of zeros, which is a frame of no type of ours.
    rig.memory.add({ gpa: ADDED, bytes: 1 * MiB })
    await rig.settle()
    expect(rig.completed[TX]).toBe(1)
    expect(ours(await rig.packets.sync())).toEqual([])
    write(rig, ADDED, 2)
    expect(await sent(rig, iova)).toEqual([frame(2, 200)])
  })

  test('regions come and go while frames are sent, and none is lost', async () => {
    const frames = 256
    await using rig = await Rig.open(of)
    const iova = rig.map(0, 'read')
    rig.write(0, frame(1, 200))
    for (let i = 0; i < frames; i++) {
      rig.offer(TX, iova, LENGTH)
      if (i % 16 === 3) rig.memory.add({ gpa: ADDED, bytes: 1 * MiB })
      if (i % 16 === 11) rig.memory.remove(ADDED)
      while (i - rig.completed[TX] > 32) {
        await turn()
        rig.collect()
      }
    }
    await until(() => {
      rig.collect()
      return rig.completed[TX] === frames
    })
    expect(ours(await rig.packets.sync())).toHaveLength(frames)
  })
})

/** The kernel's dirty log against what the kernel did: pages compared before and after. */
import { describe, expect, test } from 'vitest'
import { GiB, MiB, PAGE_SIZE } from '../../lib/address'
import type { Gpa, Range } from '../../lib/address'
import type { GuestMemory } from '../../lib/memory/guest-memory'
import { frame, ours } from '../support/frames'
import { HEADER, IntelGuest, RX, Rig, TX, physicalGuest } from '../support/rig'
import type { Guest } from '../support/rig'

const GUESTS: readonly { readonly name: string; readonly of: (memory: GuestMemory) => Guest }[] = [
  { name: 'with an IOMMU', of: (memory) => new IntelGuest(memory) },
  { name: 'without an IOMMU', of: () => physicalGuest },
]
const LENGTH = HEADER + 200
const BUFFERS = 8
const SENT = 32

function pagesOf(ranges: readonly Range<Gpa>[]): number[] {
  return ranges.flatMap(({ first, last }) => {
    expect(first % 4096n).toBe(0n)
    expect(last % 4096n).toBe(4095n)
    const pages = Number((last - first + 1n) >> 12n)
    return Array.from({ length: pages }, (_, i) => Number(first >> 12n) + i)
  })
}

/** Buffers that stay mapped, so that the guest writes nothing but its part of the rings. */
class Traffic {
  readonly into: readonly bigint[]
  readonly from: bigint
  #number = 0

  constructor(readonly rig: Rig<Guest>) {
    this.into = Array.from({ length: BUFFERS }, (_, i) => rig.map(i, 'write'))
    rig.write(SENT, frame(0, 200))
    this.from = rig.map(SENT, 'read')
  }

  /** Frames in both directions; all of them arrive. */
  async run(): Promise<void> {
    const { rig } = this
    const [received, sent] = rig.completed
    rig.offerAll(RX, this.into, PAGE_SIZE)
    const frames = this.into.map(() => frame(++this.#number, 200, 'host'))
    await rig.packets.send(...frames)
    rig.offerAll(TX, [this.from, this.from], LENGTH)
    await rig.settle()
    expect(rig.completed).toEqual([received + BUFFERS, sent + 2])
    expect(ours(await rig.packets.sync())).toHaveLength(2)
  }

  /** Pages on which the guest writes: descriptors and available rings. */
  get guestPages(): readonly number[] {
    return [RX, TX].map((queue) => this.rig.ringPage(queue))
  }

  /** All that the kernel may write. */
  get kernelPages(): readonly number[] {
    const buffers = Array.from({ length: BUFFERS }, (_, i) => this.rig.gpa(i) / PAGE_SIZE)
    return [...[RX, TX].map((queue) => this.rig.ringPage(queue) + 1), ...buffers]
  }
}

function bytesOf(rig: Rig<Guest>): Uint8Array {
  return rig.memory.view(0, 64 * MiB)
}

function pageIn(bytes: Uint8Array, page: number): Uint8Array {
  return bytes.subarray(page * PAGE_SIZE, (page + 1) * PAGE_SIZE)
}

function changed(before: Uint8Array, after: Uint8Array): number[] {
  const pages: number[] = []
  for (let at = 0; at < before.length; at += MiB) {
    const [one, other] = [before, after].map((bytes) => bytes.subarray(at, at + MiB))
    if (Buffer.compare(one, other) === 0) continue
    for (let page = at / PAGE_SIZE; page < (at + MiB) / PAGE_SIZE; page++) {
      if (Buffer.compare(pageIn(before, page), pageIn(after, page)) !== 0) pages.push(page)
    }
  }
  return pages
}

describe.each(GUESTS)('$name', ({ of }) => {
  test('every page that the kernel changed is in the log, used rings too, and no page beside', async () => {
    await using rig = await Rig.open(of, { usedApart: true })
    const traffic = new Traffic(rig)
    await traffic.run()
    const log = rig.nic.startDirtyLog()
    const before = bytesOf(rig).slice()
    await traffic.run()
    const found = pagesOf(log.take())
    const written = changed(before, bytesOf(rig)).filter(
      (page) => !traffic.guestPages.includes(page),
    )
    expect(written).toEqual(expect.arrayContaining([...traffic.kernelPages]))
    expect(written.filter((page) => !found.includes(page))).toEqual([])
    expect(found.filter((page) => !traffic.kernelPages.includes(page))).toEqual([])
    expect(log.take()).toEqual([])
  })

  test('a copy that is made in passes while frames flow is the memory when the device stops', async () => {
    await using rig = await Rig.open(of, { usedApart: true })
    const traffic = new Traffic(rig)
    const log = rig.nic.startDirtyLog()
    const copy = bytesOf(rig).slice()
    const pass = (): number => {
      const pages = pagesOf(log.take())
      for (const page of pages) pageIn(copy, page).set(pageIn(bytesOf(rig), page))
      return pages.length
    }
    for (let round = 0; round < 4; round++) {
      const running = traffic.run()
      pass()
      await running
      expect(pass()).toBeGreaterThan(0)
    }
    await traffic.run()
    rig.nic.stop()
    pass()
    const differ = changed(copy, bytesOf(rig)).filter((page) => !traffic.guestPages.includes(page))
    expect(differ).toEqual([])
    rig.nic.start()
    await traffic.run()
    expect(pass()).toBeGreaterThan(0)
  })

  test('it starts and ends under a running device, which loses no frame by it', async () => {
    await using rig = await Rig.open(of, { usedApart: true })
    const traffic = new Traffic(rig)
    const first = rig.nic.startDirtyLog()
    expect(() => rig.nic.startDirtyLog()).toThrow(
      expect.objectContaining({ code: 'ERR_ALREADY_STARTED' }) as Error,
    )
    await traffic.run()
    first.close()
    await traffic.run()
    expect(() => first.take()).toThrow(expect.objectContaining({ code: 'ERR_CLOSED' }) as Error)
    // What was written without a log is in none.
    const second = rig.nic.startDirtyLog()
    expect(second.take()).toEqual([])
    await traffic.run()
    expect(pagesOf(second.take())).toEqual(expect.arrayContaining([...traffic.kernelPages]))
  })

  test('it covers a region that is added beyond its end', async () => {
    await using rig = await Rig.open(of, { usedApart: true })
    const traffic = new Traffic(rig)
    const log = rig.nic.startDirtyLog()
    await traffic.run()
    const gpa = 4 * GiB
    rig.memory.add({ gpa, bytes: 1 * MiB })
    rig.offer(RX, rig.guest.map(gpa + 5 * PAGE_SIZE, PAGE_SIZE, 'write'), PAGE_SIZE)
    await rig.packets.send(frame(9, 200, 'host'))
    await rig.settle()
    const found = pagesOf(log.take())
    expect(found).toContain(gpa / PAGE_SIZE + 5)
    // What was noted before the log grew.
    expect(found).toEqual(expect.arrayContaining([...traffic.kernelPages]))
    rig.memory.remove(gpa)
    await traffic.run()
    expect(pagesOf(log.take())).toEqual(expect.arrayContaining([...traffic.kernelPages]))
  })
})

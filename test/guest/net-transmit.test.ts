import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { MiB, PAGE_SIZE } from '../../lib/address'
import { InvalidState } from '../../lib/errors'
import type { GuestDma } from '../../lib/guest/dma'
import { IntelIommuDriver } from '../../lib/guest/intel-iommu-driver'
import { PageTranslation } from '../../lib/memory/address-space'
import { features } from '../../lib/virtio/net'
import type { SplitQueue } from '../../lib/virtio/split-queue'
import { Guest, HandDevice, SOURCE, expectFrames, frameOf, take } from './net-guest'

let guest: Guest

beforeEach(() => {
  guest = new Guest()
})
afterEach(() => {
  guest[Symbol.dispose]()
})

describe('NetDriver, sending', () => {
  it('says that there is no room, and when there is', async () => {
    using nic = guest.loopback({ onTransmit: () => undefined })
    using driver = guest.attach(nic, { queueSize: 8 })
    await driver.start()
    for (let i = 0; i < 8; i++) expect(driver.send(frameOf(60))).toBe(true)
    expect(driver.send(frameOf(60))).toBe(false)
    expect(driver.sendBatch([frameOf(60), frameOf(60)])).toBe(0)
    await driver.ready()
    expect(driver.send(frameOf(60))).toBe(true)
    await driver.flush()
    expect(driver.stats()).toMatchObject({ sent: 9, completed: 9 })
    expect(nic.stats().transmitted).toBe(9)
  })

  it('offers as much of a batch as there is room for, with one kick', async () => {
    const nic = new HandDevice(guest)
    using driver = guest.attach(nic, { queueSize: 8 })
    await driver.start()
    nic.kicks.length = 0
    expect(driver.sendBatch(Array.from({ length: 20 }, () => frameOf(60)))).toBe(8)
    expect(nic.kicks).toEqual([1])
  })

  it('has room for long frames and frames in place where short ones have been', async () => {
    const sent: Uint8Array[] = []
    using nic = guest.loopback({
      features: features('VIRTIO_F_VERSION_1', 'VIRTIO_F_ACCESS_PLATFORM'),
      onTransmit: (frame) => sent.push(frame.slice()),
    })
    using driver = guest.attach(nic, { queueSize: 8 })
    await driver.start()
    const gpa = guest.pages.allocate() * PAGE_SIZE
    guest.memory.view(gpa, 100).set(frameOf(100, 5))
    for (let round = 0; round < 5; round++) {
      for (let i = 0; i < 8; i++) expect(driver.send(frameOf(60 + i))).toBe(true)
      await driver.flush()
      expect(driver.send(frameOf(30_000))).toBe(true)
      await driver.flush()
      for (let i = 0; i < 8; i++) expect(driver.send(frameOf(1000 - i))).toBe(true)
      await driver.flush()
      for (let i = 0; i < 4; i++) expect(driver.sendInPlace(gpa, 100)).toBe(true)
      driver.publish()
      await driver.flush()
    }
    const round = [
      ...Array.from({ length: 8 }, (_, i) => frameOf(60 + i)),
      frameOf(30_000),
      ...Array.from({ length: 8 }, (_, i) => frameOf(1000 - i)),
      ...Array.from({ length: 4 }, () => frameOf(100, 5)),
    ]
    expectFrames(sent, Array.from({ length: 5 }, () => round).flat())
  })

  it('refuses lengths that no frame has', async () => {
    using nic = guest.loopback()
    using driver = guest.attach(nic)
    await driver.start()
    for (const bytes of [0, 13, 65_554])
      expect(() => driver.send(frameOf(bytes))).toThrow(RangeError)
    expect(driver.send(frameOf(65_553))).toBe(true)
  })

  it('refuses frames for which there never is room, rather than let them wait', async () => {
    using nic = guest.loopback()
    using driver = guest.attach(nic, { queueSize: 8 })
    await driver.start()
    expect(driver.send(frameOf(8 * 4096 - 12))).toBe(true)
    expect(() => driver.send(frameOf(8 * 4096 - 11))).toThrow(RangeError)
    await expect(driver.ready(8 * 4096 - 11)).rejects.toThrow(RangeError)
  })

  it('does not read the frame after send() returned', async () => {
    using nic = guest.loopback()
    using driver = guest.attach(nic)
    await driver.start()
    const frame = frameOf(5000)
    driver.send(frame)
    frame.fill(0)
    expectFrames(await take(driver, 1), [frameOf(5000)])
  })

  it('strict: each page is mapped while the device has it, and a stale descriptor faults', async () => {
    const nic = new HandDevice(guest)
    using driver = guest.attach(nic)
    await driver.start()
    driver.send(frameOf(6000))
    const queue = nic.queue(1)
    expect(queue.next()).toBe(true)
    const { chain } = queue
    const stale = [...chain.page.subarray(0, chain.count)]
    expect(stale).toHaveLength(2)
    const out = new PageTranslation()
    for (const page of stale) {
      expect(guest.space.translatePage(page, 1, out)).toBe(true)
      expect(guest.space.translatePage(page, 2, out)).toBe(false)
    }
    const sent = frameOf(6000)
    expect(guest.memory.view(guest.gpaOf(stale[0]) + 12, 4084)).toEqual(sent.subarray(0, 4084))
    expect(guest.memory.view(guest.gpaOf(stale[1]), 1916)).toEqual(sent.subarray(4084))
    queue.complete(chain.head, 0)
    queue.publish()
    nic.call(1)
    for (const page of stale) {
      expect(guest.space.translatePage(page, 1, out)).toBe(false)
      expect(out.reason).toBe(6)
    }
  })

  it('a receive buffer can be written and not read by the device', async () => {
    const nic = new HandDevice(guest)
    using driver = guest.attach(nic)
    await driver.start()
    const queue = nic.queue(0)
    expect(queue.pending()).toBe(256)
    queue.next()
    const out = new PageTranslation()
    expect(guest.space.translatePage(queue.chain.page[0], 2, out)).toBe(true)
    expect(guest.space.translatePage(queue.chain.page[0], 1, out)).toBe(false)
    expect(driver.stats().received).toBe(0)
  })

  it('hears of the last completion, whatever the pace of the device', async () => {
    for (const count of [1, 2, 3, 4, 7, 64]) {
      const nic = new HandDevice(guest)
      using driver = guest.attach(nic, { mapping: 'off' })
      await driver.start()
      driver.sendBatch(Array.from({ length: count }, () => frameOf(60)))
      let flushed = false
      void driver.flush().then(() => (flushed = true))
      const queue = nic.queue(1)
      let calls = 0
      while (queue.next()) {
        queue.complete(queue.chain.head, 0)
        if (!queue.publish()) continue
        calls++
        nic.call(1)
      }
      await new Promise(setImmediate)
      expect(flushed).toBe(true)
      expect(calls).toBeLessThanOrEqual(Math.ceil(Math.log2(count) / 2) + 2)
    }
  })

  it('gives a frame back that it could not map as a whole', async () => {
    const nic = new HandDevice(guest)
    let left = Infinity
    const real = strictDma()
    const dma: GuestDma = {
      mode: 'strict',
      enable: () => {
        real.enable()
      },
      disable: () => {
        real.disable()
      },
      mapPages: (page, count, access) => {
        if (left-- === 0) throw new InvalidState('ERR_EXHAUSTED', 'no iova')
        return real.mapPages(page, count, access)
      },
      unmapPages: (page, count) => {
        real.unmapPages(page, count)
      },
      flush: () => undefined,
    }
    using driver = guest.attach(nic, { dma, queueSize: 8 })
    await driver.start()
    for (const mapped of [0, 1, 7]) {
      left = mapped
      expect(() => driver.send(frameOf(30_000))).toThrow(/no iova/)
    }
    left = Infinity
    expect(nic.queue(1).pending()).toBe(0)
    expect(driver.send(frameOf(30_000))).toBe(true)
    expect(nic.queue(1).pending()).toBe(1)
    expect(driver.stats().sent).toBe(1)
  })

  it('one descriptor of the ring for a frame of many pages, where tables are indirect', async () => {
    const nic = new HandDevice(guest)
    using driver = guest.attach(nic, { queueSize: 4, sendBuffers: 64 })
    await driver.start()
    for (let i = 0; i < 3; i++) expect(driver.send(frameOf(65_000))).toBe(true)
    const queue = nic.queue(1)
    expect(queue.next()).toBe(true)
    expect(queue.chain.count).toBe(16)
    expect(queue.chain.indirectBytes).toBe(256)
  })

  it('sendFrom: a part of other bytes, seen by the device with the next publish', async () => {
    const nic = new HandDevice(guest)
    using driver = guest.attach(nic)
    await driver.start()
    nic.kicks.length = 0
    const bytes = frameOf(3000)
    for (const [at, length] of [
      [0, 14],
      [100, 300],
      [7, 60],
      [1000, 2000],
    ]) {
      expect(driver.sendFrom(bytes, at, length)).toBe(true)
    }
    const queue = nic.queue(1)
    expect([nic.kicks.length, queue.pending()]).toEqual([0, 0])
    driver.publish()
    expect([nic.kicks, queue.pending()]).toEqual([[1], 4])
    expect(sentBy(queue)).toEqual([
      bytes.slice(0, 14),
      bytes.slice(100, 400),
      bytes.slice(7, 67),
      bytes.slice(1000, 3000),
    ])
    expect(() => driver.sendFrom(bytes, 2990, 60)).toThrow(RangeError)
    expect(() => driver.sendFrom(bytes, -1, 60)).toThrow(RangeError)
  })

  it.each([false, true])('sendInPlace: the very bytes, headroom %s', async (headroom) => {
    const nic = new HandDevice(guest)
    const dma = strictDma()
    using driver = guest.attach(nic, { dma, queueSize: 8 })
    await driver.start()
    const gpa = guest.pages.allocate(16) * PAGE_SIZE + 12
    const bytes = frameOf(60_000)
    guest.memory.view(gpa, bytes.length).set(bytes)
    const back: number[][] = []
    driver.onSent((cookie, pair) => back.push([cookie, pair]))
    const checksum = { start: 34, offset: 16 }
    const before = dma.submitted.submissions
    for (let cookie = 1; cookie <= 3; cookie++) {
      const options = { cookie, headroom, checksum }
      expect(driver.sendInPlace(gpa, 60_000, options)).toBe(true)
    }
    driver.publish()
    const queue = nic.queue(1)
    expect(queue.next()).toBe(true)
    const { chain } = queue
    expect(chain.count).toBe(headroom ? 1 : 2)
    expect(guest.gpaOf(chain.page[headroom ? 0 : 1])).toBe(gpa - 12)
    expect(guest.memory.view(guest.gpaOf(chain.page[0]), 8)[6]).toBe(34)
    const page = chain.page[headroom ? 0 : 1]
    queue.putBack()
    expectFrames(sentBy(queue), [bytes, bytes, bytes])
    queue.publish()
    expect(back).toEqual([])
    nic.call(1)
    expect(back).toEqual([
      [1, 0],
      [2, 0],
      [3, 0],
    ])
    expect(guest.space.translatePage(page, 1, new PageTranslation())).toBe(false)
    expect(dma.submitted.submissions).toBeGreaterThan(before)
    expect(driver.stats()).toMatchObject({ sent: 3, completed: 3 })
  })

  it('sendInPlace refuses what is not memory, and says when there is no room', async () => {
    using nic = guest.loopback()
    using driver = guest.attach(nic, { queueSize: 4, indirect: false, mapping: 'static' })
    await driver.start()
    const page = guest.pages.allocate(1) * PAGE_SIZE
    expect(() => driver.sendInPlace(8 * MiB - 30, 60)).toThrow(RangeError)
    expect(() => driver.sendInPlace(-60, 60)).toThrow(RangeError)
    expect(() => driver.sendInPlace(page, 13)).toThrow(RangeError)
    expect(() => driver.sendInPlace(page + 11, 60, { headroom: true })).toThrow(RangeError)
    expect(driver.sendInPlace(page, 60)).toBe(true)
    expect(driver.sendInPlace(page, 60)).toBe(true)
    expect(driver.sendInPlace(page, 60)).toBe(false)
    driver.publish()
    await driver.ready()
    expect(driver.sendInPlace(page, 60)).toBe(true)
  })

  it('a frame may be sent again while it is heard that it was', async () => {
    using nic = guest.loopback({ onTransmit: () => undefined })
    using driver = guest.attach(nic, { queueSize: 4 })
    await driver.start()
    const gpa = guest.pages.allocate(1) * PAGE_SIZE
    let left = 40
    driver.onSent((cookie) => {
      if (left-- <= 0) return
      expect(driver.sendInPlace(gpa, 60, { cookie })).toBe(true)
      driver.publish()
    })
    for (const cookie of [1, 2, 3]) expect(driver.sendInPlace(gpa, 60, { cookie })).toBe(true)
    driver.publish()
    await driver.flush()
    while (driver.stats().completed < 43) await new Promise(setImmediate)
    expect(nic.stats()).toMatchObject({ transmitted: 43, errors: 0 })
  })
})

function strictDma(): IntelIommuDriver {
  const { iommu, memory, pages } = guest
  return new IntelIommuDriver(iommu, memory, { requester: SOURCE, mode: 'strict', pages })
}

/** Completes all that is there; each frame without its header. */
function sentBy(queue: SplitQueue): Uint8Array[] {
  const frames: Uint8Array[] = []
  while (queue.next()) {
    const { chain } = queue
    const parts: Uint8Array[] = []
    for (let i = 0; i < chain.count; i++) {
      const at = guest.gpaOf(chain.page[i]) + chain.offset[i]
      parts.push(guest.memory.view(at, chain.length[i]))
    }
    frames.push(new Uint8Array(Buffer.concat(parts).subarray(12)))
    queue.complete(chain.head, 0)
  }
  return frames
}

import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { PAGE_SIZE } from '../../lib/address'
import { IntelIommuDriver } from '../../lib/guest/intel-iommu-driver'
import { PageTranslation } from '../../lib/memory/address-space'
import { Guest, HandDevice, SOURCE, frameOf, take } from './net-guest'

let guest: Guest

beforeEach(() => {
  guest = new Guest()
})
afterEach(() => {
  guest[Symbol.dispose]()
})

describe('NetDriver, receiving', () => {
  it('puts a frame together from several buffers (5.1.6.4)', async () => {
    const nic = new HandDevice(guest)
    using driver = guest.attach(nic)
    await driver.start()
    nic.deliver(nic.queue(0), 3, 4096, 4096, 100)
    const [frame] = await take(driver, 1)
    expect(frame.length).toBe(4084 + 4096 + 100)
    expect([frame[12], frame[4084], frame[4084 + 4096]]).toEqual([1, 2, 3])
  })

  it('drops what can not be a frame, and goes on', async () => {
    const nic = new HandDevice(guest)
    using driver = guest.attach(nic)
    await driver.start()
    const queue = nic.queue(0)
    nic.deliver(queue, 1, 12)
    nic.deliver(queue, 1, 0)
    nic.deliver(queue, 0, 100)
    nic.deliver(queue, 65_535, 100)
    nic.deliver(queue, 17, ...new Array<number>(17).fill(4096))
    expect(driver.stats()).toMatchObject({ received: 0, malformed: 5 })
    nic.deliver(queue, 1, 72)
    expect((await take(driver, 1))[0].length).toBe(60)
    expect(queue.pending()).toBe(256)
  })

  it('strict: each buffer is unmapped and invalidated before its frame is handed over', async () => {
    const nic = new HandDevice(guest)
    const dma = new IntelIommuDriver(guest.iommu, guest.memory, {
      requester: SOURCE,
      mode: 'strict',
      pages: guest.pages,
    })
    using driver = guest.attach(nic, { dma })
    await driver.start()
    const queue = nic.queue(0)
    queue.next()
    const page = queue.chain.page[0]
    const out = new PageTranslation()
    expect(guest.space.translatePage(page, 2, out)).toBe(true)
    queue.putBack()
    let frames = 0
    driver.onFrame(
      () => {
        frames++
        expect(guest.space.translatePage(page, 2, out)).toBe(false)
      },
      { copy: false },
    )
    const before = dma.submitted.submissions
    nic.deliver(queue, 1, 100)
    expect(frames).toBe(1)
    expect(dma.submitted.submissions - before).toBe(1)
    expect(queue.pending()).toBe(256)
  })

  it('hands over bytes without a copy, for the time of the call', async () => {
    using nic = guest.loopback()
    using driver = guest.attach(nic, { mapping: 'static' })
    await driver.start()
    const seen: [number, boolean][] = []
    driver.onFrame(
      (frame) => {
        seen.push([frame.length, frame.buffer === guest.memory.view(0, 1).buffer])
      },
      { copy: false },
    )
    driver.onFrame((frame) => {
      seen.push([frame.length, frame.buffer === guest.memory.view(0, 1).buffer])
    })
    driver.send(frameOf(100))
    await driver.flush()
    while (seen.length < 2) await new Promise(setImmediate)
    expect(seen).toEqual([
      [100, true],
      [100, false],
    ])
  })

  it('holds frames for who comes first, up to a limit, and counts the others', async () => {
    using nic = guest.loopback()
    using driver = guest.attach(nic, { backlog: 3 })
    await driver.start()
    driver.sendBatch(Array.from({ length: 5 }, (_, i) => frameOf(60 + i)))
    await driver.flush()
    while (driver.stats().received < 5) await new Promise(setImmediate)
    expect(driver.stats().dropped).toBe(2)
    const seen: number[] = []
    using listening = driver.onFrame((frame) => seen.push(frame.length))
    await Promise.resolve()
    expect(listening).toBeDefined()
    expect(seen).toEqual([60, 61, 62])
  })

  it('a reader that is slower than the device loses frames, not the others', async () => {
    using nic = guest.loopback()
    using driver = guest.attach(nic, { backlog: 2 })
    await driver.start()
    const slow = driver.frames()
    const seen: number[] = []
    driver.onFrame((frame) => seen.push(frame.length))
    driver.sendBatch(Array.from({ length: 5 }, (_, i) => frameOf(60 + i)))
    await driver.flush()
    while (seen.length < 5) await new Promise(setImmediate)
    expect(driver.stats().dropped).toBe(3)
    expect((await slow.next()).value).toEqual(frameOf(60))
    expect((await slow.next()).value).toEqual(frameOf(61))
  })

  it('ends an iteration when it is told to, by break, by signal and by close', async () => {
    using nic = guest.loopback()
    const driver = guest.attach(nic)
    await driver.start()
    const abort = new AbortController()
    const iterations = [driver.frames({ signal: abort.signal }), driver.frames()]
    const waiting = iterations.map((each) => each.next())
    abort.abort()
    expect(await waiting[0]).toEqual({ value: undefined, done: true })
    driver.close()
    expect(await waiting[1]).toEqual({ value: undefined, done: true })
    for await (const frame of driver.frames()) expect(frame).toBe('never')
    for await (const frame of driver.frames({ signal: AbortSignal.abort() })) {
      expect(frame).toBe('never')
    }
  })

  it('a listener that throws is heard, and the ring goes on', async () => {
    using nic = guest.loopback()
    using driver = guest.attach(nic)
    await driver.start()
    const errors: unknown[] = []
    const heard = (error: unknown): void => void errors.push(error)
    const others = process.listeners('uncaughtException')
    process.removeAllListeners('uncaughtException')
    process.on('uncaughtException', heard)
    let calls = 0
    driver.onFrame(() => {
      calls++
      throw new Error('mine')
    })
    driver.sendBatch([frameOf(60), frameOf(61)])
    await driver.flush()
    while (calls < 2) await new Promise(setImmediate)
    await new Promise(setImmediate)
    process.removeListener('uncaughtException', heard)
    for (const other of others) process.on('uncaughtException', other)
    expect(errors).toEqual([new Error('mine'), new Error('mine')])
  })

  it('leaves the loop some air between a ring and the next', async () => {
    const nic = new HandDevice(guest)
    using driver = guest.attach(nic, { queueSize: 4, mapping: 'off' })
    await driver.start()
    const queue = nic.queue(0)
    let frames = 0
    driver.onFrame(() => {
      frames++
      if (frames > 20) return
      queue.next()
      guest.memory
        .view(queue.chain.page[0] * PAGE_SIZE, 12)
        .set([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0])
      queue.complete(queue.chain.head, 72)
      queue.publish()
    })
    queue.next()
    guest.memory.view(queue.chain.page[0] * PAGE_SIZE, 12).set([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0])
    queue.complete(queue.chain.head, 72)
    queue.publish()
    nic.call(0)
    expect(frames).toBeLessThanOrEqual(4)
    while (frames < 21) await new Promise(setImmediate)
  })

  it('a sink sees frames where they lie, with their pair, and the end of each burst', async () => {
    const nic = new HandDevice(guest)
    using driver = guest.attach(nic, { mapping: 'static' })
    await driver.start()
    const seen: string[] = []
    const sink = driver.onFrames({
      frame: (u8, at, length, header, pair) => {
        expect(u8.buffer).toBe(guest.memory.view(0, 1).buffer)
        seen.push(`${u8[at]} ${length} ${header.bufferCount} ${pair}`)
      },
      burst: (pair) => seen.push(`end ${pair}`),
    })
    const queue = nic.queue(0)
    nic.deliver(queue, 1, 100)
    expect(seen).toEqual(['1 88 1 0', 'end 0'])
    sink[Symbol.dispose]()
    nic.deliver(queue, 1, 100)
    expect(seen.length).toBe(2)
  })

  it('gives the buffers of a burst back before the end of the burst, and before the next', async () => {
    const nic = new HandDevice(guest)
    using driver = guest.attach(nic, { mapping: 'off' })
    await driver.start()
    const queue = nic.queue(0)
    const pending: number[] = []
    driver.onFrames({ frame: () => undefined, burst: () => pending.push(queue.pending()) })
    const count = 150
    for (let i = 0; i < count; i++) {
      expect(queue.next()).toBe(true)
      guest.memory.view(queue.chain.page[0] * PAGE_SIZE, 12).fill(0)
      guest.memory.setU16(queue.chain.page[0] * PAGE_SIZE + 10, 1)
      queue.complete(queue.chain.head, 72)
    }
    queue.publish()
    nic.call(0)
    expect(pending).toEqual([256 - 150 + 64, 256 - 150 + 128, 256])
    expect(driver.stats().received).toBe(count)
  })

  it('a sink may close the driver', async () => {
    using nic = guest.loopback()
    using driver = guest.attach(nic)
    await driver.start()
    let frames = 0
    driver.onFrames({
      frame: () => {
        frames++
        driver.close()
      },
    })
    driver.sendBatch([frameOf(60), frameOf(60)])
    while (frames === 0) await new Promise(setImmediate)
    await new Promise(setImmediate)
    expect(frames).toBe(1)
  })
})

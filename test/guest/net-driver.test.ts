import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { NetDriver } from '../../lib/guest/net-driver'
import { LoopbackDevice } from '../../lib/testing/loopback-device'
import { features, hasFeature } from '../../lib/virtio/net'
import { Guest, HandDevice, expectFrames, frameOf, take } from './net-guest'

const SIZES = [14, 60, 64, 1514, 4083, 4084, 4085, 4096, 9000, 20_000, 65_535]

let guest: Guest

beforeEach(() => {
  guest = new Guest()
})
afterEach(() => {
  guest[Symbol.dispose]()
})

describe('NetDriver and a loopback device', () => {
  for (const mapping of ['off', 'passthrough', 'static', 'strict', 'lazy'] as const) {
    for (const plain of [false, true]) {
      const how = plain ? 'without event indices, indirect tables and merging' : 'with all features'
      it(`${mapping}, ${how}: what is sent comes back, of any size`, async () => {
        const free = guest.pages.freePages
        using nic = guest.loopback()
        const driver = guest.attach(nic, {
          mapping,
          ...(plain ? { mergeable: false, eventIndex: false, indirect: false } : {}),
        })
        await driver.start()
        const frames = SIZES.filter((size) => !plain || size <= 4084).map((size, i) =>
          frameOf(size, i),
        )
        for (let round = 0; round < 5; round++) {
          expect(driver.sendBatch(frames)).toBe(frames.length)
          await driver.flush()
          expectFrames(await take(driver, frames.length), frames)
        }
        const count = 5 * frames.length
        expect(driver.stats()).toMatchObject({
          sent: count,
          completed: count,
          received: count,
          dropped: 0,
          malformed: 0,
        })
        expect(nic.stats()).toMatchObject({ errors: 0, dropped: 0 })
        driver.close()
        expect(guest.pages.freePages).toBe(free)
        expect(guest.space.state).toBe('off')
      })
    }
  }

  it('survives the wrap of the ring indices', async () => {
    using nic = guest.loopback()
    using driver = guest.attach(nic, { mapping: 'off', queueSize: 256 })
    await driver.start()
    let received = 0
    driver.onFrame(
      () => {
        received++
      },
      { copy: false },
    )
    const batch = Array.from({ length: 128 }, (_, i) => frameOf(60, i))
    for (let sent = 0; sent < 70_000; sent += batch.length) {
      expect(driver.sendBatch(batch)).toBe(batch.length)
      await driver.flush()
    }
    while (received < driver.stats().sent) await new Promise(setImmediate)
    expect(driver.stats()).toMatchObject({ dropped: 0, malformed: 0 })
  })

  it('uses both queues of each pair', async () => {
    using nic = guest.loopback({ pairs: 3 })
    using driver = guest.attach(nic, { pairs: 3, queueSize: 16 })
    await driver.start()
    for (const pair of [0, 1, 2]) driver.send(frameOf(100 + pair), { pair })
    const frames = await take(driver, 3)
    expect(frames.map(({ length }) => length)).toEqual([100, 101, 102])
    expect(() => driver.send(frameOf(60), { pair: 3 })).toThrow(RangeError)
  })

  it('asks for offloads in the header, and sees those of what it receives', async () => {
    using nic = guest.loopback()
    using driver = guest.attach(nic)
    await driver.start()
    const seen: object[] = []
    driver.onFrame((_, { flags, gsoType, gsoSize, headerLength, checksumStart }) => {
      seen.push({ flags, gsoType, gsoSize, headerLength, checksumStart })
    })
    driver.send(frameOf(60_000), {
      checksum: { start: 34, offset: 16 },
      gso: { type: 'tcp4', size: 1448, headerLength: 66 },
    })
    driver.send(frameOf(60))
    await driver.flush()
    while (seen.length < 2) await new Promise(setImmediate)
    expect(seen).toEqual([
      { flags: 1, gsoType: 1, gsoSize: 1448, headerLength: 66, checksumStart: 34 },
      { flags: 0, gsoType: 0, gsoSize: 0, headerLength: 0, checksumStart: 0 },
    ])
  })

  it('schedules nothing while nothing happens', async () => {
    using nic = guest.loopback()
    using driver = guest.attach(nic)
    await driver.start()
    driver.send(frameOf(60))
    await driver.flush()
    await take(driver, 1)
    const before = driver.stats()
    await new Promise((resolve) => setTimeout(resolve, 30))
    expect(driver.stats()).toEqual(before)
    const active = process.getActiveResourcesInfo()
    expect(active.filter((name) => name === 'Immediate')).toEqual([])
  })
})

describe('NetDriver, coming and going', () => {
  it('negotiates, places the queues and starts, in this order', async () => {
    const nic = new HandDevice(guest)
    using driver = guest.attach(nic)
    await driver.start()
    expect(nic.log).toEqual(['features', 'queue 0', 'queue 1', 'start'])
    expect(nic.kicks).toEqual([0, 1])
    expect(driver.acknowledged).toBe(nic.features)
    driver.close()
    expect(nic.log.at(-1)).toBe('stop')
  })

  it("mapping 'off' does not acknowledge ACCESS_PLATFORM, and hands out gpas", async () => {
    const nic = new HandDevice(guest)
    using driver = guest.attach(nic, { mapping: 'off' })
    await driver.start()
    expect(hasFeature(driver.acknowledged, 'VIRTIO_F_ACCESS_PLATFORM')).toBe(false)
    expect(guest.memory.u16(Number(nic.rings[0].avail) + 2)).toBe(256)
    expect(guest.space.state).toBe('off')
  })

  it('keeps the memory while the device may touch it', async () => {
    using nic = guest.loopback()
    const driver = guest.attach(nic)
    await driver.start()
    expect(() => {
      guest.memory.close()
    }).toThrow(expect.objectContaining({ code: 'ERR_IN_USE' }))
    driver.close()
    guest.memory.close()
  })

  it('refuses what comes too early, too late or twice', async () => {
    using nic = guest.loopback()
    const driver = guest.attach(nic)
    expect(() => driver.send(frameOf(60))).toThrow(
      expect.objectContaining({ code: 'ERR_NOT_STARTED' }),
    )
    await driver.start()
    await expect(driver.start()).rejects.toMatchObject({ code: 'ERR_ALREADY_STARTED' })
    driver.close()
    driver.close()
    expect(() => driver.send(frameOf(60))).toThrow(expect.objectContaining({ code: 'ERR_CLOSED' }))
    await expect(driver.start()).rejects.toMatchObject({ code: 'ERR_CLOSED' })
    await expect(driver.flush()).rejects.toMatchObject({ code: 'ERR_CLOSED' })
  })

  it('close() ends those who wait', async () => {
    const nic = new HandDevice(guest)
    const driver = guest.attach(nic)
    await driver.start()
    driver.send(frameOf(60))
    const flushed = driver.flush()
    driver.close()
    await expect(flushed).rejects.toMatchObject({ code: 'ERR_CLOSED' })
  })

  it('can be closed by a listener', async () => {
    using nic = guest.loopback()
    const driver = guest.attach(nic)
    await driver.start()
    const free = guest.pages.freePages
    let frames = 0
    driver.onFrame(() => {
      frames++
      driver.close()
    })
    driver.sendBatch([frameOf(60), frameOf(60), frameOf(60)])
    while (frames === 0) await new Promise(setImmediate)
    await new Promise(setImmediate)
    expect(frames).toBe(1)
    expect(guest.pages.freePages).toBeGreaterThan(free)
  })

  it('a start that fails leaves nothing behind, and another can be tried', async () => {
    const free = guest.pages.freePages
    using nic = guest.loopback()
    const large = guest.attach(nic, { queueSize: 1024 })
    for (let time = 0; time < 2; time++) {
      await expect(large.start()).rejects.toMatchObject({ code: 'ERR_EXHAUSTED' })
      expect(guest.pages.freePages).toBe(free)
      expect(guest.space.state).toBe('off')
    }
    using small = guest.attach(nic, { queueSize: 16 })
    await small.start()
    expect(small.send(frameOf(60))).toBe(true)
  })

  it('refuses a device without what it needs', async () => {
    const unsupported = { code: 'ERR_UNSUPPORTED' }
    for (const offered of [features('VIRTIO_F_ACCESS_PLATFORM'), features('VIRTIO_F_VERSION_1')]) {
      const driver = guest.attach(guest.loopback({ features: offered }))
      await expect(driver.start()).rejects.toMatchObject(unsupported)
    }
    expect(() =>
      NetDriver.attach(guest.loopback(), { memory: guest.memory, mapping: 'strict' }),
    ).toThrow(TypeError)
    const anonymous = new LoopbackDevice({ memory: guest.memory, addressSpace: guest.space })
    expect(() => guest.attach(anonymous)).toThrow(TypeError)
    using named = guest.attach(anonymous, { requester: '00:03.0' })
    await named.start()
    expect(guest.space.state).toBe('translating')
  })

  it('a device that breaks a ring ends the driver, with the reason', async () => {
    for (const index of [0, 1]) {
      const nic = new HandDevice(guest)
      const driver = guest.attach(nic)
      await driver.start()
      driver.send(frameOf(60))
      const reading = driver.frames().next()
      const flushed = driver.flush()
      const used = Number(nic.rings[index].used)
      guest.memory.setU16(guest.gpaOf(used >>> 12) + (used & 0xfff) + 2, 999)
      nic.call(index)
      const broken = expect.objectContaining({
        message: expect.stringMatching(/ring: used-index/) as string,
      }) as Error
      await expect(reading).rejects.toEqual(broken)
      await expect(flushed).rejects.toEqual(broken)
      expect(() => driver.send(frameOf(60))).toThrow(broken)
      driver.close()
    }
  })
})

/**
 * Misses answered in a Worker: frames as right as ever, while the main thread computes too, and
 * whatever happens to the Worker.
 */
import { spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import type { Worker } from 'node:worker_threads'
import { describe, expect, test } from 'vitest'
import { exact } from '../../lib/iotlb/reply-policy'
import type { GuestMemory } from '../../lib/memory/guest-memory'
import { Feeder } from '../support/feeder'
import { compared, frame, identical, ours } from '../support/frames'
import { IntelGuest, PlainGuest, RX, Rig, TX } from '../support/rig'
import { Station } from '../support/station'
import { until } from '../support/until'

const ROOT = join(import.meta.dirname, '../..')
const intel = (memory: GuestMemory): IntelGuest => new IntelGuest(memory)
/** One miss for each page. */
const ASKING = { reply: exact, lookAhead: 'off' } as const
const WORKER = { serve: 'worker' } as const

/** Does nothing else, and lets nobody else, for a time. */
function compute(milliseconds: number): void {
  for (const end = performance.now() + milliseconds; performance.now() < end;);
}

const descriptors = (): number => readdirSync('/proc/self/fd').length
const threads = (): number => readdirSync('/proc/self/task').length

/** What `open` makes, and the Workers that it starts. */
async function workersOf<T>(open: () => Promise<T>): Promise<readonly [T, readonly Worker[]]> {
  const workers: Worker[] = []
  const seen = (worker: Worker): void => void workers.push(worker)
  process.on('worker', seen)
  try {
    const made = await open()
    await until(() => workers.length > 0)
    return [made, workers]
  } finally {
    process.off('worker', seen)
  }
}

test.each([
  ['strict', 'off'],
  ['strict', 'on-kick'],
  ['lazy', 'on-miss'],
] as const)(
  'frames go both ways, byte for byte: %s, looking ahead %s',
  async (mapping, lookAhead) => {
    const reply = lookAhead === 'off' ? { reply: exact } : {}
    const device = { ...WORKER, ...reply, lookAhead }
    await using station = await Station.open({ mapping, device, driver: { queueSize: 64 } })
    const out = Array.from({ length: 300 }, (_, i) => frame(i, 60 + ((i * 37) % 1400)))
    await station.send(out)
    expect(compared(ours(await station.packets.receive(300)), out)).toEqual(identical(300))
    const back = out.slice(0, 100).map((bytes, i) => frame(i, bytes.length, 'host'))
    for (let from = 0; from < back.length; from += 50) {
      const some = back.slice(from, from + 50)
      await station.packets.send(...some)
      expect(compared(await station.receive(some.length), some)).toEqual(identical(some.length))
    }
    const stats = station.nic.stats()
    expect(stats).toMatchObject({ faults: 0, stalls: 0, refused: 0, unanswered: 0 })
    if (mapping === 'strict') expect(stats.invalidations).toBeGreaterThan(0)
    if (mapping === 'strict' && lookAhead === 'off') expect(stats.misses).toBeGreaterThan(100)
  },
)

test('several pairs have a Worker each', async () => {
  const [opened, workers] = await workersOf(() =>
    Station.open({ mapping: 'strict', pairs: 2, device: WORKER }),
  )
  await using station = opened
  expect(workers).toHaveLength(2)
  const out = Array.from({ length: 100 }, (_, i) => frame(i, 100))
  await station.send(out)
  const numbers = (frames: readonly Uint8Array[]): string[] =>
    frames.map((bytes) => Buffer.from(bytes).toString('hex')).sort()
  expect(numbers(ours(await station.packets.receive(100)))).toEqual(numbers(out))
})

describe('while the main thread computes, and its event loop stands still', () => {
  /** Frames come in, each into a page that the device has to ask for. @returns how many got in */
  async function received(serve: 'loop' | 'worker', most: number, ms: number): Promise<number> {
    await using rig = await Rig.open(intel, { serve, ...ASKING })
    await using feeder = await Feeder.open(rig.tap.name, frame(1, 100, 'host'), 40, 5)
    for (let i = 0; i < 50; i++) rig.offer(RX, rig.map(i, 'write'), 4096)
    await rig.settle()
    feeder.start()
    let chains = 0
    for (const end = performance.now() + ms; performance.now() < end && chains < most;) {
      compute(20)
      ;({ chains } = rig.nic.stats())
    }
    await until(() => rig.nic.stats().chains >= 40)
    return chains
  }

  test('a Worker answers: frames arrive as they come', async () => {
    expect(await received('worker', 20, 20_000)).toBeGreaterThanOrEqual(20)
  })

  test('the event loop does not: all wait for the first', async () => {
    expect(await received('loop', 20, 1000)).toBeLessThanOrEqual(1)
  })
})

describe('the rules', () => {
  test('an unmapped page is not used any more, and the fault is recorded by the unit', async () => {
    await using rig = await Rig.open(intel, { ...WORKER, ...ASKING })
    const heard: bigint[] = []
    rig.nic.onFault(({ iova }) => heard.push(iova))
    const iova = rig.map(0, 'read')
    rig.offer(TX, iova, rig.write(0, frame(1, 100)))
    await until(() => rig.nic.stats().chains === 1)
    rig.guest.unmap(iova)
    rig.offer(TX, iova, rig.write(0, frame(2, 100)))
    await until(() => rig.nic.stats().unanswered === 1 && heard.length > 0)
    await rig.settle()
    expect(heard).toEqual([iova])
    expect(rig.guest.faults).toBe(1)
    expect(ours(await rig.packets.sync())).toEqual([frame(1, 100)])
    rig.nic.stop()
    expect(rig.nic.stats()).toMatchObject({ unanswered: 0, entries: 0 })
  })

  test('pages change owners a thousand times, and no frame is of the wrong one', async () => {
    await using station = await Station.open({
      mapping: 'strict',
      device: { ...WORKER, ...ASKING },
    })
    const out = Array.from({ length: 1000 }, (_, i) => frame(i, 64 + (i % 64)))
    await station.send(out)
    const seen = ours(await station.packets.receive(out.length))
    expect(compared(seen, out)).toEqual(identical(out.length))
  })

  test('translation is switched off under a device that runs: it sees gpas from then on', async () => {
    await using rig = await Rig.open(intel, { ...WORKER, ...ASKING })
    const { iommu } = rig.guest
    // GCMD with QIE alone: the driver still needs its queue.
    iommu.write(0x18, 1n << 26n, 4)
    expect(rig.guest.addressSpace.state).toBe('off')
    expect(rig.nic.stats().entries).toBe(0)
  })

  test('a stopped device is granted nothing, and goes on where it was', async () => {
    await using rig = await Rig.open(intel, { ...WORKER, ...ASKING })
    const iova = rig.map(0, 'read')
    const length = rig.write(0, frame(1, 100))
    for (let i = 0; i < 10; i++) {
      rig.offer(TX, iova, length)
      rig.nic.stop()
      expect(rig.nic.stats()).toMatchObject({ entries: 0, unanswered: 0 })
      rig.offer(TX, iova, length)
      rig.nic.start()
      rig.nic.kick(TX)
    }
    await until(() => rig.nic.stats().chains >= 1)
    while (rig.completed[TX] < 20) await rig.settle()
    expect(ours(await rig.packets.sync())).toHaveLength(20)
  })
})

describe('the end of it', () => {
  test('closing while it serves leaves no thread and no descriptor', async () => {
    const counts: string[] = []
    for (let i = 0; i < 3; i++) {
      const [opened, [worker]] = await workersOf(() => Rig.open(intel, { ...WORKER, ...ASKING }))
      const exited = once(worker, 'exit')
      {
        await using rig = opened
        await using feeder = await Feeder.open(rig.tap.name, frame(1, 100, 'host'), 100_000, 0)
        for (let page = 0; page < 50; page++) rig.offer(RX, rig.map(page, 'write'), 4096)
        feeder.start()
        await until(() => rig.nic.stats().misses > 5)
        rig.nic.close()
        rig.nic.close()
        expect(rig.nic.stats().misses).toBeGreaterThan(5)
      }
      await exited
      counts.push(`${descriptors()} ${threads()}`)
    }
    expect(new Set(counts).size, counts.join(', ')).toBe(1)
  })

  test('a Worker that is terminated is replaced by the event loop, and no frame is lost', async () => {
    const counts: string[] = []
    const warnings: Error[] = []
    const warned = (warning: Error): void => {
      if (warning.message.includes('miss worker')) warnings.push(warning)
    }
    process.on('warning', warned)
    for (let i = 0; i < 3; i++) {
      const [rig, [worker]] = await workersOf(() => Rig.open(intel, { ...WORKER, ...ASKING }))
      await using feeder = await Feeder.open(rig.tap.name, frame(1, 100, 'host'), 45, 1)
      for (let page = 0; page < 50; page++) rig.offer(RX, rig.map(page, 'write'), 4096)
      feeder.start()
      await until(() => rig.nic.stats().chains > 3)
      const ended = worker.terminate()
      // Turns are taken while it dies: whoever waits for its lock gets it.
      for (let turns = 0; turns < 20; turns++) rig.guest.unmap(rig.map(60, 'read'))
      await ended
      await feeder.ended
      await until(() => rig.nic.stats().chains === 45)
      await rig[Symbol.asyncDispose]()
      counts.push(`${descriptors()} ${threads()}`)
    }
    process.off('warning', warned)
    expect(warnings.map(({ message }) => message)).toEqual(
      Array.from({ length: 3 }, () => expect.stringContaining('event loop') as string),
    )
    expect(new Set(counts).size, counts.join(', ')).toBe(1)
  })

  test.each([
    ['exits', 'process.exit(7)', 7],
    ['throws', 'process.exitCode = 1; throw new Error("meant")', 7],
  ] as const)('a process that %s while it serves', (_, end, status) => {
    const script = `
      const { GuestMemory, IntelIommu, NetDriver, Tap, VhostNet } = require('./dist')
      const tap = Tap.open('quiet%d'), memory = GuestMemory.allocate(64 << 20)
      const iommu = new IntelIommu(memory)
      const addressSpace = iommu.addressSpace('00:03.0')
      const nic = VhostNet.open({ memory, addressSpace, backend: tap, serve: 'worker' })
      const driver = NetDriver.attach(nic, { memory, iommu, mapping: 'strict' })
      driver.start().then(() => {
        for (let i = 0; i < 50; i++) driver.send(new Uint8Array(100))
        setInterval(() => { if (nic.stats().misses > 0) { console.log('served'); ${end} } }, 1)
      })`
    const ran = spawnSync(process.execPath, ['-e', script], {
      cwd: ROOT,
      encoding: 'utf8',
      timeout: 50_000,
    })
    const throws = end.includes('throw')
    expect(ran).toMatchObject({
      stdout: 'served\n',
      stderr: throws ? (expect.stringContaining('meant') as string) : '',
      status: throws ? 1 : status,
    })
  })
})

describe('what it is not possible for', () => {
  test('an address space that is not shared, and functions of this thread', async () => {
    const workers: Worker[] = []
    process.on('worker', (worker) => workers.push(worker))
    const refusal = expect.objectContaining({ code: 'ERR_UNSUPPORTED' }) as unknown
    await expect(Rig.open(() => new PlainGuest(), WORKER)).rejects.toEqual(refusal)
    const reply = (): void => undefined
    await expect(Rig.open(intel, { ...WORKER, reply })).rejects.toEqual(refusal)
    const channel = <T>(kernel: T): T => kernel
    await expect(Rig.open(intel, { ...WORKER, channel })).rejects.toEqual(refusal)
    process.removeAllListeners('worker')
    expect(workers).toEqual([])
  })

  test('words and times that there are not', async () => {
    const serve = 'thread' as 'worker'
    await expect(Rig.open(intel, { serve })).rejects.toThrow(TypeError)
    await expect(Rig.open(intel, { busyPollMicroseconds: 1001 })).rejects.toThrow(RangeError)
  })
})

test.each(['loop', 'worker'] as const)('busy polling, %s', async (serve) => {
  const device = { serve, busyPollMicroseconds: 50, ...ASKING }
  await using station = await Station.open({ mapping: 'strict', device })
  const out = Array.from({ length: 300 }, (_, i) => frame(i, 80))
  await station.send(out)
  expect(compared(ours(await station.packets.receive(300)), out)).toEqual(identical(300))
})

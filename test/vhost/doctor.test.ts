/** When rings are looked at, and what is done then, with a clock and a kernel that a test moves. */
import { afterEach, beforeEach, expect, test, vi } from 'vitest'
import { MiB } from '../../lib/address'
import { Miss } from '../../lib/iotlb/channel'
import type { IotlbChannel } from '../../lib/iotlb/channel'
import { GuestMemory } from '../../lib/memory/guest-memory'
import { native as addon } from '../../lib/native'
import type { Native } from '../../lib/native'
import { FakeAddressSpace } from '../../lib/testing/fake-address-space'
import { FakeClock } from '../../lib/testing/fake-clock'
import { VhostNet } from '../../lib/vhost/net'
import type { StallReport, VhostNetOptions } from '../../lib/vhost/net'
import { Tap } from '../../lib/vhost/tap'
import { until } from '../native/support'
import { EFAULT, ENODEV, FakeKernel, TRANSLATED } from './fake-kernel'

const current = vi.hoisted(() => ({ native: undefined as Native | undefined }))
vi.mock(import('../../lib/native'), async (original) => {
  const { native } = await original()
  return { native: () => current.native ?? native() }
})

const RINGS = [
  { size: 64, desc: 0x1000n, avail: 0x2000n, used: 0x3000n },
  { size: 64, desc: 0x4000n, avail: 0x5000n, used: 0x6000n },
]
const TX = 1
const TX_AVAIL_INDEX = 0x5002
const TX_USED_INDEX = 0x6002
const PERIOD = 100

let kernel: FakeKernel
let tap: Tap
let memory: GuestMemory
let space: FakeAddressSpace
let clock: FakeClock
let reports: StallReport[]
let nic: VhostNet

beforeEach(() => {
  current.native = undefined
  kernel = new FakeKernel(addon())
  memory = GuestMemory.allocate(1 * MiB)
  current.native = kernel.native(addon())
  tap = Tap.open('tap0')
  space = new FakeAddressSpace('identity')
  clock = new FakeClock()
  reports = []
})

afterEach(() => {
  nic.close()
  tap.close()
  memory.close()
  current.native = undefined
})

function started(options: Partial<VhostNetOptions> = {}): void {
  nic = VhostNet.open({
    ...{ memory, backend: tap, addressSpace: space, watchdog: PERIOD, clock },
    ...options,
  })
  nic.onStall((report) => reports.push(report))
  nic.setFeatures(TRANSLATED)
  for (const [i, ring] of RINGS.entries()) nic.setQueue(i, ring)
  nic.start()
}

/** The guest offers one descriptor to send, of a page that is mapped, and does not kick. */
function offer(): void {
  memory.setU64(0x4000, 0x90000n)
  memory.setU32(0x4008, 100)
  memory.setU16(TX_AVAIL_INDEX, 1)
}

test('it looks once a period, from the start to the stop, and not at all with a period of 0', () => {
  started()
  expect(clock.timers).toBe(1)
  nic.stop()
  expect(clock.timers).toBe(0)
  nic.start()
  nic.close()
  expect(clock.timers).toBe(0)
  started({ watchdog: 0 })
  expect(clock.timers).toBe(0)
  nic.close()
  expect(() => {
    started({ watchdog: -1 })
  }).toThrow(RangeError)
})

test('a ring that sends is examined, kicked and told of once; a repair of none is no second one', () => {
  space = new FakeAddressSpace()
  space.mapPages(0, 6, 0, 3)
  space.mapPages(0x90, 0x90, 0x90, 1)
  started()
  offer()
  clock.advance(PERIOD)
  expect(reports).toEqual([])
  const { kicks } = nic.stats()
  clock.advance(PERIOD)
  // Nobody had asked for the page, so the device cannot have seen the chain, or was not answered.
  expect(reports).toMatchObject([{ queue: TX, reason: 'unanswered-miss', noticed: 'watchdog' }])
  expect(nic.stats().kicks).toBe(kicks + 1)
  clock.advance(20 * PERIOD)
  expect(reports.map(({ reason }) => reason)).toEqual(['unanswered-miss', 'lost-kick'])
  expect(nic.stats()).toMatchObject({
    stalls: 2,
    healed: 2,
    stallsByReason: { 'unanswered-miss': 1, 'lost-kick': 1, fault: 0 },
  })
})

test('work that was offered just before a look is not examined at that look', () => {
  started()
  clock.advance(5 * PERIOD)
  offer()
  clock.advance(PERIOD)
  expect(reports).toEqual([])
  clock.advance(PERIOD)
  expect(reports).toMatchObject([{ queue: TX, noticed: 'watchdog' }])
})

test('a ring that moves is left alone, however full it is', () => {
  started()
  offer()
  const { kicks } = nic.stats()
  for (let i = 1; i < 20; i++) {
    memory.setU16(TX_AVAIL_INDEX, i + 1)
    memory.setU16(TX_USED_INDEX, i)
    clock.advance(PERIOD)
  }
  expect(reports).toEqual([])
  expect(nic.stats().kicks).toBe(kicks)
})

test('a tap that goes down is told of once each time; one that is gone makes an error', () => {
  started()
  const errors: number[] = []
  nic.onError((queue) => errors.push(queue))
  kernel.refusals.set('SIOCGIFFLAGS', ENODEV)
  clock.advance(PERIOD)
  expect(reports).toEqual([])
  kernel.refusals.clear()
  kernel.refusals.set('TUNGETIFF', -77)
  clock.advance(10 * PERIOD)
  expect(reports).toMatchObject([{ queue: 0, reason: 'backend-gone', healed: false }])
  expect([errors, tap.state]).toEqual([[0], 'gone'])
  const { kicks } = nic.stats()
  offer()
  clock.advance(10 * PERIOD)
  expect([reports.length, nic.stats().kicks]).toEqual([1, kicks])
})

/** The device ticks the error eventfd of the sending ring, and is heard. */
async function tick(): Promise<void> {
  const { kicks } = nic.stats()
  const told = reports.length
  const one = new Uint8Array(8)
  one[0] = 1
  addon().write(nic.events(TX).error, one, 0, 8)
  await until(() => nic.stats().kicks > kicks || reports.length > told)
}

test('a first tick where all is in place may be older than the last repair: a kick, and no word', async () => {
  started()
  offer()
  await tick()
  expect(reports).toEqual([])
  expect(nic.stats()).toMatchObject({ stalls: 0, repairs: 0 })
  // The device moved on: the next one is a first one again.
  memory.setU16(TX_AVAIL_INDEX, 2)
  memory.setU16(TX_USED_INDEX, 1)
  await tick()
  expect(reports).toEqual([])
})

test('a second tick says more: what the device holds is replaced, and told; a third gives it up', async () => {
  started()
  offer()
  await tick()
  await tick()
  expect(reports).toMatchObject([{ queue: TX, noticed: 'error', reason: 'stale-entry', head: 0 }])
  expect(nic.stats()).toMatchObject({ stalls: 1, healed: 1 })
  expect(nic.stats().repairs).toBeGreaterThan(0)
  await tick()
  expect(reports[1]).toMatchObject({ reason: 'lost-kick', healed: false, repaired: 0 })
})

test('what the kernel refuses to a repair goes to who listens for failures', () => {
  const failures: unknown[] = []
  started()
  nic.onFailure((error) => failures.push(error))
  offer()
  kernel.refusals.set('VHOST_GET_VRING_BASE', EFAULT)
  clock.advance(2 * PERIOD)
  expect(failures).toMatchObject([{ code: 'EFAULT', syscall: 'ioctl VHOST_GET_VRING_BASE' }])
  kernel.refusals.clear()
})

/** A kernel that asks for what a test says. */
class Asking implements IotlbChannel {
  readonly limit = 2048
  next: number[] = []
  #listener: () => void = () => undefined

  drain(): readonly Miss[] {
    return this.next.splice(0).map((page) => Object.assign(new Miss(), { page, access: 1 }))
  }

  ask(...pages: readonly number[]): void {
    this.next = [...pages]
    this.#listener()
  }

  update(): void {
    /* Taken. */
  }

  invalidate(): void {
    /* Taken. */
  }

  updatePages(): void {
    /* Taken. */
  }

  invalidatePages(): void {
    /* Taken. */
  }

  onReadable(listener: () => void): Disposable {
    this.#listener = listener
    return { [Symbol.dispose]: () => undefined }
  }
}

test('no guest makes the kernel keep more than a thousand notes of what nobody maps (K6)', async () => {
  const asking = new Asking()
  space = new FakeAddressSpace()
  space.mapPages(0, 6, 0, 3)
  started({ channel: () => asking })
  kernel.taken()
  for (let page = 0x1000; page < 0x1000 + 5000; page++) {
    asking.ask(page)
    await Promise.resolve()
  }
  const backends = kernel.taken().filter((name) => name === 'VHOST_NET_SET_BACKEND')
  expect([nic.stats().purges, backends.length]).toEqual([4, 8])
  expect(nic.stats()).toMatchObject({ obsolete: 5000, faults: 0 })
  expect(nic.stats().unanswered).toBeLessThanOrEqual(256)
  expect(nic.started).toBe(true)
})

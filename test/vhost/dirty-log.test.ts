import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest'
import { GiB, MiB, PAGE_SIZE } from '../../lib/address'
import type { Gpa } from '../../lib/address'
import { GuestMemory } from '../../lib/memory/guest-memory'
import { native as addon } from '../../lib/native'
import type { Native } from '../../lib/native'
import { FakeAddressSpace } from '../../lib/testing/fake-address-space'
import { DirtyLog } from '../../lib/vhost/dirty-log'
import { VhostNet } from '../../lib/vhost/net'
import { Tap } from '../../lib/vhost/tap'
import { features, hasFeature } from '../../lib/virtio/net'
import { FakeKernel, PLAIN, TRANSLATED } from './fake-kernel'

const current = vi.hoisted(() => ({ native: undefined as Native | undefined }))
vi.mock(import('../../lib/native'), async (original) => {
  const { native } = await original()
  return { native: () => current.native ?? native() }
})

const RING = { size: 64, desc: 0x1000n, avail: 0x2000n, used: 0x3000n }
const USED_LOGGED = 'ring, flags 1, at 12288'
const LOG_ALL = features('VHOST_F_LOG_ALL')

let kernel: FakeKernel
let memory: GuestMemory
let tap: Tap
let nic: VhostNet

beforeEach(() => {
  current.native = undefined
  kernel = new FakeKernel(addon())
  memory = GuestMemory.allocate(1 * MiB)
  current.native = kernel.native(addon())
  tap = Tap.open('tap0')
  const addressSpace = new FakeAddressSpace('identity')
  nic = VhostNet.open({ memory, backend: tap, addressSpace })
})

afterEach(() => {
  nic.close()
  tap.close()
  memory.close()
})

function started(bits: bigint): void {
  nic.setFeatures(bits)
  nic.setQueue(0, RING)
  nic.start()
  kernel.taken()
}

/** What was told to the kernel about the log, in its order. */
function told(): string[] {
  return kernel.calls.splice(0).map(({ name, argument }) => {
    if (name === 'VHOST_SET_FEATURES') {
      return hasFeature(argument['value'] as bigint, 'VHOST_F_LOG_ALL') ? 'log' : 'no log'
    }
    if (name === 'VHOST_SET_VRING_ADDR') {
      return `ring, flags ${String(argument['flags'])}, at ${String(argument['log_guest_addr'])}`
    }
    return name === 'VHOST_SET_MEM_TABLE' ? `table of ${String(argument['nregions'])}` : name
  })
}

function pages(log: DirtyLog): [bigint, bigint][] {
  return log.take().map(({ first, last }) => [first >> 12n, last >> 12n])
}

describe('the protocol', () => {
  test('base, table, features, then the addresses of the rings that run; and back', () => {
    started(TRANSLATED)
    const log = nic.startDirtyLog()
    expect(told()).toEqual(['VHOST_SET_LOG_BASE', 'table of 1', 'log', USED_LOGGED])
    log.close()
    expect(told()).toEqual(['no log', 'ring, flags 0, at 0', 'table of 0'])
  })

  test('what the device holds is forgotten with each change of features (K9)', () => {
    started(TRANSLATED)
    expect(nic.stats().entries).toBeGreaterThan(0)
    using log = nic.startDirtyLog()
    expect(nic.stats().entries).toBe(0)
    expect(log.closed).toBe(false)
  })

  test('without translation the table stays as it is', () => {
    started(PLAIN)
    using log = nic.startDirtyLog()
    expect(told()).toEqual(['VHOST_SET_LOG_BASE', 'table of 1', 'log', USED_LOGGED])
    expect(log.take()).toEqual([])
  })

  test('a log from before the start is in the features and in the addresses', () => {
    using log = nic.startDirtyLog()
    expect(told().filter((what) => what !== 'VHOST_SET_LOG_BASE')).not.toContain('log')
    nic.setFeatures(PLAIN)
    nic.setQueue(0, RING)
    nic.start()
    const calls = told()
    expect(calls).toContain('log')
    expect(calls).toContain(USED_LOGGED)
    // A change of ACCESS_PLATFORM resets the device, which forgets where its log is.
    nic.stop()
    nic.setFeatures(TRANSLATED)
    expect(told()).toContain('VHOST_SET_LOG_BASE')
    expect(log.closed).toBe(false)
  })

  test('no driver may acknowledge it, and it is not in what was acknowledged', () => {
    expect(nic.features & LOG_ALL).toBe(0n)
    started(PLAIN)
    using log = nic.startDirtyLog()
    expect(nic.acknowledged).toBe(PLAIN)
    expect(log).toBeDefined()
  })

  test('a refusal leaves no log behind', () => {
    started(PLAIN)
    kernel.refusals.set('VHOST_SET_LOG_BASE', -14)
    expect(() => nic.startDirtyLog()).toThrow(/EFAULT.*log/)
    kernel.refusals.delete('VHOST_SET_LOG_BASE')
    kernel.refusals.set('VHOST_SET_FEATURES', -14)
    expect(() => nic.startDirtyLog()).toThrow(/EFAULT/)
    kernel.refusals.clear()
    using log = nic.startDirtyLog()
    expect(log.take()).toEqual([])
  })

  test('memory that grows beyond it gives the kernel a longer one first', () => {
    started(TRANSLATED)
    using log = nic.startDirtyLog()
    log.mark(0x5000, 1)
    told()
    memory.add({ gpa: 4 * GiB, bytes: PAGE_SIZE })
    expect(told()).toEqual(['VHOST_SET_LOG_BASE', 'table of 2'])
    log.mark(4 * GiB, 1)
    expect(pages(log)).toEqual([
      [5n, 5n],
      [1n << 20n, 1n << 20n],
    ])
  })

  test('a device that is closed closes its log', () => {
    started(PLAIN)
    const log = nic.startDirtyLog()
    nic.close()
    expect(log.closed).toBe(true)
    expect(() => log.take()).toThrow(expect.objectContaining({ code: 'ERR_CLOSED' }) as Error)
  })
})

describe('taking', () => {
  test('adjacent pages are one range, over the words of the bitmap too, and each is told once', () => {
    using log = new DirtyLog([], 1 * MiB, () => undefined)
    expect(log.take()).toEqual([])
    log.mark(0, 1)
    log.mark(0x1fff, 2)
    log.mark(30 * PAGE_SIZE, 4 * PAGE_SIZE)
    log.mark(0xff_fff, 1)
    expect(pages(log)).toEqual([
      [0n, 2n],
      [30n, 33n],
      [255n, 255n],
    ])
    expect(log.take()).toEqual([])
  })

  test('any pages, marked in any order, are what is taken', () => {
    using log = new DirtyLog([], 64 * MiB, () => undefined)
    let state = 7
    const marked = new Set<number>()
    for (let i = 0; i < 5000; i++) {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0
      const page = state % 16384
      marked.add(page)
      log.mark((BigInt(page) << 12n) as Gpa, PAGE_SIZE)
    }
    const taken = pages(log).flatMap(([first, last]) =>
      Array.from({ length: Number(last - first) + 1 }, (_, i) => Number(first) + i),
    )
    expect(taken).toEqual([...marked].sort((a, b) => a - b))
  })

  test('what is outside of guest memory is no page of it', () => {
    using log = new DirtyLog([], PAGE_SIZE, () => undefined)
    log.mark(2 ** 40, 1)
    expect(log.take()).toEqual([])
  })
})

import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest'
import { MiB, PAGE_SIZE } from '../../lib/address'
import { GuestMemory } from '../../lib/memory/guest-memory'
import { native as addon } from '../../lib/native'
import type { Native } from '../../lib/native'
import { FakeAddressSpace } from '../../lib/testing/fake-address-space'
import { VhostNet } from '../../lib/vhost/net'
import type { VhostNetOptions } from '../../lib/vhost/net'
import { Tap } from '../../lib/vhost/tap'
import { features } from '../../lib/virtio/net'
import { EFAULT, ENOMEM, FakeKernel, PLAIN, TRANSLATED } from './fake-kernel'

const current = vi.hoisted(() => ({ native: undefined as Native | undefined, zeroCopy: 0 }))
vi.mock(import('../../lib/native'), async (original) => {
  const { native } = await original()
  return { native: () => current.native ?? native() }
})
vi.mock(import('../../lib/vhost/module-parameters'), async (original) => {
  const { moduleParameter, ...rest } = await original()
  return {
    ...rest,
    moduleParameter: (name) =>
      name === 'vhost_net/experimental_zcopytx' ? current.zeroCopy : moduleParameter(name),
  }
})

/** Each part on a page of its own: 1, 2, 3 and 4, 5, 6. */
const RINGS = [
  { size: 64, desc: 0x1000n, avail: 0x2000n, used: 0x3000n },
  { size: 64, desc: 0x4000n, avail: 0x5000n, used: 0x6000n },
]

let kernel: FakeKernel
let tap: Tap
let memory: GuestMemory
let space: FakeAddressSpace
const open: VhostNet[] = []

beforeEach(() => {
  current.native = undefined
  current.zeroCopy = 0
  kernel = new FakeKernel(addon())
  memory = GuestMemory.allocate(1 * MiB)
  current.native = kernel.native(addon())
  tap = Tap.open('tap0')
  space = new FakeAddressSpace('identity')
  kernel.taken()
})

afterEach(() => {
  for (const nic of open.splice(0)) nic.close()
  tap.close()
  memory.close()
  expect(kernel.opened.filter(({ fd }) => fd >= 0)).toEqual([])
})

function kept(options: Partial<VhostNetOptions> = {}): VhostNet {
  const nic = VhostNet.open({ memory, backend: tap, addressSpace: space, ...options })
  open.push(nic)
  return nic
}

function placed(nic: VhostNet, bits = TRANSLATED): VhostNet {
  nic.setFeatures(bits)
  for (const [i, ring] of RINGS.entries()) nic.setQueue(i, ring)
  return nic
}

describe('what is offered', () => {
  test('the transport of the kernel, the offloads of the tap, and nothing that is only ours', () => {
    expect(kept().features).toBe(
      features(
        'VIRTIO_NET_F_CSUM',
        'VIRTIO_NET_F_GUEST_CSUM',
        'VIRTIO_NET_F_GUEST_TSO4',
        'VIRTIO_NET_F_GUEST_TSO6',
        'VIRTIO_NET_F_HOST_TSO4',
        'VIRTIO_NET_F_HOST_TSO6',
        'VIRTIO_NET_F_MRG_RXBUF',
        'VIRTIO_F_NOTIFY_ON_EMPTY',
        'VIRTIO_F_INDIRECT_DESC',
        'VIRTIO_F_EVENT_IDX',
        'VIRTIO_F_VERSION_1',
        'VIRTIO_F_ACCESS_PLATFORM',
        'VIRTIO_F_RING_RESET',
      ),
    )
  })

  test('no offloads for a tap without a header, and vhost then makes the header', () => {
    tap.close()
    tap = Tap.open('tap0', { vnetHeader: false })
    const nic = kept()
    expect(nic.features & features('VIRTIO_NET_F_CSUM', 'VIRTIO_NET_F_GUEST_CSUM')).toBe(0n)
    nic.setFeatures(PLAIN)
    const set = kernel.calls.find(({ name }) => name === 'VHOST_SET_FEATURES')
    expect(set?.argument['value']).toBe(PLAIN | features('VIRTIO_F_ANY_LAYOUT'))
  })

  test('a kernel without an IOTLB is refused where one is needed, and nothing stays open', () => {
    kernel.features = PLAIN
    expect(() => kept()).toThrow(/ENOTSUP.*no device IOTLB/)
    const nic = VhostNet.open({ memory, backend: tap })
    open.push(nic)
    expect(nic.features & features('VIRTIO_F_ACCESS_PLATFORM')).toBe(0n)
  })

  test('zero copy is refused where there is isolation to keep', () => {
    current.zeroCopy = 1
    expect(() => kept()).toThrow(expect.objectContaining({ code: 'ERR_UNSUPPORTED' }))
    expect(() => kept()).toThrow(/experimental_zcopytx=0/)
    open.push(VhostNet.open({ memory, backend: tap }))
  })
})

describe('the order of a start', () => {
  const RING_CALLS = [
    'VHOST_SET_VRING_NUM',
    'VHOST_SET_VRING_BASE',
    'VHOST_SET_VRING_ADDR',
    'VHOST_SET_VRING_ERR',
    'VHOST_SET_VRING_CALL',
    'VHOST_SET_VRING_KICK',
  ]

  test('features, memory, rings, backends', () => {
    const nic = kept()
    kernel.taken()
    placed(nic).start()
    expect(kernel.taken()).toEqual([
      'VHOST_SET_FEATURES',
      'VHOST_SET_MEM_TABLE',
      'TUNSETVNETHDRSZ',
      'TUNSETOFFLOAD',
      ...RING_CALLS,
      ...RING_CALLS,
      'VHOST_NET_SET_BACKEND',
      'VHOST_NET_SET_BACKEND',
    ])
  })

  test('all ring parts are granted before the first backend is set', () => {
    const nic = placed(kept())
    const before = (): number => kernel.messages.length
    const messages: number[] = []
    const push = kernel.calls.push.bind(kernel.calls)
    kernel.calls.push = (call) => {
      if (call.name === 'VHOST_NET_SET_BACKEND') messages.push(before())
      return push(call)
    }
    nic.start()
    expect(messages).toHaveLength(2)
    expect(messages[0]).toBeGreaterThan(0)
    const granted = new Set<bigint>()
    for (const { type, iova, size } of kernel.messages.slice(0, messages[0])) {
      for (let at = iova; type === 2 && at < iova + size; at += 4096n) granted.add(at)
    }
    const parts = RINGS.flatMap(({ desc, avail, used }) => [desc, avail, used])
    expect(parts.filter((at) => !granted.has(at))).toEqual([])
  })

  test('iovas where the device translates, host addresses where it does not', () => {
    const nic = placed(kept())
    nic.start()
    const address = (): unknown =>
      kernel.calls.filter(({ name }) => name === 'VHOST_SET_VRING_ADDR').at(-1)?.argument[
        'desc_user_addr'
      ]
    expect(address()).toBe(0x4000n)
    nic.stop()
    placed(nic, PLAIN).start()
    expect(address()).toBe(memory.hva(0x4000))
  })

  test('a change of ACCESS_PLATFORM goes through RESET_OWNER', () => {
    const nic = kept()
    nic.setFeatures(TRANSLATED)
    nic.setFeatures(TRANSLATED)
    expect(kernel.taken()).not.toContain('VHOST_RESET_OWNER')
    nic.setFeatures(PLAIN)
    const calls = kernel.taken()
    expect(calls.indexOf('VHOST_RESET_OWNER')).toBeLessThan(calls.indexOf('VHOST_SET_FEATURES'))
    expect(calls).toContain('VHOST_RESET_OWNER')
  })
})

describe('a stop', () => {
  test('takes the backends away, then everything that was granted', () => {
    const nic = placed(kept())
    nic.start()
    kernel.taken()
    kernel.messages.length = 0
    kernel.base = 7
    nic.stop()
    expect(kernel.taken()).toEqual([
      'VHOST_NET_SET_BACKEND',
      'VHOST_GET_VRING_BASE',
      'VHOST_NET_SET_BACKEND',
      'VHOST_GET_VRING_BASE',
    ])
    expect(kernel.messages.map(({ type, iova, size }) => [type, iova, size])).toEqual([
      [3, 0n, 1n << 63n],
      [3, 1n << 63n, 1n << 63n],
    ])
    expect(nic.queueState(1)).toEqual({ availIndex: 7 })
  })

  test('of a device that is stopped is nothing', () => {
    const nic = placed(kept())
    kernel.taken()
    nic.stop()
    expect(kernel.taken()).toEqual([])
  })

  test('an invalidation after it is not sent: the kernel holds nothing', () => {
    const nic = placed(kept())
    nic.start()
    nic.stop()
    kernel.messages.length = 0
    space.invalidatePages(0, 100)
    expect(kernel.messages).toEqual([])
  })
})

describe('a step that is refused', () => {
  test.each([
    ['VHOST_SET_VRING_NUM', 0],
    ['VHOST_SET_VRING_KICK', 0],
    ['VHOST_NET_SET_BACKEND', 0],
  ])('%s: nothing is started, the index stays, and the next start works', (ioctl) => {
    const nic = kept()
    nic.setFeatures(TRANSLATED)
    nic.setQueue(0, RINGS[0], { availIndex: 5 })
    nic.setQueue(1, RINGS[1], { availIndex: 9 })
    kernel.refusals.set(ioctl, EFAULT)
    expect(() => {
      nic.start()
    }).toThrow(/EFAULT/)
    expect([nic.started, nic.queueState(0), nic.queueState(1)]).toEqual([
      false,
      { availIndex: 5 },
      { availIndex: 9 },
    ])
    kernel.refusals.clear()
    nic.start()
    expect(nic.started).toBe(true)
  })

  test('SET_FEATURES or SET_MEM_TABLE: features have to be set again', () => {
    const nic = placed(kept())
    for (const ioctl of ['VHOST_SET_FEATURES', 'VHOST_SET_MEM_TABLE']) {
      kernel.refusals.set(ioctl, ENOMEM)
      expect(() => {
        nic.setFeatures(TRANSLATED)
      }).toThrow(/ENOMEM/)
      kernel.refusals.clear()
      expect(() => {
        nic.start()
      }).toThrow(/setFeatures/)
    }
    nic.setFeatures(TRANSLATED)
    nic.start()
  })

  test('SET_OWNER of the second pair: the first is closed, the tap is free', () => {
    tap.close()
    tap = Tap.open('tap0', { queues: 2 })
    let owners = 0
    const push = kernel.calls.push.bind(kernel.calls)
    kernel.calls.push = (call) => {
      if (call.name === 'VHOST_SET_OWNER' && ++owners === 2) {
        kernel.refusals.set('VHOST_SET_OWNER', ENOMEM)
      }
      return push(call)
    }
    expect(() => kept()).toThrow(/ENOMEM.*RLIMIT_NPROC/)
    kernel.refusals.clear()
    expect(kept().queues).toBe(4)
  })
})

test('memory of many regions needs no table where the device translates', () => {
  using many = GuestMemory.fromRegions(
    Array.from({ length: 70 }, (_, i) => ({ gpa: i * 2 * PAGE_SIZE, bytes: PAGE_SIZE })),
  )
  const nic = VhostNet.open({ memory: many, backend: tap, addressSpace: space })
  nic.setFeatures(TRANSLATED)
  const table = kernel.calls.find(({ name }) => name === 'VHOST_SET_MEM_TABLE')
  expect(table?.argument['nregions']).toBe(0)
  nic.close()
})

test('a tap of two queues makes two devices of two rings', () => {
  tap.close()
  tap = Tap.open('tap0', { queues: 2 })
  const nic = kept()
  expect(nic.queues).toBe(4)
  kernel.taken()
  nic.setFeatures(TRANSLATED)
  expect(kernel.taken().filter((name) => name === 'VHOST_SET_FEATURES')).toHaveLength(2)
})

test('the requester is what the address space says, or the caller', () => {
  expect(kept().requester).toBeUndefined()
  open.pop()?.close()
  expect(kept({ requester: 0x18 }).requester).toBe(0x18)
})

test('nothing is taken back from a device that has no IOTLB yet, paranoid or not', () => {
  kept({ paranoid: true })
  space.invalidatePages(0, 15)
  expect(kernel.messages).toEqual([])
})

describe('a decorated channel', () => {
  test('is made once for each pair, and every message of the miss handler goes through it', () => {
    tap.close()
    tap = Tap.open('tap0', { queues: 2 })
    const pairs: number[] = []
    const updates: number[] = []
    const nic = kept({
      channel: (inner, pair) => {
        pairs.push(pair)
        return {
          limit: inner.limit,
          drain: () => inner.drain(),
          update: (range, hva, access) => {
            inner.update(range, hva, access)
          },
          invalidate: (range) => {
            inner.invalidate(range)
          },
          updatePages: (...update) => {
            updates.push(pair)
            inner.updatePages(...update)
          },
          invalidatePages: (first, last) => {
            inner.invalidatePages(first, last)
          },
          onReadable: (listener) => inner.onReadable(listener),
        }
      },
    })
    expect(pairs).toEqual([0, 1])
    placed(nic).start()
    expect(new Set(updates)).toEqual(new Set([0]))
    expect(kernel.messages.filter(({ type }) => type === 2)).toHaveLength(updates.length)
  })

  test('that cannot be made leaves nothing open', () => {
    const broken = new Error('no recorder')
    expect(() =>
      kept({
        channel: () => {
          throw broken
        },
      }),
    ).toThrow(broken)
  })
})

describe('memory that comes and goes', () => {
  const tables = (): unknown[] =>
    kernel.calls
      .splice(0)
      .filter(({ name }) => name === 'VHOST_SET_MEM_TABLE')
      .map(({ argument }) => argument['nregions'])

  test('is a new table without translation, while the rings run', () => {
    const nic = placed(kept(), PLAIN)
    nic.start()
    kernel.taken()
    memory.add({ gpa: 4 * MiB, bytes: PAGE_SIZE })
    expect(tables()).toEqual([2])
    memory.remove(4 * MiB)
    expect(tables()).toEqual([1])
    expect(kernel.messages).toEqual([])
  })

  test('is a flush of both halves with translation, and no table: addresses are the kernel’s', () => {
    memory.add({ gpa: 4 * MiB, bytes: PAGE_SIZE })
    const nic = placed(kept())
    nic.start()
    kernel.taken()
    kernel.messages.length = 0
    expect(nic.stats().entries).toBeGreaterThan(0)
    memory.remove(4 * MiB)
    expect(tables()).toEqual([])
    expect(kernel.messages.map(({ type, iova }) => [type, iova])).toEqual([
      [3, 0n],
      [3, 1n << 63n],
    ])
    expect(nic.stats().entries).toBe(0)
  })

  test('stays where a ring runs in it whose host address the kernel has', () => {
    const low = memory
    memory = GuestMemory.fromRegions([
      { gpa: 0, bytes: PAGE_SIZE * 16 },
      { gpa: 4 * MiB, bytes: PAGE_SIZE },
    ])
    const nic = placed(kept(), PLAIN)
    nic.start()
    kernel.taken()
    expect(() => {
      memory.remove(0)
    }).toThrow(/ERR_IN_USE|queue 0 runs in this memory/)
    expect(memory.regions).toHaveLength(2)
    expect(tables()).toEqual([2])
    nic.stop()
    memory.remove(0)
    expect(tables()).toEqual([1])
    low.close()
  })

  test('does not come where the kernel refuses the table', () => {
    const nic = placed(kept(), PLAIN)
    nic.start()
    kernel.refusals.set('VHOST_SET_MEM_TABLE', -7)
    expect(() => memory.add({ gpa: 4 * MiB, bytes: PAGE_SIZE })).toThrow(/E2BIG.*max_mem_regions/)
    expect(memory.regions).toHaveLength(1)
  })
})

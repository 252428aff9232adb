/** Each mistake has an error of its own, leaves nothing behind, and the next right call works. */
import { closeSync, constants, openSync, readdirSync } from 'node:fs'
import { spawnSync } from 'node:child_process'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { MiB, PAGE_SIZE } from '../../lib/address'
import { GuestMemory } from '../../lib/memory/guest-memory'
import { FakeAddressSpace } from '../../lib/testing/fake-address-space'
import { moduleParameter } from '../../lib/vhost/module-parameters'
import { VhostNet } from '../../lib/vhost/net'
import type { VhostNetOptions } from '../../lib/vhost/net'
import type { Tap } from '../../lib/vhost/tap'
import { VhostDevice } from '../../lib/vhost/vhost-device'
import { features } from '../../lib/virtio/net'
import { quietTap } from '../support/quiet-tap'

const PLAIN = features('VIRTIO_F_VERSION_1')
const TRANSLATED = PLAIN | features('VIRTIO_F_ACCESS_PLATFORM')
const RING = { size: 64, desc: 0x1000n, avail: 0x2000n, used: 0x3000n }
const RINGS = [RING, { size: 64, desc: 0x4000n, avail: 0x5000n, used: 0x6000n }]

let tap: Tap
let memory: GuestMemory
const open: VhostNet[] = []
let before = 0

beforeEach(() => {
  before = descriptors()
  tap = quietTap()
  memory = GuestMemory.allocate(1 * MiB)
})

afterEach(() => {
  for (const nic of open.splice(0)) nic.close()
  tap.close()
  memory.close()
  expect(descriptors()).toBe(before)
})

function kept(options: Partial<VhostNetOptions> = {}): VhostNet {
  const nic = VhostNet.open({ memory, backend: tap, ...options })
  open.push(nic)
  return nic
}

/** It starts, it stops, and it can be opened again. */
function works(nic: VhostNet, bits = PLAIN): void {
  nic.setFeatures(bits)
  for (const [i, ring] of RINGS.entries()) nic.setQueue(i, ring)
  nic.start()
  nic.kick(1)
  nic.stop()
}

function descriptors(): number {
  return readdirSync('/proc/self/fd').length
}

function code(value: string): Error {
  return expect.objectContaining({ code: value }) as Error
}

describe('opening', () => {
  test('no device node: ENOENT, with the module to load', () => {
    expect(() => kept({ path: '/dev/vhost-absent' })).toThrow(code('ENOENT'))
    expect(() => kept({ path: '/dev/vhost-absent' })).toThrow(/modprobe vhost_net/)
    works(kept())
  })

  test('a node that is no vhost device: ENOTTY', () => {
    expect(() => kept({ path: '/dev/null' })).toThrow(/ENOTTY.*not a vhost device/)
    works(kept())
  })

  // What open(2) says to a user who is not root; the error made of it is a unit test's.
  test('the node is not for everybody: EACCES', () => {
    const script = '$< = $> = 65534; open(F, "+<", "/dev/vhost-net") or print 0 + $!'
    expect(spawnSync('perl', ['-e', script]).stdout.toString()).toBe('13')
  })

  test('a tap that another device has: ERR_IN_USE', () => {
    const nic = kept()
    expect(() => kept()).toThrow(code('ERR_IN_USE'))
    expect(() => {
      tap.close()
    }).toThrow(code('ERR_IN_USE'))
    nic.close()
    works(kept())
  })

  test('a tap that is closed: ERR_CLOSED', () => {
    const other = quietTap()
    other.close()
    expect(() => kept({ backend: other })).toThrow(code('ERR_CLOSED'))
    works(kept())
  })

  test('memory that is closed: ERR_CLOSED', () => {
    const other = GuestMemory.allocate(MiB)
    other.close()
    expect(() => kept({ memory: other })).toThrow(code('ERR_CLOSED'))
    works(kept())
  })

  test('memory that a device uses is not given back: ERR_IN_USE', () => {
    const nic = kept()
    expect(() => {
      memory.close()
    }).toThrow(code('ERR_IN_USE'))
    works(nic)
  })

  test.each([0, 2, 1.5, -1])('%d pairs for a tap of one queue: RangeError', (queues) => {
    expect(() => kept({ queues })).toThrow(RangeError)
    works(kept())
  })

  test('a descriptor that has an owner already: EBUSY, and it stays open', () => {
    const fd = openSync('/dev/vhost-net', constants.O_RDWR)
    const device = VhostDevice.open({ fd })
    const again = openSync(`/proc/self/fd/${device.descriptor.fd}`, constants.O_RDWR)
    closeSync(again)
    expect(() => VhostDevice.open({ fd: device.descriptor.fd })).toThrow(code('EBUSY'))
    expect(device.ringBase(0)).toBe(0)
    device.close()
    works(kept())
  })

  test('a number that is not open: EBADF', () => {
    expect(() => kept({ fd: 999 })).toThrow(code('EBADF'))
    works(kept())
  })

  test('a descriptor passed in is taken over', () => {
    works(kept({ fd: openSync('/dev/vhost-net', constants.O_RDWR) }))
  })

  test('many refusals leave no descriptor behind', () => {
    for (let i = 0; i < 10; i++) {
      expect(() => kept({ path: '/dev/null' })).toThrow(/ENOTTY/)
      expect(() => kept({ path: '/dev/vhost-absent' })).toThrow(/ENOENT/)
    }
  })
})

describe('features', () => {
  test('without an address space ACCESS_PLATFORM is not offered', () => {
    const nic = kept()
    expect(nic.features & features('VIRTIO_F_ACCESS_PLATFORM')).toBe(0n)
    expect(() => {
      nic.setFeatures(TRANSLATED)
    }).toThrow(/RangeError|VIRTIO_F_ACCESS_PLATFORM/)
    works(nic)
  })

  test('bits that are not offered, and bits that need another: RangeError, by name', () => {
    const nic = kept()
    expect(() => {
      nic.setFeatures(PLAIN | features('VIRTIO_F_RING_PACKED'))
    }).toThrow(/VIRTIO_F_RING_PACKED/)
    expect(() => {
      nic.setFeatures(PLAIN | features('VIRTIO_NET_F_GUEST_TSO4'))
    }).toThrow(/requires VIRTIO_NET_F_GUEST_CSUM/)
    works(nic)
  })

  test('a start without features: ERR_NOT_CONFIGURED', () => {
    const nic = kept()
    expect(() => {
      nic.start()
    }).toThrow(code('ERR_NOT_CONFIGURED'))
    works(nic)
  })

  test('while it is started: ERR_ALREADY_STARTED', () => {
    const nic = kept()
    works(nic)
    nic.start()
    expect(() => {
      nic.setFeatures(PLAIN)
    }).toThrow(code('ERR_ALREADY_STARTED'))
    expect(() => {
      nic.start()
    }).toThrow(code('ERR_ALREADY_STARTED'))
    expect(() => {
      nic.setQueue(0, RING)
    }).toThrow(code('ERR_ALREADY_STARTED'))
    nic.stop()
    works(nic)
  })

  test('more regions than vhost takes: E2BIG, where it needs them', () => {
    const regions = moduleParameter('vhost/max_mem_regions') + 1
    const many = GuestMemory.fromRegions(
      Array.from({ length: regions }, (_, i) => ({ gpa: i * 2 * PAGE_SIZE, bytes: PAGE_SIZE })),
    )
    const nic = kept({ memory: many })
    expect(() => {
      nic.setFeatures(PLAIN)
    }).toThrow(/E2BIG.*max_mem_regions/)
    expect(() => {
      nic.start()
    }).toThrow(code('ERR_NOT_CONFIGURED'))
    nic.close()
    // With translations on demand the kernel needs no table of regions.
    const addressSpace = new FakeAddressSpace('identity')
    const translated = kept({ memory: many, addressSpace })
    translated.setFeatures(TRANSLATED)
    translated.close()
    many.close()
    works(kept())
  })
})

describe('queues', () => {
  test.each([
    ['a size that is no power of two', { size: 48 }],
    ['a size of zero', { size: 0 }],
    ['a size above 32768', { size: 65536 }],
    ['a descriptor table that is not aligned', { desc: 0x1008n }],
    ['an available ring that is not aligned', { avail: 0x2001n }],
    ['a used ring that is not aligned', { used: 0x3002n }],
    ['an address above 2^64', { desc: 2n ** 64n }],
    ['a ring over the end of the address space', { used: 2n ** 64n - 8n }],
    ['an address below zero', { avail: -2n }],
  ])('%s: RangeError', (_, change) => {
    const nic = kept()
    nic.setFeatures(PLAIN)
    expect(() => {
      nic.setQueue(0, { ...RING, ...change })
    }).toThrow(RangeError)
    works(nic)
  })

  test.each([-1, 2, 0.5, Number.NaN])('queue %d: RangeError', (index) => {
    const nic = kept()
    expect(() => {
      nic.setQueue(index, RING)
    }).toThrow(RangeError)
    expect(() => {
      nic.kick(index)
    }).toThrow(RangeError)
    works(nic)
  })

  test('an available index that no ring has: RangeError', () => {
    const nic = kept()
    expect(() => {
      nic.setQueue(0, RING, { availIndex: 65536 })
    }).toThrow(RangeError)
    works(nic)
  })

  test('no queue at all: ERR_NOT_CONFIGURED', () => {
    const nic = kept()
    nic.setFeatures(PLAIN)
    expect(() => {
      nic.start()
    }).toThrow(code('ERR_NOT_CONFIGURED'))
    works(nic)
  })

  test('gpas outside guest memory: RangeError at the start, and nothing is started', () => {
    const nic = kept()
    nic.setFeatures(PLAIN)
    nic.setQueue(0, RINGS[0])
    nic.setQueue(1, { ...RINGS[1], used: BigInt(1 * MiB) - 4n })
    expect(() => {
      nic.start()
    }).toThrow(/used at gpa 0xffffc.*not in guest memory/)
    expect(nic.started).toBe(false)
    works(nic)
  })

  test('a used ring that is not mapped: EFAULT at the start, and nothing is started', () => {
    const addressSpace = new FakeAddressSpace()
    addressSpace.mapPages(1, 5, 1, 3)
    const nic = kept({ addressSpace })
    nic.setFeatures(TRANSLATED)
    for (const [i, ring] of RINGS.entries()) nic.setQueue(i, ring)
    expect(() => {
      nic.start()
    }).toThrow(/EFAULT.*used ring of queue 1/)
    expect(nic.started).toBe(false)
    addressSpace.mapPages(6, 6, 6, 3)
    nic.start()
    nic.stop()
    works(nic, TRANSLATED)
  })
})

test('a closed device says so, and closing it again is nothing', () => {
  const nic = kept()
  works(nic)
  nic.close()
  nic.close()
  expect(() => {
    nic.start()
  }).toThrow(code('ERR_CLOSED'))
  expect(() => {
    nic.setFeatures(PLAIN)
  }).toThrow(code('ERR_CLOSED'))
  expect(() => {
    nic.setQueue(0, RING)
  }).toThrow(code('ERR_CLOSED'))
  works(kept())
})

import { beforeEach, describe, expect, test, vi } from 'vitest'
import { MiB } from '../../lib/address'
import { GuestMemory } from '../../lib/memory/guest-memory'
import { native as addon } from '../../lib/native'
import type { Native } from '../../lib/native'
import { VhostDevice } from '../../lib/vhost/vhost-device'
import {
  EACCES,
  EBUSY,
  ENODEV,
  ENOMEM,
  ENOTTY,
  ENXIO,
  EPERM,
  FakeKernel,
  OFFERED,
  PLAIN,
  TRANSLATED,
} from './fake-kernel'

const current = vi.hoisted(() => ({ native: undefined as Native | undefined }))
vi.mock(import('../../lib/native'), async (original) => {
  const { native } = await original()
  return { native: () => current.native ?? native() }
})

let kernel: FakeKernel
beforeEach(() => {
  current.native = undefined
  kernel = new FakeKernel(addon())
  current.native = kernel.native(addon())
})

describe('opening', () => {
  test.each([
    ['ENODEV', ENODEV, /modprobe vhost_net/],
    ['ENXIO', ENXIO, /modprobe vhost_net/],
    ['EACCES', EACCES, /add the user to the group of the node/],
    ['EPERM', EPERM, /not allowed here/],
  ])('%s says what to do', (code, errno, hint) => {
    kernel.refusals.set('open /dev/vhost-net', errno)
    expect(() => VhostDevice.open()).toThrow(
      expect.objectContaining({ code, errno, syscall: 'open', path: '/dev/vhost-net' }),
    )
    expect(() => VhostDevice.open()).toThrow(hint)
  })

  test.each([
    ['VHOST_GET_FEATURES', ENOTTY, /not a vhost device/],
    ['VHOST_SET_OWNER', EBUSY, /has an owner already/],
    ['VHOST_SET_OWNER', ENOMEM, /RLIMIT_NPROC/],
    ['VHOST_SET_BACKEND_FEATURES', EPERM, /EPERM/],
  ])('a refused %s closes the descriptor', (ioctl, errno, hint) => {
    kernel.refusals.set(ioctl, errno)
    expect(() => VhostDevice.open()).toThrow(hint)
    expect(kernel.opened.map(({ fd }) => fd)).toEqual([-1])
    kernel.refusals.clear()
    VhostDevice.open().close()
  })

  test('asks what is offered, becomes the owner, and speaks version 2', () => {
    using device = VhostDevice.open()
    expect([device.features, device.messageVersion]).toEqual([OFFERED, 2])
    expect(kernel.taken()).toEqual([
      'VHOST_GET_FEATURES',
      'VHOST_GET_BACKEND_FEATURES',
      'VHOST_SET_OWNER',
      'VHOST_SET_BACKEND_FEATURES',
    ])
  })

  test('speaks version 1 where the kernel knows no backend features', () => {
    kernel.refusals.set('VHOST_GET_BACKEND_FEATURES', ENOTTY)
    using device = VhostDevice.open()
    expect(device.messageVersion).toBe(1)
    expect(kernel.taken()).not.toContain('VHOST_SET_BACKEND_FEATURES')
  })

  test('speaks version 1 where it is not offered, and acknowledges nothing else', () => {
    kernel.backendFeatures = 0xcn
    using device = VhostDevice.open()
    expect(device.messageVersion).toBe(1)
    expect(kernel.taken()).not.toContain('VHOST_SET_BACKEND_FEATURES')
  })
})

describe('memory', () => {
  test('one region of the table for each of the memory', () => {
    using memory = GuestMemory.fromRegions([
      { gpa: 0, bytes: 1 * MiB },
      { gpa: 16 * MiB, bytes: 2 * MiB },
    ])
    using device = VhostDevice.open()
    device.setMemory(memory)
    expect(kernel.calls.at(-1)).toEqual({
      name: 'VHOST_SET_MEM_TABLE',
      argument: { nregions: 2, padding: 0 },
    })
  })

  test('no memory is an empty table', () => {
    using device = VhostDevice.open()
    device.setMemory(undefined)
    expect(kernel.calls.at(-1)?.argument).toEqual({ nregions: 0, padding: 0 })
  })
})

test('what was acknowledged says whether the device translates, and a reset forgets it', () => {
  using device = VhostDevice.open()
  expect(device.translates).toBe(false)
  device.setFeatures(TRANSLATED)
  expect([device.translates, device.acknowledged]).toEqual([true, TRANSLATED])
  kernel.taken()
  device.reset()
  expect([device.translates, device.acknowledged]).toEqual([false, 0n])
  expect(kernel.taken()).toEqual([
    'VHOST_RESET_OWNER',
    'VHOST_SET_OWNER',
    'VHOST_SET_BACKEND_FEATURES',
  ])
  device.setFeatures(PLAIN)
  expect(device.translates).toBe(false)
})

test('a ring without a backend is fd -1', () => {
  using device = VhostDevice.open()
  device.setBackend(1, undefined)
  expect(kernel.calls.at(-1)?.argument).toEqual({ index: 1, fd: -1 })
})

test('a closed socket is refused before the kernel takes its -1 for a stop', () => {
  using device = VhostDevice.open()
  const socket = addon().eventfd(0)
  if (typeof socket === 'number') throw new Error('eventfd')
  socket.close()
  expect(() => {
    device.setBackend(0, socket)
  }).toThrow(/EBADF/)
  expect(kernel.taken()).not.toContain('VHOST_NET_SET_BACKEND')
})

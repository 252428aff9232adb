import { beforeEach, expect, test, vi } from 'vitest'
import { native as addon } from '../../lib/native'
import type { Native } from '../../lib/native'
import { Tap } from '../../lib/vhost/tap'
import { EACCES, ENODEV, EPERM, FakeKernel } from './fake-kernel'

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

test.each([
  ['ENODEV', ENODEV, /modprobe tun/],
  ['EACCES', EACCES, /chmod 666/],
  ['EPERM', EPERM, /container or cgroup/],
])('opening the node: %s says what to do', (code, errno, hint) => {
  kernel.refusals.set('open /dev/net/tun', errno)
  expect(() => Tap.open('tap0')).toThrow(
    expect.objectContaining({ code, syscall: 'open', path: '/dev/net/tun' }),
  )
  expect(() => Tap.open('tap0')).toThrow(hint)
})

test('without CAP_NET_ADMIN: EPERM, with the ways to get on, and nothing stays open', () => {
  kernel.refusals.set('TUNSETIFF', EPERM)
  expect(() => Tap.open('tap0', { queues: 3 })).toThrow(/EPERM.*'tap0'.*CAP_NET_ADMIN/)
  expect(kernel.opened.map(({ fd }) => fd)).toEqual([-1])
})

test('a link that may not be brought up: EPERM, and the tap is closed again', () => {
  kernel.refusals.set('SIOCGIFFLAGS', EPERM)
  expect(() => Tap.open('tap0')).toThrow(/EPERM.*ip link/)
  expect(kernel.opened.filter(({ fd }) => fd >= 0)).toEqual([])
})

test('several queues are asked for as such, each attached to the same name', () => {
  const tap = Tap.open('tap0', { queues: 2, up: false })
  const attached = kernel.calls.filter(({ name }) => name === 'TUNSETIFF')
  // IFF_TAP, IFF_NO_PI, IFF_VNET_HDR, IFF_MULTI_QUEUE
  expect(attached.map(({ argument }) => argument['ifr_flags'])).toEqual([0x5102, 0x5102])
  tap.close()
})

test('a link that is up is left alone: no privilege is needed for it', () => {
  Tap.open('tap0').close()
  expect(kernel.taken()).not.toContain('SIOCSIFFLAGS')
})

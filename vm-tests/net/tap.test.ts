import { execFileSync } from 'node:child_process'
import { closeSync, constants, openSync, readdirSync } from 'node:fs'
import { afterEach, describe, expect, test } from 'vitest'
import { native } from '../../lib/native'
import { interfaceIndex } from '../../lib/vhost/interface'
import { Tap } from '../../lib/vhost/tap'
import {
  IFF_NO_PI,
  IFF_TAP,
  IFF_VNET_HDR,
  IOCTLS,
  STRUCTS,
  encodeStruct,
} from '../../lib/vhost/uapi'
import { frame, ours } from '../support/frames'
import { PacketSocket } from '../support/packet-socket'
import { quietTap } from '../support/quiet-tap'

const open: { close(): void }[] = []
afterEach(() => {
  for (const each of open.splice(0).reverse()) each.close()
})

function kept<T extends { close(): void }>(made: T): T {
  open.push(made)
  return made
}

describe('opening', () => {
  test('makes an interface of the next free number, brings it up, and takes it away again', () => {
    const tap = kept(Tap.open('spare%d'))
    expect(tap.name).toMatch(/^spare\d+$/)
    expect(tap.up).toBe(true)
    expect(tap.vnetHeader).toBe(true)
    expect(tap.headerBytes).toBe(12)
    tap.close()
    expect(interfaceIndex(tap.name)).toBeUndefined()
  })

  test('down when asked for', () => {
    expect(kept(Tap.open('spare%d', { up: false })).up).toBe(false)
  })

  test('attaches to one that was made by another program', () => {
    execFileSync('ip', ['tuntap', 'add', 'made0', 'mode', 'tap', 'vnet_hdr'])
    try {
      const tap = kept(Tap.open('made0', { create: 'never' }))
      expect(tap.name).toBe('made0')
      tap.close()
      expect(interfaceIndex('made0')).toBeDefined()
    } finally {
      execFileSync('ip', ['link', 'del', 'made0'])
    }
  })

  test('several queues are several descriptors of one interface', () => {
    const tap = kept(Tap.open('spare%d', { queues: 3 }))
    expect(tap.queues).toHaveLength(3)
    expect(new Set(tap.queues.map(({ fd }) => fd)).size).toBe(3)
  })
})

describe('each mistake has its error, and the next right call works', () => {
  test.each([
    ['a name of 16 bytes', 'sixteen-bytes-xx', /1 to 15 bytes/],
    ['a name with a slash', 'a/b', /not an interface name/],
    ['a % that is not %d', 'tap%s', /only %d/],
    ['an empty name', '', /1 to 15 bytes/],
  ])('%s: RangeError', (_, name, message) => {
    expect(() => Tap.open(name)).toThrow(RangeError)
    expect(() => Tap.open(name)).toThrow(message)
    kept(Tap.open('spare%d'))
  })

  test('a tap that is attached already: EBUSY', () => {
    const tap = kept(Tap.open('spare%d'))
    expect(() => Tap.open(tap.name)).toThrow(
      expect.objectContaining({ code: 'EBUSY', path: tap.name, syscall: 'ioctl TUNSETIFF' }),
    )
    tap.close()
    expect(kept(Tap.open(tap.name)).name).toBe(tap.name)
  })

  test('an interface that exists, where a new one is wanted: EBUSY', () => {
    execFileSync('ip', ['tuntap', 'add', 'made1', 'mode', 'tap'])
    try {
      expect(() => Tap.open('made1', { create: 'always' })).toThrow(
        expect.objectContaining({ code: 'EBUSY' }),
      )
    } finally {
      execFileSync('ip', ['link', 'del', 'made1'])
    }
    expect(kept(Tap.open('made1', { create: 'always' })).name).toBe('made1')
  })

  test('an interface that is not there, where it must be: ENODEV', () => {
    expect(() => Tap.open('absent0', { create: 'never' })).toThrow(
      expect.objectContaining({ code: 'ENODEV', path: 'absent0' }),
    )
    expect(interfaceIndex('absent0')).toBeUndefined()
  })

  test('the name of what is no tap: EINVAL', () => {
    expect(() => Tap.open('lo')).toThrow(/EINVAL.*not a tap/)
  })

  test('no device node: ENOENT, with the module to load', () => {
    expect(() => Tap.open('spare%d', { path: '/dev/net/absent' })).toThrow(/ENOENT.*modprobe tun/)
  })

  test.each([0, -1, 1.5, 257, Number.NaN])('%d queues: RangeError', (queues) => {
    expect(() => Tap.open('spare%d', { queues })).toThrow(RangeError)
  })

  test('nothing is left open by what was refused', () => {
    const tap = kept(Tap.open('spare%d'))
    const before = descriptors()
    for (let i = 0; i < 20; i++) expect(() => Tap.open(tap.name)).toThrow(/EBUSY/)
    for (let i = 0; i < 20; i++) expect(() => Tap.open('lo', { queues: 4 })).toThrow(/EINVAL/)
    expect(descriptors()).toBe(before)
  })
})

describe('an open descriptor', () => {
  test('is taken over with what it is attached to', () => {
    const tap = kept(Tap.fromFd(attachedNumber('passed0')))
    expect([tap.name, tap.vnetHeader, tap.up]).toEqual(['passed0', true, false])
    expect(tap.headerBytes).toBe(12)
    tap.close()
    expect(interfaceIndex('passed0')).toBeUndefined()
  })

  test('that is no tap is refused, and stays open', () => {
    const fd = openSync('/dev/null', constants.O_RDWR)
    expect(() => Tap.fromFd(fd)).toThrow(expect.objectContaining({ code: 'ENOTTY' }))
    closeSync(fd)
  })

  test('that is attached to nothing is refused', () => {
    const fd = openSync('/dev/net/tun', constants.O_RDWR)
    expect(() => Tap.fromFd(fd)).toThrow(expect.objectContaining({ code: 'EBADFD' }))
    closeSync(fd)
  })

  test('that is not open is refused', () => {
    expect(() => Tap.fromFd(999)).toThrow(expect.objectContaining({ code: 'EBADF' }))
    expect(() => Tap.fromFd([])).toThrow(RangeError)
  })
})

describe('properties', () => {
  test('the MTU and the address of the interface', () => {
    const tap = kept(Tap.open('spare%d'))
    tap.mtu = 9000
    tap.macAddress = '02:00:00:00:AB:cd'
    expect([tap.mtu, tap.macAddress]).toEqual([9000, '02:00:00:00:ab:cd'])
    expect(() => (tap.mtu = 1)).toThrow(expect.objectContaining({ code: 'EINVAL' }))
    expect(() => (tap.macAddress = 'beef')).toThrow(RangeError)
    expect(tap.mtu).toBe(9000)
  })

  test('up and down', () => {
    const tap = kept(Tap.open('spare%d'))
    tap.up = false
    expect(tap.up).toBe(false)
    tap.up = true
    expect(tap.up).toBe(true)
  })

  // drivers/net/tun.c, set_offload: segmentation is nothing without checksums.
  test('offloads that the kernel refuses change nothing', () => {
    const tap = kept(Tap.open('spare%d'))
    tap.setOffload(7)
    expect(() => {
      tap.setOffload(2)
    }).toThrow(expect.objectContaining({ code: 'EINVAL' }))
    tap.setOffload(0)
  })

  test('a header below ten bytes is refused', () => {
    const tap = kept(Tap.open('spare%d'))
    expect(() => {
      tap.setHeaderBytes(9)
    }).toThrow(expect.objectContaining({ code: 'EINVAL' }))
    expect(tap.headerBytes).toBe(12)
  })
})

describe('frames without a device', () => {
  test.each([true, false])('both ways, byte for byte, with header: %s', async (vnetHeader) => {
    const tap = kept(quietTap({ vnetHeader }))
    await using host = await PacketSocket.open(tap.name)
    for (const length of [60, 64, 1514]) tap.write(frame(length, length))
    expect(await host.receive(3)).toEqual([60, 64, 1514].map((length) => frame(length, length)))

    const arrived = new Promise<void>((resolve) => {
      const subscription = tap.onReadable(() => {
        subscription[Symbol.dispose]()
        resolve()
      })
    })
    await host.send(frame(1, 60, 'host'), frame(2, 1514, 'host'))
    await arrived
    expect(ours([tap.read()!, tap.read()!])).toEqual([frame(1, 60, 'host'), frame(2, 1514, 'host')])
    expect(tap.read()).toBeUndefined()
  })

  test('into a link that is down: EIO', () => {
    const tap = kept(quietTap({ up: false }))
    expect(() => {
      tap.write(frame(1, 60))
    }).toThrow(expect.objectContaining({ code: 'EIO' }))
    tap.up = true
    tap.write(frame(1, 60))
  })
})

test('a closed tap says so', () => {
  const tap = Tap.open('spare%d')
  tap.close()
  tap.close()
  expect(() => tap.read()).toThrow(expect.objectContaining({ code: 'ERR_CLOSED' }))
  expect(() => {
    tap.write(frame(1, 60))
  }).toThrow(expect.objectContaining({ code: 'ERR_CLOSED' }))
})

/** A number that nobody owns, attached to a new interface, as another program would pass it. */
function attachedNumber(name: string): number {
  const fd = openSync('/dev/net/tun', constants.O_RDWR)
  const descriptor = native().duplicate(fd)
  if (typeof descriptor === 'number') throw new Error(`duplicate: ${descriptor}`)
  const flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR
  const ifr_name = new TextEncoder().encode(name)
  const argument = encodeStruct(STRUCTS.ifreq_flags, { ifr_name, ifr_flags: flags })
  const { request, size } = IOCTLS.TUNSETIFF
  expect(native().ioctl(descriptor, request, argument, size)).toBe(0)
  descriptor.close()
  return fd
}

function descriptors(): number {
  return readdirSync('/proc/self/fd').length
}

import { closeSync, existsSync, mkdirSync, openSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterEach, describe, expect, it, vi } from 'vitest'
import { native } from '../lib/native'
import {
  EBADF,
  O_NONBLOCK,
  O_RDWR,
  cleanUp,
  eventfd,
  flagsOf,
  made,
  mapped,
  openDescriptors,
  temporary,
} from './native/support'

const ENOENT = -2
const EEXIST = -17
const EBUSY = -16
const EINVAL = -22
const ENOTTY = -25
const O_CLOEXEC = 0o2000000
const O_CREAT = 0o100

afterEach(cleanUp)

describe('descriptors', () => {
  it('open sets O_CLOEXEC whatever the flags', () => {
    const descriptor = made(native().open('/dev/null', O_RDWR))
    expect(flagsOf(descriptor.fd) & (O_CLOEXEC | O_RDWR)).toBe(O_CLOEXEC | O_RDWR)
    descriptor.close()
  })

  it('open answers -errno where the host refuses', () => {
    expect(native().open('/nowhere/at/all', 0)).toBe(ENOENT)
    expect(native().open('x'.repeat(5000), 0)).toBe(-36)
  })

  it('open creates files that only their owner can read', () => {
    const path = temporary('new')
    made(native().open(path, O_RDWR | O_CREAT)).close()
    expect(existsSync(path)).toBe(true)
    expect(native().open(path, O_RDWR | O_CREAT | 0o200)).toBe(EEXIST)
  })

  it('eventfd is non-blocking, close-on-exec and starts where it was told to', () => {
    const event = eventfd(0xffffffff)
    expect(flagsOf(event.fd) & (O_CLOEXEC | O_NONBLOCK)).toBe(O_CLOEXEC | O_NONBLOCK)
    const counter = new BigUint64Array(1)
    expect(native().read(event, counter, 0, 8)).toBe(8)
    expect(counter[0]).toBe(0xffffffffn)
    event.close()
  })

  it('socket is close-on-exec', () => {
    const socket = made(native().socket(2, 2, 0))
    expect(flagsOf(socket.fd) & O_CLOEXEC).toBe(O_CLOEXEC)
    socket.close()
    expect(native().socket(999, 1, 0)).toBe(-97)
  })

  it('a closed descriptor has the number -1, and every call answers -EBADF', () => {
    const closed = eventfd()
    closed.close()
    const memory = mapped()
    const buffer = new Uint8Array(8)
    const calls = native()
    expect(closed.fd).toBe(-1)
    expect(calls.ioctl(closed, 0xaf01)).toBe(EBADF)
    expect(calls.ioctl(closed, 0x8008af00, buffer)).toBe(EBADF)
    expect(calls.read(closed, buffer, 0, 8)).toBe(EBADF)
    expect(calls.write(closed, buffer, 0, 8)).toBe(EBADF)
    expect(calls.readMany(closed, buffer, 8)).toBe(EBADF)
    expect(calls.writeMany(closed, buffer, 8, 1)).toBe(EBADF)
    expect(calls.writeMany(closed, buffer, 8, 1, [0, -1])).toBe(EBADF)
    expect(calls.hold(closed, memory)).toBe(EBADF)
    expect(calls.poll(closed, buffer, 8, () => undefined)).toBe(EBADF)
    expect(calls.setns(closed, 0)).toBe(EBADF)
    memory.close()
  })

  it('a second close leaves alone whoever has the number by then', () => {
    const first = eventfd()
    const number = first.fd
    first.close()
    const heir = openSync('/dev/null', 'r')
    expect(heir).toBe(number)
    first.close()
    expect(() => {
      closeSync(heir)
    }).not.toThrow()
  })

  it('adopt takes a number over, and sets FD_CLOEXEC', () => {
    const number = openSync('/dev/null', 'r')
    const adopted = made(native().adopt(number))
    expect(adopted.fd).toBe(number)
    expect(flagsOf(number) & O_CLOEXEC).toBe(O_CLOEXEC)
    adopted.close()
    expect(() => {
      closeSync(number)
    }).toThrow('EBADF')
  })

  it('adopt refuses a number that is closed, or that a descriptor owns', () => {
    const event = eventfd()
    const number = event.fd
    expect(native().adopt(number)).toBe(EBUSY)
    event.close()
    expect(native().adopt(number)).toBe(EBADF)
  })

  it('duplicate opens a second way to the same file, with its own life', () => {
    const event = eventfd(5)
    const second = made(native().duplicate(event.fd))
    event.close()
    expect(native().read(second, new Uint8Array(8), 0, 8)).toBe(8)
    expect(flagsOf(second.fd) & O_CLOEXEC).toBe(O_CLOEXEC)
    second.close()
    expect(native().duplicate(100_000)).toBe(EBADF)
  })

  it('a thousand descriptors, opened and closed, leave none behind', () => {
    const before = openDescriptors()
    for (let i = 0; i < 1000; i++) {
      const event = eventfd()
      const poller = made(native().poll(event, null, 0, () => undefined))
      if (i % 2 === 0) poller.close()
      event.close()
    }
    // Other threads of the process may open some of their own meanwhile.
    expect(openDescriptors() - before).toBeLessThan(50)
  })

  it('setns answers -errno for what is no namespace', () => {
    const event = eventfd()
    expect(native().setns(event, 0)).toBe(EINVAL)
    event.close()
  })
})

describe('arguments', () => {
  const wrong: readonly [string, () => unknown][] = [
    ['a path with a null byte', () => native().open('/dev/null\0/etc', 0)],
    ['a path that is no string', () => native().open(3 as never, 0)],
    ['an object of another class', () => native().hold(mapped() as never, mapped())],
    ['a plain object', () => native().read({ fd: 0 } as never, new Uint8Array(1), 0, 1)],
    ['no listener', () => native().poll(eventfd(), null, 0, 1 as never)],
    [
      'an ArrayBuffer for a view',
      () => native().readMany(eventfd(), new ArrayBuffer(8) as never, 8),
    ],
  ]
  it.each(wrong)('%s is a TypeError', (_, call) => {
    expect(call).toThrow(TypeError)
  })

  const outside: readonly [string, () => unknown][] = [
    ['a fraction', () => native().eventfd(0.5)],
    ['NaN', () => native().eventfd(Number.NaN)],
    ['a negative number', () => native().adopt(-1)],
    ['2^32', () => native().eventfd(2 ** 32)],
    ['an offset past the end', () => native().read(eventfd(), new Uint8Array(8), 9, 0)],
    ['a length past the end', () => native().read(eventfd(), new Uint8Array(8), 4, 5)],
    ['messages of no bytes', () => native().readMany(eventfd(), new Uint8Array(8), 0)],
    ['a message above the buffer', () => native().readMany(eventfd(), new Uint8Array(8), 9)],
    ['more messages than bytes', () => native().writeMany(eventfd(), new Uint8Array(17), 8, 3)],
    ['half a page', () => native().mapMemory(2048, 0)],
    ['pages of 4 MiB', () => native().mapMemory(2 ** 22, 2 ** 22)],
    ['half a huge page', () => native().mapMemory(2 ** 20, 2 ** 21)],
    ['busy for seconds', () => native().poll(eventfd(), null, 0, () => undefined, 1001)],
  ]
  it.each(outside)('%s is a RangeError', (_, call) => {
    expect(call).toThrow(RangeError)
  })

  it('the classes cannot be constructed', () => {
    const poller = made(native().poll(eventfd(), null, 0, () => undefined))
    for (const object of [eventfd(), mapped(), poller]) {
      expect(() => Reflect.construct(object.constructor, []) as unknown).toThrow(
        'Illegal constructor',
      )
    }
    poller.close()
  })

  it('an accessor refuses the objects of another class', () => {
    const prototype = Object.getPrototypeOf(eventfd()) as object
    expect(() => Reflect.get(prototype, 'fd', mapped()) as unknown).toThrow(TypeError)
    expect(() => Reflect.get(prototype, 'fd', Object.create(eventfd())) as unknown).toThrow(
      TypeError,
    )
  })
})

describe('ioctl', () => {
  const RNDGETENTCNT = 0x80045200
  const TUNSETIFF = 0x400454ca
  const IO_REQUEST = 0xaf01

  it('gives the bytes to the kernel and back, and leaves those around them alone', () => {
    const random = made(native().open('/dev/urandom', 0))
    const around = new Uint8Array(12).fill(0xaa)
    expect(native().ioctl(random, RNDGETENTCNT, around.subarray(4, 8))).toBe(0)
    expect(new DataView(around.buffer).getInt32(4, true)).toBeLessThanOrEqual(4096)
    expect(around.subarray(0, 4)).toEqual(around.subarray(8))
    random.close()
  })

  it('answers -errno', () => {
    const event = eventfd()
    expect(native().ioctl(event, IO_REQUEST)).toBe(ENOTTY)
    expect(native().ioctl(event, IO_REQUEST, 0xffff)).toBe(ENOTTY)
    expect(native().ioctl(event, RNDGETENTCNT, new Uint8Array(4))).toBe(ENOTTY)
    event.close()
  })

  it('a request with a payload takes a buffer of its size', () => {
    const event = eventfd()
    expect(() => native().ioctl(event, RNDGETENTCNT)).toThrow(TypeError)
    expect(() => native().ioctl(event, RNDGETENTCNT, 1)).toThrow(TypeError)
    expect(() => native().ioctl(event, RNDGETENTCNT, new Uint8Array(3))).toThrow(RangeError)
    expect(() => native().ioctl(event, RNDGETENTCNT, new Uint8Array(8), 3)).toThrow(RangeError)
    event.close()
  })

  it('a request without a payload takes no buffer, and no integer that could be an address', () => {
    const event = eventfd()
    expect(() => native().ioctl(event, IO_REQUEST, new Uint8Array(8))).toThrow(TypeError)
    expect(() => native().ioctl(event, IO_REQUEST, 0x10000)).toThrow(RangeError)
    expect(native().ioctl(event, IO_REQUEST, new Uint8Array(8), 8)).toBe(ENOTTY)
    event.close()
  })

  it('size 0 passes an integer as it is, for requests that only claim a payload', () => {
    const event = eventfd()
    expect(native().ioctl(event, TUNSETIFF, 1, 0)).toBe(ENOTTY)
    expect(native().ioctl(event, IO_REQUEST, 2 ** 32, 0)).toBe(ENOTTY)
    event.close()
  })

  const tun = native().open('/dev/net/tun', O_RDWR | O_NONBLOCK)
  it.skipIf(typeof tun === 'number')(
    'a request that understates its size writes nothing past the buffer',
    () => {
      // TUNSETIFF says 4 bytes, and reads and writes a struct ifreq of 40.
      const ifreq = new Uint8Array(256).fill(0xaa)
      ifreq.set([0x25, 0x64, 0, 0])
      const before = ifreq.slice()
      const result = native().ioctl(made(tun), TUNSETIFF, ifreq.subarray(0, 4))
      expect(result).toBeLessThan(0)
      expect(ifreq.subarray(4)).toEqual(before.subarray(4))
      made(tun).close()
    },
  )
})

describe('the loader', () => {
  it('says what to do when no addon loads', async () => {
    const folder = temporary('addon')
    mkdirSync(folder)
    writeFileSync(join(folder, 'broken.node'), 'not an addon')
    for (const path of [join(folder, 'broken.node'), join(folder, 'missing.node')]) {
      vi.stubEnv('VHOST_IOTLB_ADDON', path)
      vi.resetModules()
      const again = await import('../lib/native')
      expect(() => again.native()).toThrow(
        expect.objectContaining({
          code: 'ERR_NO_ADDON',
          message: expect.stringMatching(
            /Compile it: `npx node-gyp rebuild --directory=\/.*` \(needs g\+\+/,
          ) as string,
        }) as Error,
      )
      expect(() => again.native()).toThrow(path)
    }
    vi.unstubAllEnvs()
  })

  it.skipIf(process.env['VHOST_IOTLB_ADDON'])('asks for no library newer than Node does', () => {
    const addon = readFileSync((native() as unknown as { path: string }).path, 'latin1')
    const newest = (name: string): number => {
      const versions = [...addon.matchAll(new RegExp(`${name}(\\d+)`, 'g'))]
      return Math.max(...versions.map(([, minor]) => Number(minor)))
    }
    expect(newest('GLIBC_2\\.')).toBeLessThanOrEqual(28)
    expect(newest('GLIBCXX_3\\.4\\.')).toBeLessThanOrEqual(21)
  })
})

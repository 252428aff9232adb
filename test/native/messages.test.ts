import { closeSync, openSync, writeSync } from 'node:fs'
import { afterEach, describe, expect, it } from 'vitest'
import { native } from '../../lib/native'
import type { Descriptor } from '../../lib/native'
import {
  EAGAIN,
  EBADF,
  EFAULT,
  O_NONBLOCK,
  O_RDWR,
  PAGE,
  cleanUp,
  eventfd,
  loopback,
  made,
  mapped,
} from './support'

const SIZE = 72
const EPIPE = -32

afterEach(cleanUp)

describe('readMany', () => {
  it('reads until there are no more', () => {
    const { fifo } = loopback()
    const messages = new Uint8Array(3 * SIZE).map((_, i) => i)
    expect(native().writeMany(fifo, messages, SIZE, 3)).toBe(3)
    const buffer = new Uint8Array(64 * SIZE)
    expect(native().readMany(fifo, buffer, SIZE)).toBe(3)
    expect(buffer.subarray(0, 3 * SIZE)).toEqual(messages)
    expect(native().readMany(fifo, buffer, SIZE)).toBe(EAGAIN)
    fifo.close()
  })

  it('stops when the buffer is full, and leaves a rest that is no whole message alone', () => {
    const { fifo } = loopback()
    native().writeMany(fifo, new Uint8Array(3 * SIZE).fill(1), SIZE, 3)
    const buffer = new Uint8Array(2 * SIZE + SIZE - 1)
    expect(native().readMany(fifo, buffer, SIZE)).toBe(2)
    expect(buffer.subarray(2 * SIZE).every((byte) => byte === 0)).toBe(true)
    fifo.close()
  })

  it('does not wait on a blocking descriptor', () => {
    const { fifo } = loopback(O_RDWR)
    const buffer = new Uint8Array(4 * SIZE)
    expect(native().readMany(fifo, buffer, SIZE)).toBe(EAGAIN)
    native().writeMany(fifo, buffer, SIZE, 1)
    expect(native().readMany(fifo, buffer, SIZE)).toBe(1)
    fifo.close()
  })

  it('zeroes the tail of a short message', () => {
    const { fifo } = loopback()
    native().write(fifo, new Uint8Array(40).fill(7), 0, 40)
    const buffer = new Uint8Array(SIZE).fill(0xff)
    expect(native().readMany(fifo, buffer, SIZE)).toBe(1)
    expect([buffer[39], buffer[40], buffer[SIZE - 1]]).toEqual([7, 0, 0])
    fifo.close()
  })

  it('answers 0 at the end of a stream', () => {
    const { path, fifo } = loopback()
    const reader = made(native().open(path, O_NONBLOCK))
    fifo.close()
    expect(native().readMany(reader, new Uint8Array(SIZE), SIZE)).toBe(0)
    reader.close()
  })
})

describe('writeMany', () => {
  it('answers how many were written when the kernel takes no more', () => {
    const event = eventfd()
    // An eventfd refuses a sum above 2^64-2.
    const messages = new BigUint64Array([2n ** 64n - 3n, 1n, 1n])
    expect(native().writeMany(event, messages, 8, 3)).toBe(2)
    expect(native().writeMany(event, messages, 8, 1)).toBe(EAGAIN)
    event.close()
  })

  it('counts a message that the kernel took in part as one, and does not repeat the rest', () => {
    const { fifo } = loopback()
    const pipeSize = 16 * PAGE
    expect(native().write(fifo, new Uint8Array(pipeSize - PAGE), 0, pipeSize - PAGE)).toBe(
      pipeSize - PAGE,
    )
    expect(native().writeMany(fifo, new Uint8Array(4 * PAGE), 2 * PAGE, 2)).toBe(1)
    fifo.close()
  })

  it('answers -errno when the first write is refused', () => {
    const { path, fifo } = loopback()
    const reader = openSync(path, 'r')
    const writer = made(native().open(path, 1 | O_NONBLOCK))
    fifo.close()
    closeSync(reader)
    expect(native().writeMany(writer, new Uint8Array(SIZE), SIZE, 1)).toBe(EPIPE)
    writer.close()
  })

  it('writes nothing for a count of 0', () => {
    const { fifo } = loopback()
    expect(native().writeMany(fifo, new Uint8Array(SIZE), SIZE, 0)).toBe(0)
    expect(native().readMany(fifo, new Uint8Array(SIZE), SIZE)).toBe(EAGAIN)
    fifo.close()
  })
})

describe('writer', () => {
  it('writes what is in the buffer at each call', () => {
    const { fifo } = loopback()
    const out = new Uint8Array(SIZE)
    const write = native().writer(fifo, out, SIZE)
    const buffer = new Uint8Array(2 * SIZE)
    for (const byte of [1, 2]) {
      out.fill(byte)
      expect(write()).toBe(1)
      expect(native().readMany(fifo, buffer, SIZE)).toBe(1)
      expect(buffer[SIZE - 1]).toBe(byte)
    }
    fifo.close()
    expect(write()).toBe(EBADF)
  })

  it('answers -errno, and -EFAULT for a buffer that was detached', () => {
    const event = eventfd()
    const out = new BigUint64Array([2n ** 64n - 2n])
    const write = native().writer(event, out, 8)
    expect(write()).toBe(1)
    expect(write()).toBe(EAGAIN)
    structuredClone(out, { transfer: [out.buffer] })
    expect(write()).toBe(EFAULT)
    event.close()
  })

  it('checks the guarded address of each message', () => {
    const { fifo } = loopback()
    const memory = mapped()
    native().hold(fifo, memory)
    const out = new BigUint64Array(SIZE / 8)
    const write = native().writer(fifo, out, SIZE, [24, -PAGE])
    out[3] = memory.address
    expect(write()).toBe(1)
    out[3] = memory.address + 8n
    expect(write()).toBe(EFAULT)
    fifo.close()
  })

  it.each([
    ['no descriptor', TypeError, () => native().writer({} as Descriptor, new Uint8Array(8), 8)],
    ['more than the buffer', RangeError, () => native().writer(eventfd(), new Uint8Array(8), 9)],
    [
      'a guard outside',
      RangeError,
      () => native().writer(eventfd(), new Uint8Array(8), 8, [4, -1]),
    ],
  ] as const)('refuses %s', (_, error, make) => {
    expect(make).toThrow(error)
  })
})

describe('guards', () => {
  const ADDRESS_AT = 24
  const LENGTH_AT = 16

  /** A channel that holds two pages, and a message about `[address, address + length)`. */
  function setUp() {
    const { fifo } = loopback()
    const memory = mapped(2 * PAGE)
    expect(native().hold(fifo, memory)).toBe(0)
    const bytes = new BigUint64Array((2 * SIZE) / 8)
    const write = (address: bigint, length: bigint, guards: readonly number[]): number => {
      bytes[ADDRESS_AT / 8] = address
      bytes[LENGTH_AT / 8] = length
      return native().writeMany(fifo, bytes, SIZE, 1, guards)
    }
    return { fifo, memory, bytes, write, start: memory.address }
  }

  it('allow exactly what lies inside of one mapping that is held', () => {
    const { write, start, fifo } = setUp()
    const pair = [ADDRESS_AT, LENGTH_AT]
    const page = BigInt(PAGE)
    expect(write(start, 2n * page, pair)).toBe(1)
    expect(write(start + page, page, pair)).toBe(1)
    expect(write(start + 2n * page - 1n, 1n, pair)).toBe(1)
    expect(write(start - 1n, 2n, pair)).toBe(EFAULT)
    expect(write(start, 2n * page + 1n, pair)).toBe(EFAULT)
    expect(write(start + page, page + 1n, pair)).toBe(EFAULT)
    expect(write(start + 2n * page, 1n, pair)).toBe(EFAULT)
    fifo.close()
  })

  it('refuse a length of 0, and lengths that wrap around 2^64', () => {
    const { write, start, fifo } = setUp()
    const pair = [ADDRESS_AT, LENGTH_AT]
    expect(write(start, 0n, pair)).toBe(EFAULT)
    expect(write(start, 2n ** 64n - 1n, pair)).toBe(EFAULT)
    expect(write(start + 1n, 2n ** 64n - 1n, pair)).toBe(EFAULT)
    expect(write(2n ** 64n - 1n, 2n ** 64n - 1n, pair)).toBe(EFAULT)
    expect(write(0n, start + 1n, pair)).toBe(EFAULT)
    expect(write(2n ** 64n - 1n, start + 2n, pair)).toBe(EFAULT)
    fifo.close()
  })

  it('take a negative place as the length itself', () => {
    const { write, start, fifo } = setUp()
    expect(write(start, 0n, [ADDRESS_AT, -2 * PAGE])).toBe(1)
    expect(write(start, 0n, [ADDRESS_AT, -2 * PAGE - 1])).toBe(EFAULT)
    expect(write(start, 0n, [ADDRESS_AT, -Number.MAX_SAFE_INTEGER])).toBe(EFAULT)
    fifo.close()
  })

  it('must all agree', () => {
    const { write, start, fifo } = setUp()
    expect(write(start, 8n, [ADDRESS_AT, LENGTH_AT, ADDRESS_AT, -8])).toBe(1)
    expect(write(start, 8n, [ADDRESS_AT, LENGTH_AT, LENGTH_AT, -8])).toBe(EFAULT)
    fifo.close()
  })

  it('are checked on every message before the first is written', () => {
    const { fifo, bytes, start } = setUp()
    const second = SIZE / 8
    bytes[ADDRESS_AT / 8] = start
    bytes[second + ADDRESS_AT / 8] = start - 8n
    expect(native().writeMany(fifo, bytes, SIZE, 2, [ADDRESS_AT, -8])).toBe(EFAULT)
    expect(native().readMany(fifo, new Uint8Array(SIZE), SIZE)).toBe(EAGAIN)
    bytes[second + ADDRESS_AT / 8] = start + 8n
    expect(native().writeMany(fifo, bytes, SIZE, 2, [ADDRESS_AT, -8])).toBe(2)
    fifo.close()
  })

  it('do not see memory that another descriptor holds, or that is not held', () => {
    const { fifo, start } = setUp()
    const other = eventfd()
    const message = new BigUint64Array([start])
    expect(native().writeMany(other, message, 8, 1, [0, -1])).toBe(EFAULT)
    fifo.close()
    other.close()
  })

  it('do not join neighbouring mappings', () => {
    const { fifo } = loopback()
    const maps = [mapped(), mapped(), mapped()].sort((a, b) => (a.address < b.address ? -1 : 1))
    for (const memory of maps) native().hold(fifo, memory)
    for (const { address } of maps) {
      const message = new BigUint64Array([address])
      expect(native().writeMany(fifo, message, 8, 1, [0, -PAGE])).toBe(1)
      expect(native().writeMany(fifo, message, 8, 1, [0, -PAGE - 1])).toBe(EFAULT)
    }
    fifo.close()
  })

  it('still allow memory whose view is closed, as long as it is held', () => {
    const { write, start, memory, fifo } = setUp()
    memory.close()
    expect(write(start, 8n, [ADDRESS_AT, LENGTH_AT])).toBe(1)
    fifo.close()
  })

  it('guard ioctl likewise, before the kernel sees the request', () => {
    const RNDGETENTCNT = 0x80045200
    const random = made(native().open('/dev/urandom', 0))
    const memory = mapped()
    const argument = new BigUint64Array([memory.address, 0n])
    expect(native().ioctl(random, RNDGETENTCNT, argument, 16, [0, -8])).toBe(EFAULT)
    expect(argument[0]).toBe(memory.address)
    native().hold(random, memory)
    expect(native().ioctl(random, RNDGETENTCNT, argument, 16, [0, -8])).toBe(0)
    random.close()
  })

  it('outside of the message are RangeErrors', () => {
    const { write, fifo } = setUp()
    for (const guards of [
      [SIZE - 7, -1],
      [SIZE, -1],
      [0, SIZE - 7],
      [-1, -1],
      [2 ** 32, -1],
    ]) {
      expect(() => write(0n, 0n, guards)).toThrow(RangeError)
    }
    expect(() => write(0n, 0n, [0])).toThrow(RangeError)
    expect(() => native().ioctl(fifo, 0xaf01, 0, undefined, [0, -1])).toThrow(RangeError)
    expect(write(0n, 0n, [SIZE - 8, -1])).toBe(EFAULT)
    fifo.close()
  })

  it('that change their ground while they are read find it gone', () => {
    const { fifo } = setUp()
    const bytes = new Uint8Array(SIZE)
    const guards = Object.defineProperty([0, -1], 1, {
      get: () => {
        structuredClone(bytes.buffer, { transfer: [bytes.buffer] })
        return -1
      },
    })
    expect(() => native().writeMany(fifo, bytes, SIZE, 1, guards)).toThrow(RangeError)
    fifo.close()
  })
})

describe('buffers', () => {
  it('that were transferred have no bytes', () => {
    const event = eventfd(1)
    const buffer = new Uint8Array(8)
    structuredClone(buffer.buffer, { transfer: [buffer.buffer] })
    expect(() => native().readMany(event, buffer, 8)).toThrow(RangeError)
    expect(() => native().read(event, buffer, 0, 8)).toThrow(RangeError)
    expect(() => native().ioctl(event, 0x8008af00, buffer)).toThrow(RangeError)
    event.close()
  })

  it('of a closed mapping have no bytes', () => {
    const event = eventfd(1)
    const memory = mapped()
    const buffer = new Uint8Array(memory.buffer)
    memory.close()
    expect(() => native().read(event, buffer, 0, 8)).toThrow(RangeError)
    event.close()
  })

  it('that shrank below the view have no bytes', () => {
    const event = eventfd(1)
    const Resizable = ArrayBuffer as unknown as new (
      length: number,
      options: { maxByteLength: number },
    ) => ArrayBuffer & { resize(length: number): void }
    const buffer = new Resizable(64, { maxByteLength: 64 })
    const views = [new DataView(buffer, 32, 16), new Uint32Array(buffer, 32, 4)]
    buffer.resize(33)
    for (const view of views) {
      expect(() => native().readMany(event, view, 8)).toThrow(RangeError)
    }
    event.close()
  })

  it('may be any view, shared memory and mappings included', () => {
    const memory = mapped()
    const views = [
      new DataView(new ArrayBuffer(16), 8, 8),
      new Float64Array(1),
      new BigInt64Array(1),
      new Uint16Array(new SharedArrayBuffer(8)),
      Buffer.alloc(8),
      new Uint8Array(memory.buffer, 100, 8),
    ]
    for (const view of views) {
      const event = eventfd(0x0102)
      expect(native().readMany(event, view, 8)).toBe(1)
      const { buffer, byteOffset } = view
      expect(new Uint8Array(buffer, byteOffset, 2)).toEqual(new Uint8Array([2, 1]))
      event.close()
    }
  })

  it('read and write use the offset', () => {
    const { path, fifo } = loopback()
    const buffer = new Uint8Array([0, 1, 2, 3, 4])
    expect(native().write(fifo, buffer, 2, 2)).toBe(2)
    expect(native().read(fifo, buffer, 0, 5)).toBe(2)
    expect([...buffer]).toEqual([2, 3, 2, 3, 4])
    expect(native().write(fifo, new Uint8Array(0), 0, 0)).toBe(0)
    const other = openSync(path, 'w')
    writeSync(other, 'x')
    closeSync(other)
    expect(native().read(fifo, buffer, 4, 1)).toBe(1)
    expect(buffer[4]).toBe(0x78)
    fifo.close()
  })
})

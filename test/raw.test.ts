import { afterEach, describe, expect, it } from 'vitest'
import { SystemError } from '../lib/errors'
import { raw } from '../lib/raw'
import { cleanUp, isMapped, loopback, until } from './native/support'

const SIZE = 72
const O_RDWR = 2
const RNDGETENTCNT = 0x80045200

afterEach(cleanUp)

/** What `call` throws, which must be a SystemError. */
function refusal(call: () => unknown): SystemError {
  try {
    call()
  } catch (error) {
    if (error instanceof SystemError) return error
    throw error
  }
  throw new Error('was not refused')
}

describe('a refusal of the host', () => {
  it('is a SystemError with code, errno, syscall and path, as those of Node', () => {
    expect(refusal(() => raw.open('/nowhere/at/all', O_RDWR))).toMatchObject({
      code: 'ENOENT',
      errno: -2,
      syscall: 'open',
      path: '/nowhere/at/all',
      message: "ENOENT: no such file or directory, open '/nowhere/at/all'",
    })
  })

  it('of an ioctl names the request', () => {
    const event = raw.eventfd()
    const error = refusal(() => raw.ioctl(event, 0xaf01))
    expect(error).toMatchObject({ code: 'ENOTTY', syscall: 'ioctl' })
    expect(error.message).toContain('request 0xaf01')
    raw.close(event)
  })

  it('names the call, for each of them', () => {
    const closed = raw.eventfd()
    raw.close(closed)
    const buffer = new Uint8Array(SIZE)
    const memory = raw.mapMemory(4096)
    const calls: readonly [string, () => unknown][] = [
      ['read', () => raw.readMany(closed, buffer, SIZE)],
      ['write', () => raw.writeMany(closed, buffer, SIZE)],
      [
        'hold',
        () => {
          raw.hold(closed, memory)
        },
      ],
      ['poll', () => raw.poll(closed, () => undefined)],
      ['ioctl', () => raw.ioctl(closed, RNDGETENTCNT, buffer)],
    ]
    for (const [syscall, call] of calls) {
      expect(refusal(call)).toMatchObject({ code: 'EBADF', errno: -9, syscall })
    }
    expect(refusal(() => raw.socket(999, 1))).toMatchObject({ syscall: 'socket' })
    expect(refusal(() => raw.mapMemory(2 ** 52))).toMatchObject({ code: 'ENOMEM', syscall: 'mmap' })
    raw.close(memory)
  })
})

describe('raw', () => {
  it('writes and reads messages', () => {
    const { fifo } = loopback()
    const buffer = new Uint8Array(3 * SIZE)
    expect(raw.readMany(fifo, buffer, SIZE)).toBe(0)
    expect(raw.writeMany(fifo, new Uint8Array(2 * SIZE + 5).fill(1), SIZE)).toBe(2)
    expect(raw.writeMany(fifo, new Uint8Array(2 * SIZE).fill(2), SIZE, 1)).toBe(1)
    expect(raw.readMany(fifo, buffer, SIZE)).toBe(3)
    expect([buffer[0], buffer[2 * SIZE - 1], buffer[2 * SIZE]]).toEqual([1, 1, 2])
    raw.close(fifo)
  })

  it('answers 0 where a write would have to wait', () => {
    const event = raw.eventfd(1)
    expect(raw.writeMany(event, new BigUint64Array([2n ** 64n - 2n]), 8)).toBe(0)
    raw.close(event)
  })

  it('gives back what an ioctl wrote and returned', () => {
    const random = raw.open('/dev/urandom', 0)
    const entropy = new Int32Array([-1])
    expect(raw.ioctl(random, RNDGETENTCNT, entropy)).toBe(0)
    expect(entropy[0]).toBeGreaterThanOrEqual(0)
    raw.close(random)
  })

  it('maps memory, which a holder keeps in place', async () => {
    const memory = raw.mapMemory(8192)
    const event = raw.eventfd()
    expect(memory.buffer.byteLength).toBe(8192)
    raw.hold(event, memory)
    raw.close(memory)
    expect(isMapped(memory.address)).toBe(true)
    raw.close(event)
    await until(() => !isMapped(memory.address))
  })

  it('polls: events without a buffer, batches with one, and errors as SystemErrors', async () => {
    const { fifo } = loopback()
    const counts: number[] = []
    const errors: (string | undefined)[] = []
    const memory = raw.mapMemory(4096)
    const note = (error: SystemError | undefined, count: number): void => {
      counts.push(count)
      errors.push(error?.code)
    }

    const events = raw.poll(fifo, (error, count) => {
      note(error, count)
      raw.close(events)
    })
    raw.writeMany(fifo, new Uint8Array(2 * SIZE), SIZE)
    await until(() => counts.length === 1)

    raw.poll(fifo, note, {
      buffer: new Uint8Array(memory.buffer),
      size: SIZE,
      busyMicroseconds: 10,
    })
    await until(() => counts.length === 2)
    raw.close(memory)
    raw.writeMany(fifo, new Uint8Array(SIZE), SIZE)
    await until(() => counts.length === 3)
    expect(counts).toEqual([1, 2, 0])
    expect(errors).toEqual([undefined, undefined, 'EFAULT'])
    raw.close(fifo)
  })
})

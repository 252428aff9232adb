/** K10: one message per write, whole messages per read, no batches, and no size of 2^64. */
import { describe, expect, test } from 'vitest'
import { native } from '../../lib/native'
import { encodeMessage } from '../../lib/vhost/uapi'
import { BUFFERS, BUFFERS_GPA, Bench, PAGE, TX } from '../support/bench'
import { frame } from '../support/frames'

const EINVAL = -22
const EFAULT = -14
const EAGAIN = -11

describe('read', () => {
  test('into fewer than 72 bytes answers 0, as at an end, and leaves the message', () => {
    using bench = new Bench()
    const ring = bench.ring(TX)
    ring.tryStart()
    const buffer = new Uint8Array(200)
    const { descriptor } = bench.device
    expect(native().read(descriptor, buffer, 0, 71)).toBe(0)
    expect(native().read(descriptor, buffer, 0, 200)).toBe(72)
    expect(native().read(descriptor, buffer, 0, 72)).toBe(EAGAIN)
    expect(native().read(descriptor, buffer, 0, 0)).toBe(0)
  })

  test('gives one message, however large the buffer', () => {
    using bench = new Bench()
    const ring = bench.ring(TX)
    for (let i = 0; i < 3; i++) ring.tryStart()
    const buffer = new Uint8Array(4096)
    expect(native().read(bench.device.descriptor, buffer, 0, 4096)).toBe(72)
    expect(bench.questions()).toHaveLength(2)
  })

  test('sizes and host addresses of a question are zero, and its tail is', () => {
    using bench = new Bench()
    const ring = bench.ring(TX)
    ring.tryStart()
    const buffer = new Uint8Array(72).fill(0xaa)
    native().read(bench.device.descriptor, buffer, 0, 72)
    const { messageVersion: version } = bench.device
    expect(buffer).toEqual(encodeMessage({ version, type: 1, iova: ring.used, perm: 1 }))
  })
})

describe('write', () => {
  test('of two messages processes one, and says 72', () => {
    using bench = new Bench()
    const ring = bench.runningRing(TX)
    const update = (page: number): Uint8Array =>
      encodeMessage({
        version: bench.device.messageVersion,
        type: 2,
        iova: BUFFERS + BigInt(page * PAGE),
        size: BigInt(PAGE),
        uaddr: bench.memory.hva(BUFFERS_GPA + page * PAGE),
        perm: 1,
      })
    const both = new Uint8Array(144)
    both.set(update(0))
    both.set(update(1), 72)
    expect(native().write(bench.device.descriptor, both, 0, 144)).toBe(72)
    ring.send(0, frame(0, 60))
    ring.send(1, frame(1, 60))
    ring.kick()
    expect(ring.completed).toBe(1)
    expect(bench.questions()).toEqual([{ iova: BUFFERS + BigInt(PAGE), access: 1 }])
  })

  test('of fewer than 40 bytes is refused, of 40 or more says 72', () => {
    using bench = new Bench()
    const message = { type: 3, iova: BUFFERS, size: 4096n }
    expect(bench.write(message, 39)).toBe(EINVAL)
    expect(bench.write(message, 40)).toBe(72)
    expect(bench.write(message, 72)).toBe(72)
  })

  test('of a batch, or of anything but UPDATE and INVALIDATE, is refused', () => {
    using bench = new Bench()
    for (const type of [0, 1, 4, 5, 6, 7]) expect(bench.write({ type }), `${type}`).toBe(EFAULT)
  })

  test('of both message versions is taken, whatever was negotiated', () => {
    using bench = new Bench()
    for (const version of [1, 2]) {
      expect(bench.write({ version, type: 3, iova: BUFFERS, size: 4096n })).toBe(72)
    }
    for (const version of [0, 3]) {
      expect(bench.write({ version, type: 3, iova: BUFFERS, size: 4096n })).toBe(EINVAL)
    }
  })
})

describe('a whole address space', () => {
  test('cannot be granted: a size of zero is refused', () => {
    using bench = new Bench()
    expect(bench.update(0n, 0, BUFFERS_GPA, 'read')).toBe(EINVAL)
  })

  test('is taken back in two halves, on every kernel', () => {
    using bench = new Bench()
    const ring = bench.runningRing(TX)
    bench.mapBuffers(0, 1, 'read')
    bench.channel.invalidatePages(0, 2 ** 52 - 1)
    ring.send(0, frame(0, 60))
    ring.kick()
    expect(bench.questions()).toEqual([{ iova: ring.desc, access: 1 }])
    ring.mapAgain()
    expect(bench.questions()).toEqual([{ iova: BUFFERS, access: 1 }])
  })

  // Accepted by some kernels (6.1.61, 6.6) and refused by others (5.17, 7.3): never relied on.
  test('as a size of zero means everything, or is refused', () => {
    using bench = new Bench()
    const ring = bench.runningRing(TX)
    const result = bench.invalidate(0n, 0)
    expect([72, EINVAL]).toContain(result)
    ring.push(BUFFERS, 72)
    ring.kick()
    const [question] = bench.questions()
    expect(question.iova).toBe(result === 72 ? ring.desc : BUFFERS)
  })

  test('the last page can be granted and taken back', () => {
    using bench = new Bench()
    const last = 2n ** 64n - 4096n
    expect(bench.update(last, 4096, BUFFERS_GPA, 'read')).toBe(72)
    expect(bench.update(last, 4097, BUFFERS_GPA, 'read')).toBe(EFAULT)
    expect(bench.invalidate(last, 4096)).toBe(72)
  })
})

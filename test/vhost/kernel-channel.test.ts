import { execFileSync } from 'node:child_process'
import { closeSync, constants, mkdtempSync, openSync, readSync, rmSync, writeSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setImmediate as turn } from 'node:timers/promises'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { iova } from '../../lib/address'
import type { Hva } from '../../lib/address'
import { GuestMemory } from '../../lib/memory/guest-memory'
import { native } from '../../lib/native'
import type { Descriptor } from '../../lib/native'
import { KernelChannel } from '../../lib/vhost/kernel-channel'
import { MESSAGE_BYTES, decodeMessage, encodeMessage } from '../../lib/vhost/uapi'
import type { VhostMessage } from '../../lib/vhost/uapi'

/**
 * The kernel's side is a named pipe: what the test writes, the channel reads as misses; what the
 * channel writes, the test reads. It has no rules of its own; those are the conformance tests'.
 */
let folder: string
let pipe: Descriptor
let fd: number
let memory: GuestMemory
let pin: Disposable
let channel: KernelChannel

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'channel-'))
  const path = join(folder, 'vhost')
  execFileSync('mkfifo', [path])
  const opened = native().open(path, constants.O_RDWR | constants.O_NONBLOCK)
  if (typeof opened === 'number') throw new Error(`open: ${opened}`)
  pipe = opened
  fd = openSync(path, constants.O_RDWR | constants.O_NONBLOCK)
  memory = GuestMemory.allocate(1024 * 1024)
  pin = memory.pin({}, pipe)
  channel = new KernelChannel({ descriptor: pipe, version: 2, limit: 16 })
})

afterEach(() => {
  channel.close()
  pin[Symbol.dispose]()
  pipe.close()
  closeSync(fd)
  memory.close()
  rmSync(folder, { recursive: true })
})

const hvaPage = (): number => Number(memory.regions[0].hva >> 12n)

function ask(...pages: readonly number[]): void {
  for (const page of pages) {
    writeSync(fd, encodeMessage({ type: 1, iova: (BigInt(page) << 12n) + 5n, perm: 2 }))
  }
}

function written(): VhostMessage[] {
  const messages: VhostMessage[] = []
  for (;;) {
    const bytes = new Uint8Array(MESSAGE_BYTES)
    try {
      readSync(fd, bytes)
    } catch {
      return messages
    }
    messages.push(decodeMessage(bytes))
  }
}

/** `count` turns of the loop, which is when a poller speaks. */
async function turns(count = 3): Promise<void> {
  for (let i = 0; i < count; i++) await turn()
}

describe('drain', () => {
  test('gives what is pending, in its order, and nothing when there is none', () => {
    expect(channel.drain()).toHaveLength(0)
    ask(7, 2 ** 52 - 1)
    const misses = channel.drain()
    expect(misses.map(({ page, offset, access }) => [page, offset, access])).toEqual([
      [7, 5, 2],
      [2 ** 52 - 1, 5, 2],
    ])
    expect(channel.drain()).toHaveLength(0)
  })

  test('gives at most 64 at a time, always in the same objects', () => {
    ask(...Array.from({ length: 150 }, (_, i) => i))
    const first = channel.drain()
    const [object] = first
    expect(first).toHaveLength(64)
    expect(channel.drain()).toBe(first)
    expect(object.page).toBe(64)
    expect(channel.drain().map(({ page }) => page)).toEqual(
      Array.from({ length: 22 }, (_, i) => 128 + i),
    )
    expect(channel.drain()).toHaveLength(0)
  })

  test('counts and skips messages of another type, and does not stop at them', () => {
    for (let i = 0; i < 70; i++) writeSync(fd, encodeMessage({ type: 4, iova: 1n }))
    ask(9)
    expect(channel.drain().map(({ page }) => page)).toEqual([9])
    expect(channel.unknownMessages).toBe(70)
  })

  test('discard drops what is pending', () => {
    ask(1, 2, 3)
    expect(channel.discard()).toBe(3)
    expect(channel.drain()).toHaveLength(0)
  })
})

describe('onReadable', () => {
  test('calls when there are misses, which drain then gives without another read', async () => {
    const seen: number[] = []
    const subscription = channel.onReadable(() => {
      for (let misses = channel.drain(); misses.length > 0; misses = channel.drain()) {
        seen.push(...misses.map(({ page }) => page))
      }
    })
    await turns()
    expect(seen).toEqual([])
    ask(...Array.from({ length: 100 }, (_, i) => i))
    await turns()
    expect(seen).toEqual(Array.from({ length: 100 }, (_, i) => i))
    subscription[Symbol.dispose]()
  })

  test('calls again for what was left', async () => {
    let calls = 0
    const seen: number[] = []
    const subscription = channel.onReadable(() => {
      calls++
      if (calls > 2) seen.push(...channel.drain().map(({ page }) => page))
    })
    ask(1, 2)
    await turns(6)
    expect(seen).toEqual([1, 2])
    subscription[Symbol.dispose]()
  })

  test('is quiet once disposed, and what was read before is not lost', async () => {
    const subscription = channel.onReadable(() => {
      subscription[Symbol.dispose]()
    })
    ask(5)
    await turns()
    ask(6)
    await turns()
    expect(channel.drain().map(({ page }) => page)).toEqual([5])
    expect(channel.drain().map(({ page }) => page)).toEqual([6])
  })
})

describe('what is written', () => {
  test('an UPDATE is one message', () => {
    channel.updatePages(0x1000, 0x1001, hvaPage() + 3, 3)
    expect(written()).toEqual([
      {
        version: 2,
        asid: 0,
        type: 2,
        iova: 0x1000000n,
        size: 0x2000n,
        uaddr: memory.regions[0].hva + 0x3000n,
        perm: 3,
      },
    ])
  })

  test('version 1 where the kernel knows no other', () => {
    const old = new KernelChannel({ descriptor: pipe, version: 1, limit: 16 })
    old.invalidatePages(1, 1)
    expect(written()).toMatchObject([
      { version: 1, asid: 0, type: 3, iova: 0x1000n, size: 0x1000n },
    ])
  })

  test.each([
    ['before the memory', -1, 1],
    ['behind it', 256, 1],
    ['over its end', 255, 2],
    ['over its beginning', -1, 257],
  ])('no address %s reaches the kernel', (_, at, pages) => {
    const page = hvaPage() + at
    expect(() => {
      channel.updatePages(0, pages - 1, page, 3)
    }).toThrow(/EFAULT/)
    expect(written()).toEqual([])
  })

  test('the last page of memory is in memory', () => {
    channel.updatePages(0, 255, hvaPage(), 1)
    expect(written()).toHaveLength(1)
  })

  // K10: a size of 2^64 is 0 on the wire, and some kernels refuse it.
  test('everything is invalidated in two halves', () => {
    channel.invalidate({ first: iova(0), last: iova(2n ** 64n - 1n) })
    expect(written().map(({ iova, size }) => [iova, size])).toEqual([
      [0n, 1n << 63n],
      [1n << 63n, 1n << 63n],
    ])
  })

  test('ranges that stay in one half are one message', () => {
    channel.invalidatePages(0, 2 ** 51 - 1)
    channel.invalidatePages(2 ** 51, 2 ** 52 - 1)
    expect(written()).toHaveLength(2)
  })

  test('a byte is invalidated by its page', () => {
    channel.invalidate({ first: iova(0x1fff), last: iova(0x2000) })
    expect(written()).toMatchObject([{ iova: 0x1000n, size: 0x2000n }])
  })

  test('a device without an IOTLB holds nothing: there is nothing to take back', () => {
    channel.enabled = false
    channel.invalidatePages(0, 10)
    expect(written()).toEqual([])
  })

  test.each([
    ['an iova that is not page aligned', 0x1001n, 0x1fffn, 0n],
    ['an end that is not', 0x1000n, 0x1ffen, 0n],
    ['a host address that is not', 0x1000n, 0x1fffn, 8n],
    ['an end before the beginning', 0x3000n, 0x1fffn, 0n],
  ])('refuses %s', (_, first, last, hva) => {
    const range = { first: iova(first), last: iova(last) }
    expect(() => {
      channel.update(range, hva as Hva, 'read')
    }).toThrow(RangeError)
    expect(written()).toEqual([])
  })

  test.each([
    [-1, 0],
    [1, 0],
    [0, 2 ** 52],
    [Number.NaN, 1],
  ])('refuses the pages %d to %d', (first, last) => {
    expect(() => {
      channel.invalidatePages(first, last)
    }).toThrow(RangeError)
    expect(() => {
      channel.updatePages(first, last, hvaPage(), 1)
    }).toThrow(RangeError)
  })
})

test('a closed channel takes no listener', () => {
  channel.close()
  expect(() => channel.onReadable(() => undefined)).toThrow(/ERR_CLOSED|closed/)
})

test('the end of the device goes to who asked for errors, and is no exception then', async () => {
  const path = join(folder, 'ending')
  execFileSync('mkfifo', [path])
  const reading = native().open(path, constants.O_RDONLY | constants.O_NONBLOCK)
  if (typeof reading === 'number') throw new Error(`open: ${reading}`)
  const writer = openSync(path, constants.O_WRONLY | constants.O_NONBLOCK)
  const errors: Error[] = []
  const ending = new KernelChannel({
    ...{ descriptor: reading, version: 2, limit: 16 },
    onError: (error) => errors.push(error),
  })
  ending.onReadable(() => ending.drain())
  closeSync(writer)
  for (let i = 0; i < 1000 && errors.length === 0; i++) await turn()
  expect(errors).toMatchObject([{ code: 'ENODATA', syscall: 'read' }])
  ending.close()
  reading.close()
})

describe('in a batch that native has read to its end', () => {
  test('a drain reads nothing more: the poll tells of what came since', async () => {
    const drained: number[][] = []
    channel.onReadable(() => {
      const pages = channel.drain().map(({ page }) => page)
      if (pages[0] === 1) ask(2)
      drained.push(
        pages,
        [...channel.drain()].map(({ page }) => page),
      )
    })
    ask(1)
    await turns(6)
    expect(drained).toEqual([[1], [], [2], []])
  })

  test('a discard reads all the same', async () => {
    const discarded: number[] = []
    channel.onReadable(() => {
      ask(2, 3)
      discarded.push(channel.discard())
    })
    ask(1)
    await turns(6)
    expect(discarded).toEqual([3])
  })

  test('a drain outside of it reads again, also after a listener that threw', async () => {
    const thrown = new Promise((resolve) => process.once('uncaughtException', resolve))
    const listeners = process.listeners('uncaughtException').slice(0, -1)
    for (const listener of listeners) process.off('uncaughtException', listener)
    channel.onReadable(() => {
      channel.drain()
      throw new Error('meant')
    })
    ask(1)
    await thrown
    for (const listener of listeners) process.on('uncaughtException', listener)
    ask(2)
    expect(channel.drain().map(({ page }) => page)).toEqual([2])
  })
})

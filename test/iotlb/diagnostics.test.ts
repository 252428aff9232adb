import { subscribe, unsubscribe } from 'node:diagnostics_channel'
import { afterEach, describe, expect, it } from 'vitest'
import type { IotlbChannel } from '../../lib/iotlb/channel'
import { Miss } from '../../lib/iotlb/channel'
import { observed } from '../../lib/iotlb/diagnostics'
import { FakeVhost } from '../../lib/testing/fake-channel'
import { byte } from './support'

const SOURCE = { requester: 0x18, pair: 1 }
const subscribed: [string, (message: unknown) => void][] = []

function listen(...names: readonly string[]): unknown[] {
  const heard: unknown[] = []
  for (const name of names) {
    const listener = (message: unknown): void => void heard.push({ [name]: message })
    subscribe(`vhost-iotlb:${name}`, listener)
    subscribed.push([`vhost-iotlb:${name}`, listener])
  }
  return heard
}

afterEach(() => {
  for (const [name, listener] of subscribed.splice(0)) unsubscribe(name, listener)
})

function traffic(channel: IotlbChannel, vhost: FakeVhost): void {
  vhost.access(byte(5, 0x10), 'write')
  channel.drain()
  channel.updatePages(5, 6, 0x7000, 3)
  channel.invalidatePages(5, 5)
}

describe('diagnostics', () => {
  it('tell of messages both ways in the words of the callers', () => {
    const heard = listen('miss', 'update', 'invalidate')
    const vhost = new FakeVhost()
    traffic(observed(vhost, SOURCE), vhost)
    expect(heard).toEqual([
      { miss: { ...SOURCE, iova: byte(5, 0x10), wanted: 'write' } },
      {
        update: {
          ...SOURCE,
          iova: { first: byte(5), last: byte(7) - 1n },
          ...{ hva: byte(0x7000), access: 'readwrite' },
        },
      },
      {
        invalidate: {
          ...SOURCE,
          iova: { first: byte(5), last: byte(6) - 1n },
          microseconds: expect.any(Number) as number,
        },
      },
    ])
  })

  it('tell of the callers that name ranges too', () => {
    const heard = listen('update', 'invalidate')
    const channel = observed(new FakeVhost(), SOURCE)
    const range = { first: byte(5), last: byte(6) - 1n } as Parameters<IotlbChannel['update']>[0]
    channel.update(range, byte(9) as Parameters<IotlbChannel['update']>[1], 'read')
    channel.invalidate(range)
    expect(heard).toMatchObject([
      { update: { iova: range, hva: byte(9), access: 'read' } },
      { invalidate: { iova: range } },
    ])
  })

  it('do not tell of what was refused', () => {
    const heard = listen('update', 'invalidate')
    const channel = observed(new FakeVhost(), SOURCE)
    expect(() => {
      channel.invalidatePages(0, 2 ** 52 - 1)
    }).toThrow('EINVAL')
    expect(() => {
      channel.updatePages(2, 1, 0, 1)
    }).toThrow(RangeError)
    expect(heard).toEqual([])
  })

  it('allocate nothing while nobody listens', () => {
    const misses = [new Miss()]
    let messages = 0
    const channel = observed(
      {
        limit: 1,
        drain: () => misses,
        update: () => undefined,
        invalidate: () => undefined,
        updatePages: () => {
          messages++
        },
        invalidatePages: () => {
          messages++
        },
        onReadable: () => ({ [Symbol.dispose]: () => undefined }),
      },
      SOURCE,
    )
    const run = (times: number): void => {
      for (let i = 0; i < times; i++) {
        channel.drain()
        channel.updatePages(5, 6, 0x7000, 3)
        channel.invalidatePages(5, 6)
      }
    }
    run(20_000)
    // A collection in between would hide what was allocated, so that the most of some runs counts.
    const grown = Array.from({ length: 5 }, () => {
      const before = process.memoryUsage().heapUsed
      run(20_000)
      return process.memoryUsage().heapUsed - before
    })
    expect(messages).toBe(240_000)
    // One object a message would be a megabyte or more.
    expect(grown.sort((a, b) => a - b)[2]).toBeLessThan(200_000)
  })
})

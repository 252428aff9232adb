import { describe, expect, it } from 'vitest'
import { READ, READWRITE } from '../../lib/address'
import { byte, hvaOf, loop } from './support'

describe('a miss', () => {
  it('is answered with the whole translation and all its permission, not with what it asked', () => {
    const { vhost, space, handler } = loop()
    space.mapPages(4, 7, 100, READWRITE)
    const access = vhost.access(byte(5, 12), 'read')
    vhost.settle()
    expect([access.state, access.hva]).toEqual(['done', hvaOf(101, 12)])
    expect(vhost.entries).toEqual([
      { iova: { first: byte(4), last: byte(8) - 1n }, hva: hvaOf(100), access: 'readwrite' },
    ])
    expect(handler.shadow.snapshot()).toEqual(vhost.entries)
  })

  it('and its invalidation', () => {
    const { vhost, space } = loop()
    space.mapPages(4, 7, 100, READ)
    vhost.access(byte(5, 12), 'read')
    vhost.settle()
    space.unmapPages(5, 5)
    space.invalidatePages(5, 5)
    expect(vhost.entries).toEqual([])
    const access = vhost.access(byte(5), 'read')
    vhost.settle()
    expect(access.state).toBe('waiting')
    space.mapPages(5, 5, 7, READ)
    space.invalidatePages(5, 5)
    expect(access.state).toBe('done')
  })
})

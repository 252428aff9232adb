import { describe, expect, it } from 'vitest'
import { NetHeader, featureNames, features, hasFeature, writeNetHeader } from '../../lib/virtio/net'

describe('feature bits', () => {
  it('have the numbers of linux/virtio_config.h and linux/virtio_net.h', () => {
    expect(features('VIRTIO_F_ACCESS_PLATFORM', 'VIRTIO_F_VERSION_1')).toBe(0x300000000n)
    expect(features('VIRTIO_NET_F_MRG_RXBUF')).toBe(0x8000n)
    expect(hasFeature(0x1033d008000n, 'VIRTIO_F_RING_RESET')).toBe(true)
    expect(hasFeature(0x33d008000n, 'VIRTIO_F_RING_RESET')).toBe(false)
  })

  it('have names, and those without one a number', () => {
    expect(featureNames(features('VIRTIO_F_EVENT_IDX', 'VIRTIO_NET_F_CSUM') | (1n << 50n))).toEqual(
      ['VIRTIO_NET_F_CSUM', 'VIRTIO_F_EVENT_IDX', 'bit 50'],
    )
    expect(featureNames(0n)).toEqual([])
  })
})

describe('virtio_net_hdr', () => {
  it('is 12 zero bytes without offloads', () => {
    const bytes = new Uint8Array(16).fill(0xee)
    writeNetHeader(bytes, 2)
    expect([...bytes]).toEqual([0xee, 0xee, ...new Array<number>(12).fill(0), 0xee, 0xee])
  })

  it('carries segmentation and checksum offload (5.1.6.2)', () => {
    const bytes = new Uint8Array(12)
    writeNetHeader(bytes, 0, {
      checksum: { start: 34, offset: 16 },
      gso: { type: 'tcp4', size: 1448, headerLength: 66, ecn: true },
    })
    expect([...bytes]).toEqual([1, 0x81, 66, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0])
    const header = new NetHeader()
    header.read(bytes, 0)
    expect(header).toMatchObject({
      flags: 1,
      gsoType: 0x81,
      headerLength: 66,
      gsoSize: 1448,
      checksumStart: 34,
      checksumOffset: 16,
      bufferCount: 0,
    })
  })

  it('refuses what 16 bits do not hold', () => {
    for (const start of [-1, 65536, 1.5]) {
      expect(() => {
        writeNetHeader(new Uint8Array(12), 0, { checksum: { start, offset: 0 } })
      }).toThrow(RangeError)
    }
  })
})

/** Frames of up to 64 KiB whose segmentation and checksums are left to the other side. */
import { describe, expect, test } from 'vitest'
import { NetDriver } from '../../lib/guest/net-driver'
import type { NetHeader } from '../../lib/virtio/net'
import { compared, identical } from '../support/frames'
import { Station } from '../support/station'

/** `struct virtio_net_hdr` of the socket: 10 bytes. */
const SOCKET_HEADER = 10
const NEEDS_CSUM = 1
const GSO_TCPV4 = 1
const ETHERNET = 14
const IPV4 = 20
const TCP = 20
const HEADERS = ETHERNET + IPV4 + TCP
const SEGMENT = 1448

/** An IPv4 TCP packet whose checksum is the pseudo header's sum, as a sender leaves it. */
function tcpFrame(payload: number, seed: number): Uint8Array {
  const bytes = new Uint8Array(HEADERS + payload)
  const view = new DataView(bytes.buffer)
  bytes.set([0x02, 0, 0, 0, 0, 2, 0x02, 0, 0, 0, 0, 1])
  view.setUint16(12, 0x0800)
  bytes[ETHERNET] = 0x45
  view.setUint16(ETHERNET + 2, IPV4 + TCP + payload)
  bytes.set([64, 6], ETHERNET + 8)
  bytes.set([192, 0, 2, 1, 192, 0, 2, 2], ETHERNET + 12)
  view.setUint16(ETHERNET + 10, ~sum(bytes.subarray(ETHERNET, ETHERNET + IPV4)) & 0xffff)
  const tcp = ETHERNET + IPV4
  view.setUint16(tcp, 1000)
  view.setUint16(tcp + 2, 2000)
  bytes.set([0x50, 0x10], tcp + 12)
  const pseudo = Uint8Array.of(192, 0, 2, 1, 192, 0, 2, 2, 0, 6, 0, 0)
  new DataView(pseudo.buffer).setUint16(10, TCP + payload)
  view.setUint16(tcp + 16, sum(pseudo))
  for (let i = 0; i < payload; i++) bytes[HEADERS + i] = (seed * 31 + i + (i >> 8)) & 0xff
  return bytes
}

/** RFC 1071. */
function sum(bytes: Uint8Array): number {
  let total = 0
  for (let i = 0; i < bytes.length; i += 2) total += (bytes[i] << 8) | (bytes[i + 1] ?? 0)
  while (total > 0xffff) total = (total & 0xffff) + (total >> 16)
  return total
}

const CHECKSUM = { start: ETHERNET + IPV4, offset: 16 }
const GSO = { type: 'tcp4', size: SEGMENT, headerLength: HEADERS } as const
const LARGEST = 65535 - IPV4 - TCP
/** net/core/dev.c, gso_features_check: a frame of 64 KiB or more is segmented before the tap. */
const LARGEST_FROM_STACK = 65535 - HEADERS

/** A frame as the socket wants it, with its header. */
function offloaded(bytes: Uint8Array): Uint8Array {
  const out = new Uint8Array(SOCKET_HEADER + bytes.length)
  const view = new DataView(out.buffer)
  out.set([NEEDS_CSUM, GSO_TCPV4])
  view.setUint16(2, HEADERS, true)
  view.setUint16(4, SEGMENT, true)
  view.setUint16(6, CHECKSUM.start, true)
  view.setUint16(8, CHECKSUM.offset, true)
  out.set(bytes, SOCKET_HEADER)
  return out
}

const DRIVER = { receiveOffload: true, mergeable: true }

describe.each(['static', 'strict'] as const)('mapping %s', (mapping) => {
  test('64 KiB to the host, unsegmented', async () => {
    const options = { mapping, driver: DRIVER, vnetHeader: true }
    await using station = await Station.open(options)
    const frames = [10_000, 40_000, LARGEST].map(tcpFrame)
    for (const bytes of frames) {
      while (!station.driver.send(bytes, { checksum: CHECKSUM, gso: GSO })) {
        await station.driver.ready(bytes.length)
      }
    }
    const seen = await station.packets.receive(frames.length)
    for (const bytes of seen) {
      const view = new DataView(bytes.buffer)
      expect([bytes[0], bytes[1], view.getUint16(4, true)]).toEqual([
        NEEDS_CSUM,
        GSO_TCPV4,
        SEGMENT,
      ])
    }
    const bodies = seen.map((bytes) => bytes.subarray(SOCKET_HEADER))
    expect(compared(bodies, frames)).toEqual(identical(3))
    expect(station.nic.stats()).toMatchObject({ faults: 0, stalls: 0 })
  })

  test('64 KiB from the host, over many small buffers', async () => {
    const options = { mapping, driver: DRIVER, vnetHeader: true }
    await using station = await Station.open(options)
    const headers: Partial<NetHeader>[] = []
    station.driver.onFrame((_, header) => headers.push({ ...header }))
    const frames = [10_000, 40_000, LARGEST_FROM_STACK].map(tcpFrame)
    await station.packets.send(...frames.map(offloaded))
    expect(compared(await station.receive(frames.length), frames)).toEqual(identical(3))
    expect(headers).toHaveLength(3)
    expect(station.driver.stats()).toMatchObject({ malformed: 0, received: 3 })
    expect(station.nic.stats()).toMatchObject({ faults: 0, stalls: 0 })
  })
})

test('a driver that takes no offloads gets segments instead', async () => {
  await using station = await Station.open({ mapping: 'strict', vnetHeader: true })
  const bytes = tcpFrame(SEGMENT * 4, 1)
  await station.packets.send(offloaded(bytes))
  const segments = await station.receive(4)
  const payload = Buffer.concat(segments.map((segment) => segment.subarray(HEADERS)))
  expect(payload.equals(bytes.subarray(HEADERS))).toBe(true)
  for (const segment of segments) {
    // The sum over pseudo header and segment, its checksum included, is all ones.
    const pseudo = Uint8Array.of(192, 0, 2, 1, 192, 0, 2, 2, 0, 6, 0, 0)
    new DataView(pseudo.buffer).setUint16(10, segment.length - ETHERNET - IPV4)
    const all = Buffer.concat([pseudo, segment.subarray(ETHERNET + IPV4)])
    expect(sum(all)).toBe(0xffff)
  }
})

test('what a driver acknowledges is what the tap is told', async () => {
  await using station = await Station.open({ mapping: 'off', driver: DRIVER })
  expect(station.driver).toBeInstanceOf(NetDriver)
  expect(station.tap.headerBytes).toBe(12)
})

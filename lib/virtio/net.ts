/**
 * What virtio-net puts in front of a frame, and the names of its feature bits
 * (virtio 1.3, 5.1.6 and 5.1.3; the transport's bits: 6).
 */

/** Bit numbers; names as in linux/virtio_net.h and linux/virtio_config.h. */
export const FEATURE = {
  VIRTIO_NET_F_CSUM: 0,
  VIRTIO_NET_F_GUEST_CSUM: 1,
  VIRTIO_NET_F_CTRL_GUEST_OFFLOADS: 2,
  VIRTIO_NET_F_MTU: 3,
  VIRTIO_NET_F_MAC: 5,
  VIRTIO_NET_F_GUEST_TSO4: 7,
  VIRTIO_NET_F_GUEST_TSO6: 8,
  VIRTIO_NET_F_GUEST_ECN: 9,
  VIRTIO_NET_F_GUEST_UFO: 10,
  VIRTIO_NET_F_HOST_TSO4: 11,
  VIRTIO_NET_F_HOST_TSO6: 12,
  VIRTIO_NET_F_HOST_ECN: 13,
  VIRTIO_NET_F_HOST_UFO: 14,
  VIRTIO_NET_F_MRG_RXBUF: 15,
  VIRTIO_NET_F_STATUS: 16,
  VIRTIO_NET_F_CTRL_VQ: 17,
  VIRTIO_NET_F_CTRL_RX: 18,
  VIRTIO_NET_F_CTRL_VLAN: 19,
  VIRTIO_NET_F_GUEST_ANNOUNCE: 21,
  VIRTIO_NET_F_MQ: 22,
  VIRTIO_NET_F_CTRL_MAC_ADDR: 23,
  VIRTIO_F_NOTIFY_ON_EMPTY: 24,
  VHOST_F_LOG_ALL: 26,
  /** VHOST_NET_F_VIRTIO_NET_HDR has the same number: vhost adds and strips the header itself. */
  VIRTIO_F_ANY_LAYOUT: 27,
  VIRTIO_F_INDIRECT_DESC: 28,
  VIRTIO_F_EVENT_IDX: 29,
  VIRTIO_F_VERSION_1: 32,
  VIRTIO_F_ACCESS_PLATFORM: 33,
  VIRTIO_F_RING_PACKED: 34,
  VIRTIO_F_IN_ORDER: 35,
  VIRTIO_F_ORDER_PLATFORM: 36,
  VIRTIO_F_SR_IOV: 37,
  VIRTIO_F_NOTIFICATION_DATA: 38,
  VIRTIO_F_RING_RESET: 40,
  VIRTIO_NET_F_GUEST_USO4: 54,
  VIRTIO_NET_F_GUEST_USO6: 55,
  VIRTIO_NET_F_HOST_USO: 56,
  VIRTIO_NET_F_HASH_REPORT: 57,
  VIRTIO_NET_F_GUEST_HDRLEN: 59,
  VIRTIO_NET_F_RSS: 60,
  VIRTIO_NET_F_STANDBY: 62,
  VIRTIO_NET_F_SPEED_DUPLEX: 63,
} as const

export type Feature = keyof typeof FEATURE

/** The mask of the features named. */
export function features(...names: readonly Feature[]): bigint {
  return names.reduce((mask, name) => mask | (1n << BigInt(FEATURE[name])), 0n)
}

export function hasFeature(mask: bigint, name: Feature): boolean {
  return ((mask >> BigInt(FEATURE[name])) & 1n) === 1n
}

/** The names of the bits set, lowest first; `bit 63` and the like for those without one. */
export function featureNames(mask: bigint): readonly string[] {
  const named = new Map<number, string>(Object.entries(FEATURE).map(([name, bit]) => [bit, name]))
  const names: string[] = []
  for (let bit = 0; mask >> BigInt(bit) !== 0n; bit++) {
    if (((mask >> BigInt(bit)) & 1n) === 1n) names.push(named.get(bit) ?? `bit ${bit}`)
  }
  return names
}

/** `struct virtio_net_hdr_v1`, byte offsets, little endian (virtio 1.3, 5.1.6). */
export const NET_HEADER = {
  flags: 0,
  gsoType: 1,
  headerLength: 2,
  gsoSize: 4,
  checksumStart: 6,
  checksumOffset: 8,
  bufferCount: 10,
} as const

/** Bytes of the header with MRG_RXBUF or VERSION_1. */
export const NET_HEADER_BYTES = 12

export const VIRTIO_NET_HDR_F_NEEDS_CSUM = 1
export const VIRTIO_NET_HDR_F_DATA_VALID = 2

/** `gso_type`; ECN is a bit beside them. */
export const GSO_TYPE = { none: 0, tcp4: 1, udp: 3, tcp6: 4, 'udp-l4': 5 } as const
export const VIRTIO_NET_HDR_GSO_ECN = 0x80

export type GsoType = keyof typeof GSO_TYPE

/** The largest packet that segmentation offload makes, with the Ethernet header. */
export const MAX_FRAME_BYTES = 65535 + 14 + 4

/** What a sender leaves to the device. */
export interface Offload {
  /** The device computes the 16-bit ones' complement sum from `start` and stores it at
   * `start + offset`; both in bytes, `start` from the beginning of the frame. */
  readonly checksum?: { readonly start: number; readonly offset: number }
  readonly gso?: {
    readonly type: Exclude<GsoType, 'none'>
    /** Payload bytes of each segment. */
    readonly size: number
    /** Bytes of the headers that each segment repeats. */
    readonly headerLength: number
    readonly ecn?: boolean
  }
}

/** The header of a received frame; the same object for each frame. */
export class NetHeader {
  flags = 0
  gsoType = 0
  headerLength = 0
  gsoSize = 0
  checksumStart = 0
  checksumOffset = 0
  bufferCount = 0

  /** Reads the header at a byte of guest memory; each field once. */
  read(u8: Uint8Array, at: number): void {
    this.flags = u8[at + NET_HEADER.flags]
    this.gsoType = u8[at + NET_HEADER.gsoType]
    this.headerLength = word(u8, at + NET_HEADER.headerLength)
    this.gsoSize = word(u8, at + NET_HEADER.gsoSize)
    this.checksumStart = word(u8, at + NET_HEADER.checksumStart)
    this.checksumOffset = word(u8, at + NET_HEADER.checksumOffset)
    this.bufferCount = word(u8, at + NET_HEADER.bufferCount)
  }

  /** The same at a byte that is a multiple of 4. @param word that byte divided by 4 */
  readWords(u32: Uint32Array, word: number): void {
    const first = u32[word]
    const second = u32[word + 1]
    const third = u32[word + 2]
    this.flags = first & 0xff
    this.gsoType = (first >>> 8) & 0xff
    this.headerLength = first >>> 16
    this.gsoSize = second & 0xffff
    this.checksumStart = second >>> 16
    this.checksumOffset = third & 0xffff
    this.bufferCount = third >>> 16
  }
}

/** A header without offloads, at a byte that is a multiple of 4. @param word `at` divided by 4 */
export function clearNetHeader(u32: Uint32Array, word: number): void {
  u32[word] = 0
  u32[word + 1] = 0
  u32[word + 2] = 0
}

/**
 * Writes the header of a frame to send; all zero without offloads.
 * @throws RangeError for a field that does not fit its 16 bits
 */
export function writeNetHeader(u8: Uint8Array, at: number, offload?: Offload): void {
  u8.fill(0, at, at + NET_HEADER_BYTES)
  if (offload === undefined) return
  const { checksum, gso } = offload
  if (checksum !== undefined) {
    u8[at + NET_HEADER.flags] = VIRTIO_NET_HDR_F_NEEDS_CSUM
    setWord(u8, at + NET_HEADER.checksumStart, checksum.start, 'checksum.start')
    setWord(u8, at + NET_HEADER.checksumOffset, checksum.offset, 'checksum.offset')
  }
  if (gso !== undefined) {
    u8[at + NET_HEADER.gsoType] =
      GSO_TYPE[gso.type] | (gso.ecn === true ? VIRTIO_NET_HDR_GSO_ECN : 0)
    setWord(u8, at + NET_HEADER.gsoSize, gso.size, 'gso.size')
    setWord(u8, at + NET_HEADER.headerLength, gso.headerLength, 'gso.headerLength')
  }
}

function word(u8: Uint8Array, at: number): number {
  return u8[at] | (u8[at + 1] << 8)
}

function setWord(u8: Uint8Array, at: number, value: number, name: string): void {
  if (!Number.isInteger(value) || value < 0 || value > 0xffff) {
    throw new RangeError(`${name} has 16 bits: ${value}`)
  }
  u8[at] = value & 0xff
  u8[at + 1] = value >> 8
}

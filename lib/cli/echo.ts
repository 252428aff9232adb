/**
 * A peer for the kernel's own network stack: ARP and ICMP echo over Ethernet, enough to ask
 * questions whose answers only the kernel can have made. Not a network stack.
 * Formats: RFC 826 (ARP), RFC 791 (IPv4), RFC 792 (ICMP).
 */

const ETHERTYPE_ARP = 0x0806
const ETHERTYPE_IPV4 = 0x0800
const ETHERNET = 14
const IPV4 = 20
const ICMP = 8
/** Headers before the payload of an echo request. */
export const ECHO_OVERHEAD = ETHERNET + IPV4 + ICMP

export interface Station {
  /** 6 bytes. */
  readonly mac: Uint8Array
  /** 4 bytes. */
  readonly ip: Uint8Array
}

const BROADCAST = new Uint8Array(6).fill(0xff)

export function arpRequest(from: Station, ip: Uint8Array): Uint8Array {
  return arp(1, from, { mac: BROADCAST, ip })
}

/** The answer to an ARP request for `self`, or undefined when the frame is none. */
export function arpReply(frame: Uint8Array, self: Station): Uint8Array | undefined {
  const view = viewOf(frame)
  if (frame.length < 42 || view.getUint16(12) !== ETHERTYPE_ARP || view.getUint16(20) !== 1) {
    return undefined
  }
  if (!equal(frame.subarray(38, 42), self.ip)) return undefined
  return arp(2, self, { mac: frame.slice(22, 28), ip: frame.slice(28, 32) })
}

/** The sender's MAC address of an ARP reply from `ip`, or undefined when the frame is none. */
export function arpAnswer(frame: Uint8Array, ip: Uint8Array): Uint8Array | undefined {
  const view = viewOf(frame)
  if (frame.length < 42 || view.getUint16(12) !== ETHERTYPE_ARP || view.getUint16(20) !== 2) {
    return undefined
  }
  return equal(frame.subarray(28, 32), ip) ? frame.slice(22, 28) : undefined
}

/** @param length of the whole frame in bytes, at least `ECHO_OVERHEAD` */
export function echoRequest(
  from: Station,
  to: Station,
  sequence: number,
  length: number,
): Uint8Array {
  const frame = new Uint8Array(length)
  const view = viewOf(frame)
  frame.set(to.mac, 0)
  frame.set(from.mac, 6)
  view.setUint16(12, ETHERTYPE_IPV4)
  view.setUint8(14, 0x45)
  view.setUint16(16, length - ETHERNET)
  view.setUint16(18, sequence)
  view.setUint8(22, 64)
  view.setUint8(23, 1)
  frame.set(from.ip, 26)
  frame.set(to.ip, 30)
  view.setUint16(24, checksum(view, ETHERNET, IPV4))
  view.setUint8(34, 8)
  view.setUint16(38, 0x1070)
  view.setUint16(40, sequence)
  for (let i = ECHO_OVERHEAD; i < length; i++) frame[i] = payload(sequence, i)
  view.setUint16(36, checksum(view, ETHERNET + IPV4, length - ETHERNET - IPV4))
  return frame
}

/**
 * The sequence number of an echo reply, or undefined when the frame is none.
 * -1 when it is one, but not a byte-for-byte echo of what `echoRequest` made.
 */
export function echoReply(frame: Uint8Array, self: Station): number | undefined {
  const view = viewOf(frame)
  if (frame.length < ECHO_OVERHEAD || view.getUint16(12) !== ETHERTYPE_IPV4) return undefined
  if (view.getUint8(23) !== 1 || view.getUint8(34) !== 0) return undefined
  if (!equal(frame.subarray(30, 34), self.ip)) return undefined
  const sequence = view.getUint16(40)
  const length = ETHERNET + view.getUint16(16)
  if (length > frame.length) return -1
  for (let i = ECHO_OVERHEAD; i < length; i++) {
    if (frame[i] !== payload(sequence, i)) return -1
  }
  return sequence
}

function arp(operation: number, from: Station, to: Station): Uint8Array {
  const frame = new Uint8Array(60)
  const view = viewOf(frame)
  frame.set(to.mac, 0)
  frame.set(from.mac, 6)
  view.setUint16(12, ETHERTYPE_ARP)
  view.setUint16(14, 1)
  view.setUint16(16, ETHERTYPE_IPV4)
  view.setUint8(18, 6)
  view.setUint8(19, 4)
  view.setUint16(20, operation)
  frame.set(from.mac, 22)
  frame.set(from.ip, 28)
  if (operation === 2) frame.set(to.mac, 32)
  frame.set(to.ip, 38)
  return frame
}

function payload(sequence: number, at: number): number {
  return (sequence * 31 + at * 7) & 0xff
}

/** RFC 1071. */
function checksum(view: DataView, offset: number, length: number): number {
  let sum = 0
  for (let i = 0; i + 1 < length; i += 2) sum += view.getUint16(offset + i)
  if (length % 2 === 1) sum += view.getUint8(offset + length - 1) << 8
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >>> 16)
  return ~sum & 0xffff
}

function viewOf(frame: Uint8Array): DataView {
  return new DataView(frame.buffer, frame.byteOffset, frame.byteLength)
}

function equal(a: Uint8Array, b: Uint8Array): boolean {
  return a.length === b.length && a.every((byte, i) => byte === b[i])
}

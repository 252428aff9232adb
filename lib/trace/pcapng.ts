/**
 * A trace as a capture: frames and IOTLB messages in one timeline, for Wireshark and tshark.
 *
 * Each device is two interfaces, one of Ethernet and one of messages, whose link type is
 * LINKTYPE_USER0. What a message looks like there is this file's own and that of
 * `wireshark/vhost-iotlb.lua`. Everything else of a trace is left out.
 *
 * Source: draft-ietf-opsawg-pcapng, sections 4.1 to 4.3; little-endian.
 */
import type { Trace } from './codec'
import type { EventOf, TraceEvent } from './event'

/** What links are made of, by their numbers at tcpdump.org/linktypes.html. */
export const LINKTYPE = { ethernet: 1, user0: 147 } as const

const SECTION_HEADER = 0x0a0d0d0a
const INTERFACE = 1
const ENHANCED_PACKET = 6
const BYTE_ORDER = 0x1a2b3c4d
const OPTION = { end: 0, if_name: 2, if_tsresol: 9, epb_flags: 2, shb_userappl: 4 } as const
/** 10^-9 seconds. */
const NANOSECONDS = 9
/** epb_flags: the direction of a packet, as its interface sees it. */
const DIRECTION = { none: 0, inbound: 1, outbound: 2 } as const

/** Layout of a message: offsets in bytes. `type` and `perm` as in linux/vhost_types.h. */
export const IOTLB_MESSAGE = {
  version: 0,
  type: 1,
  perm: 2,
  device: 3,
  error: 4,
  iova: 8,
  /** 0 stands for 2^64. */
  size: 16,
  uaddr: 24,
  bytes: 32,
} as const
export const IOTLB_MESSAGE_VERSION = 1
const TYPE = { miss: 1, update: 2, invalidate: 3 } as const

interface Packet {
  readonly interface: number
  /** Nanoseconds since 1970. */
  readonly at: bigint
  readonly bytes: Uint8Array
  /** Before it was cut. */
  readonly length: number
  readonly direction?: keyof typeof DIRECTION
}

/** Blocks of one section, each handed out as it is made. */
export class PcapngWriter {
  readonly #write: (block: Uint8Array) => void
  #interfaces = 0

  constructor(write: (block: Uint8Array) => void, application = 'vhost-iotlb') {
    this.#write = write
    const body = new DataView(new ArrayBuffer(16))
    body.setUint32(0, BYTE_ORDER, true)
    body.setUint16(4, 1, true)
    body.setBigInt64(8, -1n, true)
    this.#block(SECTION_HEADER, [
      bytesOf(body),
      option(OPTION.shb_userappl, text(application)),
      END,
    ])
  }

  /** @returns the number of the new interface */
  interface(name: string, linkType: number): number {
    const body = new DataView(new ArrayBuffer(8))
    body.setUint16(0, linkType, true)
    const options = [
      option(OPTION.if_name, text(name)),
      option(OPTION.if_tsresol, Uint8Array.of(NANOSECONDS)),
    ]
    this.#block(INTERFACE, [bytesOf(body), ...options, END])
    return this.#interfaces++
  }

  packet({ interface: number, at, bytes, length, direction = 'none' }: Packet): void {
    const body = new DataView(new ArrayBuffer(20))
    body.setUint32(0, number, true)
    body.setUint32(4, Number(at >> 32n), true)
    body.setUint32(8, Number(at & 0xffffffffn), true)
    body.setUint32(12, bytes.length, true)
    body.setUint32(16, length, true)
    const flags = new DataView(new ArrayBuffer(4))
    flags.setUint32(0, DIRECTION[direction], true)
    const options = direction === 'none' ? [] : [option(OPTION.epb_flags, bytesOf(flags)), END]
    this.#block(ENHANCED_PACKET, [bytesOf(body), padded(bytes), ...options])
  }

  #block(type: number, parts: readonly Uint8Array[]): void {
    const length = 12 + parts.reduce((sum, part) => sum + part.length, 0)
    const block = new Uint8Array(length)
    const view = new DataView(block.buffer)
    view.setUint32(0, type, true)
    view.setUint32(4, length, true)
    let at = 8
    for (const part of parts) {
      block.set(part, at)
      at += part.length
    }
    view.setUint32(at, length, true)
    this.#write(block)
  }
}

const END = new Uint8Array(4)

/** Writes frames and messages of a trace. @returns how many of each */
export function exportPcapng(
  trace: Trace,
  write: (block: Uint8Array) => void,
): { readonly frames: number; readonly messages: number } {
  const writer = new PcapngWriter(write)
  const started = BigInt(Math.round(trace.header.startedAt)) * 1_000_000n
  const interfaces = new Map<string, number>()
  const on = (name: string, linkType: number): number => {
    const known = interfaces.get(name) ?? writer.interface(name, linkType)
    interfaces.set(name, known)
    return known
  }
  const counts = { frames: 0, messages: 0 }
  for (const event of trace.events) {
    const at = started + BigInt(event.at)
    if (event.kind === 'frame') {
      counts.frames++
      writer.packet({
        ...{ interface: on(`device${event.device}`, LINKTYPE.ethernet), at },
        ...{ bytes: event.bytes, length: event.length },
        direction: event.queue === 1 ? 'outbound' : 'inbound',
      })
    } else if (isMessage(event)) {
      counts.messages++
      const bytes = encoded(event)
      const number = on(`iotlb${event.device}`, LINKTYPE.user0)
      writer.packet({ interface: number, at, bytes, length: bytes.length })
    }
  }
  return counts
}

type Message = EventOf<'miss' | 'update' | 'invalidate'>

function isMessage(event: TraceEvent): event is Message {
  return event.kind === 'miss' || event.kind === 'update' || event.kind === 'invalidate'
}

function encoded(event: Message): Uint8Array {
  const at = IOTLB_MESSAGE
  const view = new DataView(new ArrayBuffer(at.bytes))
  view.setUint8(at.version, IOTLB_MESSAGE_VERSION)
  view.setUint8(at.type, TYPE[event.kind])
  view.setUint8(at.device, event.device)
  if (event.kind === 'miss') {
    view.setUint8(at.perm, event.access)
    view.setBigUint64(at.iova, (BigInt(event.page) << 12n) | BigInt(event.offset), true)
    return bytesOf(view)
  }
  view.setUint32(at.error, event.error, true)
  view.setBigUint64(at.iova, BigInt(event.firstPage) << 12n, true)
  view.setBigUint64(at.size, BigInt(event.lastPage - event.firstPage + 1) << 12n, true)
  if (event.kind === 'update') {
    view.setUint8(at.perm, event.access)
    view.setBigUint64(at.uaddr, BigInt(event.hvaPage) << 12n, true)
  }
  return bytesOf(view)
}

function option(code: number, value: Uint8Array): Uint8Array {
  const head = new DataView(new ArrayBuffer(4))
  head.setUint16(0, code, true)
  head.setUint16(2, value.length, true)
  return Buffer.concat([bytesOf(head), padded(value)])
}

/** To 32 bits. */
function padded(bytes: Uint8Array): Uint8Array {
  const length = Math.ceil(bytes.length / 4) * 4
  if (length === bytes.length) return bytes
  const whole = new Uint8Array(length)
  whole.set(bytes)
  return whole
}

function bytesOf(view: DataView): Uint8Array {
  return new Uint8Array(view.buffer, view.byteOffset, view.byteLength)
}

function text(words: string): Uint8Array {
  return new TextEncoder().encode(words)
}

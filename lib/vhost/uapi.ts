/**
 * The kernel's interface as tables: ioctl numbers, struct layouts, and the IOTLB message.
 *
 * Facts from linux/vhost.h, linux/vhost_types.h, linux/if_tun.h, linux/sockios.h and net/if.h, as
 * they are on 64-bit hosts with the generic ioctl encoding (x86-64, arm64). No policy lives here
 * and no system call: `raw` users and the device read the same tables.
 */
import { endianness } from 'node:os'
import { PAGE_SHIFT } from '../address'
import type { AccessBits } from '../address'
import { InvalidState } from '../errors'

if (endianness() !== 'LE') {
  throw new InvalidState('ERR_UNSUPPORTED', 'vhost messages are encoded for little-endian hosts')
}

/* Structs. */

export type FieldType = 'u8' | 'u16' | 's16' | 'u32' | 's32' | 'u64' | 'bytes'

export interface StructField {
  readonly at: number
  readonly type: FieldType
  /** For `bytes` alone: how many. */
  readonly length?: number
}

export interface StructLayout {
  readonly bytes: number
  readonly fields: Readonly<Record<string, StructField>>
}

/** Where each field is. `vhost_memory` is the head alone: regions follow it, one after another. */
export const STRUCTS = {
  u8: { bytes: 1, fields: { value: { at: 0, type: 'u8' } } },
  u32: { bytes: 4, fields: { value: { at: 0, type: 'u32' } } },
  s32: { bytes: 4, fields: { value: { at: 0, type: 's32' } } },
  u64: { bytes: 8, fields: { value: { at: 0, type: 'u64' } } },
  vhost_vring_state: {
    bytes: 8,
    fields: { index: { at: 0, type: 'u32' }, num: { at: 4, type: 'u32' } },
  },
  vhost_vring_file: {
    bytes: 8,
    fields: { index: { at: 0, type: 'u32' }, fd: { at: 4, type: 's32' } },
  },
  vhost_vring_worker: {
    bytes: 8,
    fields: { index: { at: 0, type: 'u32' }, worker_id: { at: 4, type: 'u32' } },
  },
  vhost_vring_addr: {
    bytes: 40,
    fields: {
      index: { at: 0, type: 'u32' },
      flags: { at: 4, type: 'u32' },
      desc_user_addr: { at: 8, type: 'u64' },
      used_user_addr: { at: 16, type: 'u64' },
      avail_user_addr: { at: 24, type: 'u64' },
      log_guest_addr: { at: 32, type: 'u64' },
    },
  },
  vhost_memory: {
    bytes: 8,
    fields: { nregions: { at: 0, type: 'u32' }, padding: { at: 4, type: 'u32' } },
  },
  vhost_memory_region: {
    bytes: 32,
    fields: {
      guest_phys_addr: { at: 0, type: 'u64' },
      memory_size: { at: 8, type: 'u64' },
      userspace_addr: { at: 16, type: 'u64' },
      flags_padding: { at: 24, type: 'u64' },
    },
  },
  ifreq_flags: {
    bytes: 40,
    fields: {
      ifr_name: { at: 0, type: 'bytes', length: 16 },
      ifr_flags: { at: 16, type: 'u16' },
    },
  },
  ifreq_value: {
    bytes: 40,
    fields: {
      ifr_name: { at: 0, type: 'bytes', length: 16 },
      ifr_value: { at: 16, type: 's32' },
    },
  },
  ifreq_hwaddr: {
    bytes: 40,
    fields: {
      ifr_name: { at: 0, type: 'bytes', length: 16 },
      sa_family: { at: 16, type: 'u16' },
      sa_data: { at: 18, type: 'bytes', length: 6 },
    },
  },
  ifreq_inet: {
    bytes: 40,
    fields: {
      ifr_name: { at: 0, type: 'bytes', length: 16 },
      sin_family: { at: 16, type: 'u16' },
      sin_addr: { at: 20, type: 'bytes', length: 4 },
    },
  },
} as const satisfies Readonly<Record<string, StructLayout>>

export type StructName = keyof typeof STRUCTS

export type StructValues = Readonly<Record<string, bigint | number | Uint8Array>>

/**
 * The bytes of a struct; fields that are not named are zero.
 * @throws RangeError for a field that the struct has not, or a value of the wrong kind or size
 */
export function encodeStruct(layout: StructLayout, values: StructValues): Uint8Array {
  const out = new Uint8Array(layout.bytes)
  const view = new DataView(out.buffer)
  for (const [name, value] of Object.entries(values)) {
    const field = layout.fields[name] as StructField | undefined
    if (field === undefined) throw new RangeError(`no field ${name}`)
    if (field.type === 'bytes') writeBytes(out, field, name, value)
    else writeInteger(view, field, name, value)
  }
  return out
}

/** Numbers for fields of up to 32 bits, bigints for `u64`, copies for `bytes`. */
export function decodeStruct(
  layout: StructLayout,
  bytes: Uint8Array,
): Record<string, bigint | number | Uint8Array> {
  if (bytes.byteLength < layout.bytes) {
    throw new RangeError(`${layout.bytes} bytes are needed: ${bytes.byteLength}`)
  }
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  const out: Record<string, bigint | number | Uint8Array> = {}
  for (const [name, field] of Object.entries(layout.fields)) {
    const { at, type, length } = field
    out[name] =
      type === 'bytes'
        ? bytes.slice(at, at + (length ?? 0))
        : type === 'u64'
          ? view.getBigUint64(at, true)
          : view[INTEGERS[type].get](at, true)
  }
  return out
}

/** The DataView accessors of each integer, and what fits. */
const INTEGERS = {
  u8: { get: 'getUint8', set: 'setUint8', first: 0, last: 0xff },
  u16: { get: 'getUint16', set: 'setUint16', first: 0, last: 0xffff },
  s16: { get: 'getInt16', set: 'setInt16', first: -0x8000, last: 0x7fff },
  u32: { get: 'getUint32', set: 'setUint32', first: 0, last: 0xffffffff },
  s32: { get: 'getInt32', set: 'setInt32', first: -0x80000000, last: 0x7fffffff },
} as const

function writeBytes(
  out: Uint8Array,
  field: StructField,
  name: string,
  value: bigint | number | Uint8Array,
): void {
  if (!(value instanceof Uint8Array)) throw new RangeError(`${name} is bytes`)
  if (value.byteLength > (field.length ?? 0)) {
    throw new RangeError(`${name} holds ${field.length ?? 0} bytes: ${value.byteLength}`)
  }
  out.set(value, field.at)
}

function writeInteger(
  view: DataView,
  field: StructField,
  name: string,
  value: bigint | number | Uint8Array,
): void {
  if (value instanceof Uint8Array) throw new RangeError(`${name} is an integer`)
  if (field.type === 'u64') {
    const wide = BigInt(value)
    if (wide < 0n || wide >> 64n !== 0n)
      throw new RangeError(`${name} is out of range: ${wide.toString()}`)
    view.setBigUint64(field.at, wide, true)
    return
  }
  const kind = INTEGERS[field.type as keyof typeof INTEGERS]
  const narrow = Number(value)
  if (!Number.isInteger(narrow) || narrow < kind.first || narrow > kind.last) {
    throw new RangeError(`${name} is out of range: ${narrow}`)
  }
  view[kind.set](field.at, narrow, true)
}

/* ioctls. */

/**
 * What the third argument is: a pointer to a struct, nothing, or an integer by value. `size` is
 * what the kernel really copies where the request number understates it.
 */
export interface Ioctl {
  readonly request: number
  readonly argument: StructName | 'none' | 'value'
  readonly size?: number
}

export const IOCTLS = {
  VHOST_GET_FEATURES: { request: 0x8008af00, argument: 'u64' },
  VHOST_SET_FEATURES: { request: 0x4008af00, argument: 'u64' },
  VHOST_SET_OWNER: { request: 0x0000af01, argument: 'none' },
  VHOST_RESET_OWNER: { request: 0x0000af02, argument: 'none' },
  VHOST_SET_MEM_TABLE: { request: 0x4008af03, argument: 'vhost_memory' },
  VHOST_SET_LOG_BASE: { request: 0x4008af04, argument: 'u64' },
  VHOST_SET_LOG_FD: { request: 0x4004af07, argument: 's32' },
  /**
   * Not wired in vhost-net: ENOTTY, or ENOBUFS where the argument reads as a ring index above 1.
   */
  VHOST_NEW_WORKER: { request: 0x8004af08, argument: 'u32' },
  VHOST_FREE_WORKER: { request: 0x4004af09, argument: 'u32' },
  VHOST_SET_VRING_NUM: { request: 0x4008af10, argument: 'vhost_vring_state' },
  VHOST_SET_VRING_ADDR: { request: 0x4028af11, argument: 'vhost_vring_addr' },
  VHOST_SET_VRING_BASE: { request: 0x4008af12, argument: 'vhost_vring_state' },
  VHOST_GET_VRING_BASE: { request: 0xc008af12, argument: 'vhost_vring_state' },
  VHOST_SET_VRING_ENDIAN: { request: 0x4008af13, argument: 'vhost_vring_state' },
  VHOST_GET_VRING_ENDIAN: { request: 0x4008af14, argument: 'vhost_vring_state' },
  VHOST_ATTACH_VRING_WORKER: { request: 0x4008af15, argument: 'vhost_vring_worker' },
  VHOST_GET_VRING_WORKER: { request: 0xc008af16, argument: 'vhost_vring_worker' },
  VHOST_SET_VRING_KICK: { request: 0x4008af20, argument: 'vhost_vring_file' },
  VHOST_SET_VRING_CALL: { request: 0x4008af21, argument: 'vhost_vring_file' },
  VHOST_SET_VRING_ERR: { request: 0x4008af22, argument: 'vhost_vring_file' },
  VHOST_SET_VRING_BUSYLOOP_TIMEOUT: { request: 0x4008af23, argument: 'vhost_vring_state' },
  /** Declared _IOW, but writes. */
  VHOST_GET_VRING_BUSYLOOP_TIMEOUT: { request: 0x4008af24, argument: 'vhost_vring_state' },
  VHOST_SET_BACKEND_FEATURES: { request: 0x4008af25, argument: 'u64' },
  VHOST_GET_BACKEND_FEATURES: { request: 0x8008af26, argument: 'u64' },
  VHOST_NET_SET_BACKEND: { request: 0x4008af30, argument: 'vhost_vring_file' },
  /** Linux 6.17: a count and that many words. */
  VHOST_GET_FEATURES_ARRAY: { request: 0x8008af83, argument: 'u64', size: 8 },
  VHOST_SET_FEATURES_ARRAY: { request: 0x4008af83, argument: 'u64', size: 8 },
  /** Linux 6.17 and 6.12.45, with CONFIG_VHOST_ENABLE_FORK_OWNER_CONTROL. */
  VHOST_SET_FORK_FROM_OWNER: { request: 0x4001af84, argument: 'u8' },
  VHOST_GET_FORK_FROM_OWNER: { request: 0x8001af85, argument: 'u8' },

  TUNSETIFF: { request: 0x400454ca, argument: 'ifreq_flags', size: 40 },
  TUNSETPERSIST: { request: 0x400454cb, argument: 'value' },
  TUNSETOWNER: { request: 0x400454cc, argument: 'value' },
  TUNSETGROUP: { request: 0x400454ce, argument: 'value' },
  TUNGETFEATURES: { request: 0x800454cf, argument: 'u32' },
  TUNSETOFFLOAD: { request: 0x400454d0, argument: 'value' },
  TUNGETIFF: { request: 0x800454d2, argument: 'ifreq_flags', size: 40 },
  TUNGETSNDBUF: { request: 0x800454d3, argument: 's32' },
  TUNSETSNDBUF: { request: 0x400454d4, argument: 's32' },
  TUNGETVNETHDRSZ: { request: 0x800454d7, argument: 's32' },
  TUNSETVNETHDRSZ: { request: 0x400454d8, argument: 's32' },
  TUNSETQUEUE: { request: 0x400454d9, argument: 'ifreq_flags', size: 40 },
  TUNSETVNETLE: { request: 0x400454dc, argument: 's32' },
  TUNGETVNETLE: { request: 0x800454dd, argument: 's32' },
  TUNSETCARRIER: { request: 0x400454e2, argument: 's32' },

  /** For descriptors that came from elsewhere (asm-generic/ioctls.h). */
  FIONBIO: { request: 0x5421, argument: 's32', size: 4 },

  SIOCGIFFLAGS: { request: 0x8913, argument: 'ifreq_flags', size: 40 },
  SIOCSIFFLAGS: { request: 0x8914, argument: 'ifreq_flags', size: 40 },
  SIOCSIFADDR: { request: 0x8916, argument: 'ifreq_inet', size: 40 },
  SIOCSIFNETMASK: { request: 0x891c, argument: 'ifreq_inet', size: 40 },
  SIOCGIFMTU: { request: 0x8921, argument: 'ifreq_value', size: 40 },
  SIOCSIFMTU: { request: 0x8922, argument: 'ifreq_value', size: 40 },
  SIOCSIFHWADDR: { request: 0x8924, argument: 'ifreq_hwaddr', size: 40 },
  SIOCGIFHWADDR: { request: 0x8927, argument: 'ifreq_hwaddr', size: 40 },
  SIOCGIFINDEX: { request: 0x8933, argument: 'ifreq_value', size: 40 },
} as const satisfies Readonly<Record<string, Ioctl>>

export type IoctlName = keyof typeof IOCTLS

/* Bits. */

/** The constants of linux/vhost_types.h are bit numbers; these are the bits. */
export const VHOST_BACKEND_F_IOTLB_MSG_V2 = 1n << 1n
/** Of `vhost_vring_addr.flags`. */
export const VHOST_VRING_F_LOG = 1

/** linux/if_tun.h, net/if.h */
export const IFF_UP = 0x1
export const IFF_TUN = 0x1
export const IFF_TAP = 0x2
export const IFF_MULTI_QUEUE = 0x100
export const IFF_ATTACH_QUEUE = 0x200
export const IFF_DETACH_QUEUE = 0x400
export const IFF_NO_PI = 0x1000
export const IFF_VNET_HDR = 0x4000
export const IFF_TUN_EXCL = 0x8000
export const TUN_F_CSUM = 0x01
export const TUN_F_TSO4 = 0x02
export const TUN_F_TSO6 = 0x04

/* The IOTLB message. */

/** `struct vhost_msg` and `struct vhost_msg_v2`: both 72 bytes, payload at 8 in both. */
export const MESSAGE_BYTES = 72
export const MESSAGE_WORDS = MESSAGE_BYTES / 4
/** A guard for `native.writer`: the host address is the word at 24, its length the one at 16. */
export const UPDATE_GUARDS: readonly number[] = [24, 16]

export type MessageVersion = 1 | 2

export const VHOST_IOTLB_MISS = 1
export const VHOST_IOTLB_UPDATE = 2
export const VHOST_IOTLB_INVALIDATE = 3
export const VHOST_IOTLB_ACCESS_FAIL = 4

/**
 * Where the message keeps what, in 32-bit words. `perm` is byte 32 and `type` byte 33: both are in
 * word 8, the type shifted by 8.
 */
const WORD = { version: 0, asid: 1, iova: 2, size: 4, uaddr: 6, access: 8 } as const
const TYPE_SHIFT = 8
const PAGES_PER_4G = 2 ** 20
/** More pages than this do not fit in the size field (K10): 2^64 is 0 on the wire. */
export const LAST_PAGE_COUNT = 2 ** 52 - 1

/**
 * Writes an UPDATE at word `at`. Allocates nothing.
 * @param pages 1 to 2^52-1
 */
export function encodeUpdate(
  words: Uint32Array,
  at: number,
  version: MessageVersion,
  firstPage: number,
  pages: number,
  hvaPage: number,
  access: AccessBits,
): void {
  words[at + WORD.version] = version
  words[at + WORD.asid] = 0
  setPages(words, at + WORD.iova, firstPage)
  setPages(words, at + WORD.size, pages)
  setPages(words, at + WORD.uaddr, hvaPage)
  words[at + WORD.access] = access | (VHOST_IOTLB_UPDATE << TYPE_SHIFT)
}

/** @param pages 1 to 2^52-1 */
export function encodeInvalidate(
  words: Uint32Array,
  at: number,
  version: MessageVersion,
  firstPage: number,
  pages: number,
): void {
  words[at + WORD.version] = version
  words[at + WORD.asid] = 0
  setPages(words, at + WORD.iova, firstPage)
  setPages(words, at + WORD.size, pages)
  setPages(words, at + WORD.uaddr, 0)
  words[at + WORD.access] = VHOST_IOTLB_INVALIDATE << TYPE_SHIFT
}

/** What a MISS says, as `Miss` of `iotlb/channel.ts` keeps it. */
export interface MissFields {
  page: number
  offset: number
  access: AccessBits
}

/** Fills `out` from the message at word `at`; false for anything but a MISS. */
export function decodeMiss(words: Uint32Array, at: number, out: MissFields): boolean {
  const access = words[at + WORD.access]
  if (((access >>> TYPE_SHIFT) & 0xff) !== VHOST_IOTLB_MISS) return false
  const low = words[at + WORD.iova]
  out.page = words[at + WORD.iova + 1] * PAGES_PER_4G + (low >>> PAGE_SHIFT)
  out.offset = low & 0xfff
  out.access = (access & 3) as AccessBits
  return true
}

function setPages(words: Uint32Array, at: number, page: number): void {
  words[at] = (page % PAGES_PER_4G) << PAGE_SHIFT
  words[at + 1] = Math.floor(page / PAGES_PER_4G)
}

/** A message by name, for tests and for callers of `raw`; the hot path never sees one. */
export interface VhostMessage {
  readonly version: number
  readonly asid: number
  /** VHOST_IOTLB_MISS, VHOST_IOTLB_UPDATE or VHOST_IOTLB_INVALIDATE. */
  readonly type: number
  readonly iova: bigint
  readonly size: bigint
  readonly uaddr: bigint
  /** VHOST_ACCESS_RO 1, VHOST_ACCESS_WO 2. */
  readonly perm: number
}

const MESSAGE: StructLayout = {
  bytes: MESSAGE_BYTES,
  fields: {
    version: { at: 0, type: 'u32' },
    asid: { at: 4, type: 'u32' },
    iova: { at: 8, type: 'u64' },
    size: { at: 16, type: 'u64' },
    uaddr: { at: 24, type: 'u64' },
    perm: { at: 32, type: 'u8' },
    type: { at: 33, type: 'u8' },
  },
}

/** Version 2 where none is given. @throws RangeError for a value that does not fit */
export function encodeMessage(message: Partial<VhostMessage>): Uint8Array {
  return encodeStruct(MESSAGE, { version: 2, ...message })
}

/** @throws RangeError for fewer than 72 bytes */
export function decodeMessage(bytes: Uint8Array): VhostMessage {
  return decodeStruct(MESSAGE, bytes) as unknown as VhostMessage
}

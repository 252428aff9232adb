/**
 * One split ring as the vhost worker sees it: every access goes through the table.
 *
 * Sources: Linux 6.12 drivers/vhost/vhost.c (translate_desc, iotlb_access_ok, vhost_get_vq_desc,
 * get_indirect, vhost_add_used_n, vhost_enable_notify). Where the kernel's order of checks can be
 * seen from outside it is kept here, also where it is surprising: entries of an indirect table are
 * read one after the other whatever their `next` says, and the value of a failed call is `-errno`.
 */
import { READ, WRITE } from '../address'
import {
  AVAIL,
  DESC,
  USED,
  VIRTQ_DESC_F_INDIRECT,
  VIRTQ_DESC_F_NEXT,
  VIRTQ_DESC_F_WRITE,
  VIRTQ_USED_F_NO_NOTIFY,
  availEventOffset,
  usedEventOffset,
} from '../virtio/ring-layout'
import { MASK64 } from './fake-iotlb'
import type { FakeIotlb, FakeMap } from './fake-iotlb'

const EFAULT = -14
const EAGAIN = -11
const EPERM = -1
const EINVAL = -22
const E2BIG = -7
const ENOBUFS = -105
/** UIO_MAXIOV */
const MOST_PIECES = 1024
/** The device's own `iotlb_iov`. */
const RING_PIECES = 64
const MOST_INDIRECT = 0x1_0000

/** Host memory as the device reaches it. */
export interface HostBytes {
  /** The bytes at a host address; undefined where there are none. */
  at(hva: bigint, length: number): Uint8Array | undefined
}

export interface Piece {
  readonly hva: bigint
  readonly length: number
}

/** A chain that was taken: its head, and what the device may read and write. */
export interface Taken {
  readonly head: number
  readonly out: readonly Piece[]
  readonly in: readonly Piece[]
}

interface Descriptor {
  readonly addr: bigint
  readonly len: number
  readonly flags: number
  readonly next: number
}

/** A chain in the making. */
interface Pieces {
  readonly out: Piece[]
  readonly in: Piece[]
}

type RingPart = 'desc' | 'avail' | 'used'
const PARTS = ['desc', 'avail', 'used'] as const

export class FakeRing {
  size = 1
  desc = 0n
  avail = 0n
  used = 0n
  /** Free-running indices: taken, seen offered, completed. */
  lastAvail = 0
  availIndex = 0
  lastUsed = 0
  usedFlags = 0
  /** Ticks of the error eventfd. */
  errors = 0
  backend = false
  /** The socket may wake the ring. */
  armed = false
  /** Ring parts that one entry covers: reached without the table. */
  readonly cache: Partial<Record<RingPart, FakeMap>> = {}

  constructor(
    readonly index: number,
    private readonly memory: HostBytes,
  ) {}

  /** Of the device; a new one at each SET_FEATURES. undefined without ACCESS_PLATFORM. */
  iotlb: FakeIotlb<FakeRing> | undefined

  forgetCache(): void {
    for (const part of PARTS) Reflect.deleteProperty(this.cache, part)
  }

  /** iotlb_access_ok of all three parts: a hole asks, too little permission is silent. */
  prefetch(): boolean {
    const { size } = this
    return (
      this.#prefetch('desc', DESC.bytes * size, READ) &&
      this.#prefetch('avail', usedEventOffset(size), READ) &&
      this.#prefetch('used', availEventOffset(size), WRITE)
    )
  }

  #prefetch(part: RingPart, length: number, access: number): boolean {
    const begin = this[part]
    if (this.cache[part] !== undefined) return true
    const last = (begin + BigInt(length) - 1n) & MASK64
    let at = begin
    for (let left = BigInt(length); left > 0n;) {
      const map = this.iotlb?.first(at, last)
      if (map === undefined || map.start > at) {
        this.#miss(at, access)
        return false
      }
      if ((map.perm & access) === 0) return false
      const size = map.last - at + 1n
      if (at === begin && size >= left) this.cache[part] = map
      left -= size
      at = (at + size) & MASK64
    }
    return true
  }

  /** translate_desc. @returns the pieces, or -errno; -EAGAIN has asked */
  #translate(addr: bigint, length: number, most: number, access: number): Piece[] | number {
    const pieces: Piece[] = []
    const total = BigInt(length)
    const moving = this.iotlb?.bugs.has('translation-range') === true
    const last = (addr + total - 1n) & MASK64
    let at = addr
    for (let done = 0n; done < total;) {
      if (pieces.length >= most) return ENOBUFS
      const map = this.iotlb?.first(at, moving ? (at + total - 1n) & MASK64 : last)
      if (map === undefined || map.start > at) {
        this.#miss(at, access)
        return EAGAIN
      }
      if ((map.perm & access) === 0) return EPERM
      const size = map.last - at + 1n
      const left = total - done
      pieces.push({ hva: map.addr + at - map.start, length: Number(left < size ? left : size) })
      done += size
      at = (at + size) & MASK64
    }
    return pieces
  }

  #miss(iova: bigint, perm: number): void {
    this.iotlb?.ask({ iova, perm, queue: this })
  }

  /** A field of at most two bytes: in one entry, and read permission is enough to write (K8). */
  #field(part: RingPart, offset: number): Uint8Array | undefined {
    const cached = this.#cached(part, offset, 2)
    if (cached !== undefined) return cached
    const pieces = this.#translate((this[part] + BigInt(offset)) & MASK64, 2, RING_PIECES, READ)
    if (typeof pieces === 'number' || pieces.length !== 1) {
      this.errors++
      return undefined
    }
    return this.memory.at(pieces[0].hva, 2)
  }

  #cached(part: RingPart, offset: number, length: number): Uint8Array | undefined {
    const map = this.cache[part]
    if (map === undefined) return undefined
    // No bounds here: with a stale entry this leads beside it, as it did in the kernel.
    return this.memory.at(map.addr + this[part] + BigInt(offset) - map.start, length)
  }

  readField(part: RingPart, offset: number): number {
    const bytes = this.#field(part, offset)
    return bytes === undefined ? EFAULT : bytes[0] | (bytes[1] << 8)
  }

  writeField(part: RingPart, offset: number, value: number): boolean {
    const bytes = this.#field(part, offset)
    if (bytes === undefined) return false
    bytes[0] = value & 0xff
    bytes[1] = (value >> 8) & 0xff
    return true
  }

  /** vhost_vq_init_access: writes the flags and reads the index. */
  start(): boolean {
    if (!this.writeField('used', USED.flags, this.usedFlags)) return false
    const index = this.readField('used', USED.idx)
    if (index < 0) return this.#error(false)
    this.lastUsed = index
    return true
  }

  #error<T extends boolean | number>(value: T): T {
    this.errors++
    return value
  }

  disableNotify(): void {
    if ((this.usedFlags & VIRTQ_USED_F_NO_NOTIFY) !== 0) return
    this.usedFlags |= VIRTQ_USED_F_NO_NOTIFY
    if (!this.writeField('used', USED.flags, this.usedFlags)) this.errors++
  }

  /** @returns whether more was offered in the meantime */
  enableNotify(): boolean {
    if ((this.usedFlags & VIRTQ_USED_F_NO_NOTIFY) === 0) return false
    this.usedFlags &= ~VIRTQ_USED_F_NO_NOTIFY
    if (!this.writeField('used', USED.flags, this.usedFlags)) return this.#error(false)
    return this.#lookForMore() === 1
  }

  /** vhost_get_avail_idx: 1 when more was offered since the last look, 0 when not, or -errno. */
  #lookForMore(): number {
    const index = this.readField('avail', AVAIL.idx)
    if (index < 0) return this.#error(EFAULT)
    if (((index - this.lastAvail) & 0xffff) > this.size) return this.#error(EINVAL)
    const known = this.iotlb?.bugs.has('few-buffers-livelock') ? this.lastAvail : this.availIndex
    this.availIndex = index
    return index === known ? 0 : 1
  }

  /** vhost_get_vq_desc. @returns undefined when nothing is offered, or -errno */
  take(room: number): Taken | undefined | number {
    if (this.availIndex === this.lastAvail) {
      const more = this.#lookForMore()
      if (more < 0) return more
      if (more === 0) return undefined
    }
    const slot = this.lastAvail & (this.size - 1)
    const head = this.readField('avail', AVAIL.ring + AVAIL.entry * slot)
    if (head < 0) return this.#error(EFAULT)
    if (head >= this.size) return this.#error(EINVAL)
    const pieces: Pieces = { out: [], in: [] }
    const result = this.#chain(head, pieces, room)
    if (result < 0) return result === EAGAIN ? EAGAIN : this.#error(result)
    this.lastAvail = (this.lastAvail + 1) & 0xffff
    return { head, ...pieces }
  }

  #chain(head: number, pieces: Pieces, room: number): number {
    for (let i = head, found = 1; ; found++) {
      if (i >= this.size || found > this.size) return EINVAL
      const descriptor = this.#descriptor(i)
      if (descriptor === undefined) return EFAULT
      const indirect = (descriptor.flags & VIRTQ_DESC_F_INDIRECT) !== 0
      const result = indirect
        ? this.#indirect(descriptor, pieces, room)
        : this.#append(descriptor, pieces, room)
      if (result < 0) return result
      if ((descriptor.flags & VIRTQ_DESC_F_NEXT) === 0) return 0
      i = descriptor.next
    }
  }

  #append({ addr, len, flags }: Descriptor, pieces: Pieces, room: number): number {
    const write = (flags & VIRTQ_DESC_F_WRITE) !== 0
    const most = room - pieces.out.length - pieces.in.length
    const found = this.#translate(addr, len, most, write ? WRITE : READ)
    if (typeof found === 'number') return found
    if (!write && pieces.in.length > 0) return EINVAL
    ;(write ? pieces.in : pieces.out).push(...found)
    return 0
  }

  #indirect({ addr, len }: Descriptor, pieces: Pieces, room: number): number {
    if (len % DESC.bytes !== 0) return EINVAL
    const table = this.#translate(addr, len, MOST_PIECES, READ)
    if (typeof table === 'number') return table
    const count = len / DESC.bytes
    if (count > MOST_INDIRECT) return E2BIG
    for (let at = 0; ; at++) {
      if (at >= count) return EINVAL
      const bytes = this.#gather(table, at * DESC.bytes, DESC.bytes)
      if (bytes === undefined) return EINVAL
      const descriptor = decode(bytes)
      if ((descriptor.flags & VIRTQ_DESC_F_INDIRECT) !== 0) return EINVAL
      const result = this.#append(descriptor, pieces, room)
      if (result < 0) return result
      if ((descriptor.flags & VIRTQ_DESC_F_NEXT) === 0) return 0
    }
  }

  #descriptor(index: number): Descriptor | undefined {
    const offset = DESC.bytes * index
    const cached = this.#cached('desc', offset, DESC.bytes)
    if (cached !== undefined) return decode(cached)
    const at = (this.desc + BigInt(offset)) & MASK64
    const pieces = this.#translate(at, DESC.bytes, RING_PIECES, READ)
    if (typeof pieces === 'number') {
      this.errors++
      return undefined
    }
    const bytes = this.#gather(pieces, 0, DESC.bytes)
    return bytes === undefined ? undefined : decode(bytes)
  }

  #gather(pieces: readonly Piece[], from: number, length: number): Uint8Array | undefined {
    const out = new Uint8Array(length)
    let skip = from
    let done = 0
    for (const piece of pieces) {
      if (skip >= piece.length) {
        skip -= piece.length
        continue
      }
      const take = Math.min(piece.length - skip, length - done)
      const bytes = this.memory.at(piece.hva + BigInt(skip), take)
      if (bytes === undefined) return undefined
      out.set(bytes, done)
      done += take
      skip = 0
      if (done === length) return out
    }
    return undefined
  }

  /** Writes into pieces, from a byte on. @returns false where there is no memory */
  scatter(pieces: readonly Piece[], from: number, data: Uint8Array): boolean {
    let skip = from
    let done = 0
    for (const piece of pieces) {
      if (done === data.length) break
      if (skip >= piece.length) {
        skip -= piece.length
        continue
      }
      const take = Math.min(piece.length - skip, data.length - done)
      const bytes = this.memory.at(piece.hva + BigInt(skip), take)
      if (bytes === undefined) return false
      bytes.set(data.subarray(done, done + take))
      done += take
      skip = 0
    }
    return true
  }

  read(pieces: readonly Piece[], from: number, length: number): Uint8Array | undefined {
    return this.#gather(pieces, from, length)
  }

  /** vhost_discard_vq_desc. */
  putBack(count: number): void {
    this.lastAvail = (this.lastAvail - count) & 0xffff
  }

  /** vhost_add_used_n; what cannot be written is lost. */
  complete(heads: readonly { readonly id: number; readonly length: number }[]): void {
    if (heads.length === 0) return
    const start = this.lastUsed & (this.size - 1)
    const first = Math.min(heads.length, this.size - start)
    if (!this.#putUsed(heads.slice(0, first)) || !this.#putUsed(heads.slice(first))) return
    if (!this.writeField('used', USED.idx, this.lastUsed)) this.errors++
  }

  #putUsed(heads: readonly { readonly id: number; readonly length: number }[]): boolean {
    if (heads.length === 0) return true
    const bytes = new Uint8Array(USED.entry * heads.length)
    const view = new DataView(bytes.buffer)
    for (const [i, { id, length }] of heads.entries()) {
      view.setUint32(USED.entry * i + USED.id, id, true)
      view.setUint32(USED.entry * i + USED.len, length, true)
    }
    const offset = USED.ring + USED.entry * (this.lastUsed & (this.size - 1))
    const cached = this.#cached('used', offset, bytes.length)
    if (cached !== undefined) {
      cached.set(bytes)
    } else {
      const at = (this.used + BigInt(offset)) & MASK64
      const pieces = this.#translate(at, bytes.length, RING_PIECES, WRITE)
      if (typeof pieces === 'number' || !this.scatter(pieces, 0, bytes)) return this.#error(false)
    }
    this.lastUsed = (this.lastUsed + heads.length) & 0xffff
    return true
  }
}

function decode(bytes: Uint8Array): Descriptor {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  return {
    addr: view.getBigUint64(DESC.addr, true),
    len: view.getUint32(DESC.len, true),
    flags: view.getUint16(DESC.flags, true),
    next: view.getUint16(DESC.next, true),
  }
}

/**
 * vhost-net in software, call by call: ioctls, messages, rings in memory, and a tap without a host.
 *
 * `FakeVhost` is what the miss loop is tested with; this one has rings, descriptors and byte-wise
 * ranges, so that a sequence can be done to it and to the kernel and the two compared. It runs its
 * worker in `flush()` alone. Its answers hold where the kernel has come to rest: how often a
 * question or an error comes is not its business, only whether it does.
 *
 * Sources: Linux 6.12 drivers/vhost/net.c (handle_tx_copy, handle_rx, vhost_net_set_backend) and
 * drivers/vhost/vhost.c. Event indices and busy polling are not here.
 */
import { MiB } from '../address'
import { GuestMemory } from '../memory/guest-memory'
import { MESSAGE_BYTES, decodeMessage, encodeMessage } from '../vhost/uapi'
import { VHOST_IOTLB_INVALIDATE, VHOST_IOTLB_MISS, VHOST_IOTLB_UPDATE } from '../vhost/uapi'
import { features, hasFeature } from '../virtio/net'
import type { RingAddresses } from '../virtio/ring-layout'
import { QUIET_MAC, arp, station } from './conformance/bare-device'
import type { BareDevice, MemoryLine } from './conformance/bare-device'
import { FakeIotlb, MASK64 } from './fake-iotlb'
import type { FakeBug, FakeMessage } from './fake-iotlb'
import { FakeRing } from './fake-ring'
import type { HostBytes, Piece, Taken } from './fake-ring'

export interface FakeVhostNetOptions {
  /** Entries before eviction. Default 2048. */
  readonly limit?: number
  /** Mistakes of older kernels, put back in. */
  readonly bugs?: readonly FakeBug[]
}

const EFAULT = -14
const EBUSY = -16
const EINVAL = -22
const ENOTSUP = -95
const EAGAIN = -11
const RX = 0
const TX = 1
const MOST_PIECES = 1024
/** struct virtio_net_hdr_v1 */
const HEADER = 12
const BUFFER_COUNT = 10
/** vhost_msg up to the end of `struct vhost_iotlb_msg`. */
const LEAST_MESSAGE = 40
const TASK_SIZE = (1n << 47n) - 4096n
/** VHOST_NET_BATCH */
const BATCH = 64
/** The kernel ends a pass after 256; memory does not change during one of ours. */
const IDLE_TURNS = 2
const LOG_PAGE = 4096n

const OFFERED =
  features('VIRTIO_NET_F_MRG_RXBUF', 'VIRTIO_F_INDIRECT_DESC', 'VIRTIO_F_VERSION_1') |
  features('VIRTIO_F_ACCESS_PLATFORM', 'VHOST_F_LOG_ALL')

export class FakeVhostNet implements BareDevice {
  readonly name = 'fake'
  readonly memory = GuestMemory.allocate(4 * MiB)
  readonly limit: number
  readonly features = OFFERED
  readonly messageVersion = 2
  readonly #bugs: ReadonlySet<FakeBug>
  readonly #rings: readonly [FakeRing, FakeRing]
  readonly #ready = new Set<FakeRing>()
  /** Frames that the host sent and no buffer has taken. */
  readonly #waiting: Uint8Array[] = []
  readonly #out: Uint8Array[] = []
  #acknowledged = 0n
  #iotlb: FakeIotlb<FakeRing> | undefined
  /** Messages of a device whose table went with its feature. */
  #lists: FakeMessage<FakeRing>[] = []
  #lines: readonly MemoryLine[] | undefined
  #log = 0n
  #stations = 0

  constructor({ limit = 2048, bugs = [] }: FakeVhostNetOptions = {}) {
    this.limit = limit
    this.#bugs = new Set(bugs)
    const bytes: HostBytes = { at: (hva, length) => this.#bytes(hva, length) }
    this.#rings = [new FakeRing(RX, bytes), new FakeRing(TX, bytes)]
  }

  setFeatures(bits: bigint): number {
    if ((bits & ~OFFERED) !== 0n) return ENOTSUP
    const had = hasFeature(this.#acknowledged, 'VIRTIO_F_ACCESS_PLATFORM')
    const has = hasFeature(bits, 'VIRTIO_F_ACCESS_PLATFORM')
    this.#acknowledged = bits
    if (had !== has && !this.#bugs.has('rings-outlive-feature')) this.#forgetAddresses()
    if (has) this.#newTable()
    else if (had && !this.#bugs.has('table-outlives-feature')) this.#setTable(undefined)
    return 0
  }

  setMemory(lines: readonly MemoryLine[]): number {
    this.#lines = lines
    return 0
  }

  setLogBase(hva: bigint): number {
    this.#log = hva
    return 0
  }

  setSize(index: number, size: number): number {
    const ring = this.#rings[index]
    if (ring.backend) return EBUSY
    if (size < 1 || size > 0xffff || (size & (size - 1)) !== 0) return EINVAL
    ring.size = size
    this.#moved(ring)
    return 0
  }

  setBase(index: number, base: number): number {
    const ring = this.#rings[index]
    if (ring.backend) return EBUSY
    if (base > 0xffff) return EINVAL
    ring.lastAvail = base
    ring.availIndex = base
    return 0
  }

  setAddresses(index: number, { desc, avail, used }: RingAddresses): number {
    const ring = this.#rings[index]
    if ((avail & 1n) !== 0n || (used & 3n) !== 0n) return EINVAL
    const checked = this.#iotlb === undefined || this.#bugs.has('rings-checked-as-host-addresses')
    if (checked && ring.backend && [desc, avail, used].some((at) => at >= TASK_SIZE)) return EINVAL
    ring.desc = desc
    ring.avail = avail
    ring.used = used
    this.#moved(ring)
    return 0
  }

  setBackend(index: number, attached: boolean): number {
    const ring = this.#rings[index]
    if (!attached && !this.#bugs.has('messages-outlive-backend')) this.#forgetMessages()
    if (this.#lines === undefined || this.#iotlb === undefined) return EFAULT
    if (!attached) {
      ring.backend = false
      ring.armed = false
      return 0
    }
    if (ring.backend) return 0
    if (!ring.start()) return EFAULT
    ring.backend = true
    ring.armed = true
    if (index === TX || this.#waiting.length > 0) this.#ready.add(ring)
    return 0
  }

  resetOwner(): number {
    for (const ring of this.#rings) {
      ring.backend = false
      ring.armed = false
      ring.size = 1
      ring.lastAvail = 0
      ring.availIndex = 0
      ring.lastUsed = 0
      ring.usedFlags = 0
      ring.forgetCache()
    }
    this.#ready.clear()
    this.#forgetMessages()
    this.#forgetAddresses()
    this.#setTable(undefined)
    this.#acknowledged = 0n
    this.#lines = []
    return 0
  }

  renew(): void {
    this.resetOwner()
    this.#waiting.length = 0
    this.#out.length = 0
    for (const ring of this.#rings) ring.errors = 0
    this.#stations = 0
  }

  write(bytes: Uint8Array, length = bytes.byteLength): number {
    if (length < 4) return EINVAL
    const short = length < LEAST_MESSAGE
    if (short) return this.#bugs.has('short-write') ? length : EINVAL
    const whole = new Uint8Array(MESSAGE_BYTES)
    whole.set(bytes.subarray(0, Math.min(length, MESSAGE_BYTES)))
    const { version, type, iova, size, uaddr, perm } = decodeMessage(whole)
    if (version !== 1 && version !== 2) return EINVAL
    if (type === VHOST_IOTLB_UPDATE) return this.#update(iova, size, uaddr, perm)
    if (type === VHOST_IOTLB_INVALIDATE) return this.#invalidate(iova, size)
    return EFAULT
  }

  read(buffer: Uint8Array, length = buffer.byteLength): number {
    if (length < MESSAGE_BYTES) return 0
    const [message] = this.#iotlb?.read(1) ?? this.#lists.splice(0, 1)
    if ((message as FakeMessage<FakeRing> | undefined) === undefined) return EAGAIN
    const { iova, perm } = message
    buffer.set(encodeMessage({ version: 2, type: VHOST_IOTLB_MISS, iova, perm }))
    if (this.#bugs.has('read-leaks-padding')) buffer.fill(0xa5, LEAST_MESSAGE, MESSAGE_BYTES)
    return MESSAGE_BYTES
  }

  kick(index: number): void {
    this.#ready.add(this.#rings[index])
  }

  errors(index: number): number {
    const ring = this.#rings[index]
    const { errors } = ring
    ring.errors = 0
    return errors
  }

  flush(): void {
    for (const ring of this.#ready) {
      this.#ready.delete(ring)
      if (ring.index === RX) this.#receive(ring)
      else this.#transmit(ring)
    }
    for (const ring of this.#spinning) this.#ready.add(ring)
    this.#spinning.clear()
  }

  receive(count: number): void {
    for (let i = 0; i < count; i++) {
      this.#waiting.push(arp(2, QUIET_MAC, station(this.#stations++)))
    }
    const [ring] = this.#rings
    if (ring.armed) this.#ready.add(ring)
  }

  sent(): Uint8Array[] {
    return this.#out.splice(0)
  }

  [Symbol.dispose](): void {
    this.memory.close()
  }

  /** Rings that wake themselves for ever: a chain that cannot be sent, a frame without room. */
  readonly #spinning = new Set<FakeRing>()

  #update(iova: bigint, size: bigint, addr: bigint, perm: number): number {
    if (size === 0n && !this.#bugs.has('zero-size-update')) return EINVAL
    if (this.#iotlb === undefined) return EFAULT
    const last = iova + size - 1n
    if (last > MASK64 || addr + size - 1n > MASK64) return EFAULT
    if ((perm & 3) !== 0 && addr + size > TASK_SIZE) return EFAULT
    this.#forgetCaches()
    this.#iotlb.add({ start: iova, last, addr, perm })
    for (const ring of this.#iotlb.answered(iova, last)) this.#ready.add(ring)
    return MESSAGE_BYTES
  }

  #invalidate(iova: bigint, size: bigint): number {
    if (this.#iotlb === undefined) return EFAULT
    this.#forgetCaches()
    this.#iotlb.remove(iova, (iova + size - 1n) & MASK64)
    return MESSAGE_BYTES
  }

  #transmit(ring: FakeRing): void {
    if (!ring.backend || !ring.prefetch()) return
    ring.disableNotify()
    ring.armed = false
    const heads: { id: number; length: number }[] = []
    for (;;) {
      if (heads.length === BATCH) ring.complete(heads.splice(0))
      const taken = ring.take(MOST_PIECES)
      if (typeof taken === 'number') break
      if (taken === undefined) {
        if (!ring.enableNotify()) break
        ring.disableNotify()
        continue
      }
      const length = total(taken.out)
      if (taken.in.length > 0 || length === 0) {
        ring.errors++
        break
      }
      if (length < HEADER) {
        ring.putBack(1)
        this.#spinning.add(ring)
        break
      }
      this.#send(ring, taken, length)
      heads.push({ id: taken.head, length: 0 })
    }
    ring.complete(heads)
  }

  #send(ring: FakeRing, { out }: Taken, length: number): void {
    if (length < HEADER + 14 || length > 4096) return
    const frame = ring.read(out, HEADER, length - HEADER)
    if (frame?.[12] === 0x88 && frame[13] === 0xb5) this.#out.push(frame)
  }

  #receive(ring: FakeRing): void {
    if (!ring.backend || !ring.prefetch()) return
    ring.disableNotify()
    ring.armed = false
    const heads: { id: number; length: number }[] = []
    for (let idle = 0; idle < IDLE_TURNS;) {
      const outcome = this.#receiveOne(ring, heads)
      if (outcome === 'stop') break
      idle = outcome === 'again' ? idle + 1 : 0
      // With the mistake, buffers that are too few for a frame are looked at again and again.
      if (idle === IDLE_TURNS) this.#spinning.add(ring)
      if (heads.length > BATCH) ring.complete(heads.splice(0))
    }
    ring.complete(heads)
  }

  /** One frame, if its buffers are there. */
  #receiveOne(ring: FakeRing, heads: { id: number; length: number }[]): 'taken' | 'again' | 'stop' {
    const frame = this.#waiting.at(0)
    if (frame === undefined) {
      ring.armed = true
      return 'stop'
    }
    const taken = this.#buffers(ring, HEADER + frame.length)
    if (taken === 'failed') return 'stop'
    if (taken === 'none') {
      if (!ring.enableNotify()) return 'stop'
      ring.disableNotify()
      return 'again'
    }
    this.#waiting.shift()
    if (taken === 'overrun') return 'taken'
    const pieces = taken.flatMap((each) => each.in)
    this.#place(ring, pieces, frame, taken.length)
    let left = HEADER + frame.length
    for (const { head, in: room } of taken) {
      const length = Math.min(left, total(room))
      heads.push({ id: head, length })
      left -= length
    }
    return 'taken'
  }

  /**
   * get_rx_bufs: as many chains as a frame needs. What is wrong with one costs the first of them.
   */
  #buffers(ring: FakeRing, bytes: number): readonly Taken[] | 'none' | 'failed' | 'overrun' {
    const mergeable = hasFeature(this.#acknowledged, 'VIRTIO_NET_F_MRG_RXBUF')
    const all: Taken[] = []
    let pieces = 0
    for (let left = bytes; left > 0 && all.length < (mergeable ? MOST_PIECES : 1);) {
      const taken = pieces >= MOST_PIECES ? EINVAL : ring.take(MOST_PIECES - pieces)
      if (typeof taken === 'number' || taken === undefined) {
        ring.putBack(all.length)
        return taken === undefined ? 'none' : 'failed'
      }
      if (taken.out.length > 0 || taken.in.length === 0) {
        ring.errors++
        ring.putBack(all.length)
        return 'failed'
      }
      all.push(taken)
      pieces += taken.in.length
      left -= total(taken.in)
    }
    if (all.reduce((sum, { in: room }) => sum + total(room), 0) >= bytes) return all
    ring.putBack(all.length)
    return 'overrun'
  }

  /**
   * tun writes its header and the frame; vhost adds the count, and nobody writes what is between.
   */
  #place(ring: FakeRing, pieces: readonly Piece[], frame: Uint8Array, buffers: number): void {
    ring.scatter(pieces, 0, new Uint8Array(BUFFER_COUNT))
    ring.scatter(pieces, HEADER, frame)
    if (hasFeature(this.#acknowledged, 'VIRTIO_NET_F_MRG_RXBUF')) {
      ring.scatter(pieces, BUFFER_COUNT, new Uint8Array([buffers & 0xff, buffers >> 8]))
    }
    if (hasFeature(this.#acknowledged, 'VHOST_F_LOG_ALL')) {
      this.#logged(pieces, HEADER + frame.length)
    }
  }

  /** log_write_hva: every page of every region of the memory table that holds the bytes. */
  #logged(pieces: readonly Piece[], bytes: number): void {
    let left = BigInt(bytes)
    for (const { hva, length } of pieces) {
      const used = BigInt(length) < left ? BigInt(length) : left
      left -= used
      for (const line of this.#lines ?? []) {
        if (hva < line.hva || hva >= line.hva + line.bytes || used === 0n) continue
        this.#mark(line.gpa + hva - line.hva, used)
      }
      if (this.#bugs.has('log-by-iova') && used > 0n) this.#mark(this.#iovaOf(hva), used)
    }
  }

  #mark(at: bigint, bytes: bigint): void {
    for (let page = at / LOG_PAGE; page <= (at + bytes - 1n) / LOG_PAGE; page++) {
      const byte = this.#bytes(this.#log + page / 8n, 1)
      if (byte !== undefined) byte[0] |= 1 << Number(page % 8n)
    }
  }

  #iovaOf(hva: bigint): bigint {
    const map = this.#iotlb?.maps.find(
      ({ start, last, addr }) => hva >= addr && hva <= addr + (last - start),
    )
    return map === undefined ? 0n : map.start + hva - map.addr
  }

  #bytes(hva: bigint, length: number): Uint8Array | undefined {
    const at = hva - this.memory.hva(0)
    if (at < 0n || at + BigInt(length) > BigInt(this.memory.bytes)) return undefined
    return this.memory.view(Number(at), length)
  }

  #newTable(): void {
    const made = new FakeIotlb<FakeRing>(this.limit, this.#bugs)
    if (this.#iotlb !== undefined) {
      made.unread = this.#iotlb.unread
      made.pending = this.#iotlb.pending
    }
    this.#setTable(made)
  }

  #setTable(iotlb: FakeIotlb<FakeRing> | undefined): void {
    this.#lists = this.#iotlb?.unread ?? []
    this.#iotlb = iotlb
    for (const ring of this.#rings) ring.iotlb = iotlb
    if (!this.#bugs.has('cache-outlives-table')) this.#forgetCaches()
  }

  #moved(ring: FakeRing): void {
    if (!this.#bugs.has('cache-outlives-move')) ring.forgetCache()
  }

  #forgetAddresses(): void {
    for (const ring of this.#rings) {
      ring.desc = 0n
      ring.avail = 0n
      ring.used = 0n
    }
  }

  #forgetCaches(): void {
    for (const ring of this.#rings) ring.forgetCache()
  }

  #forgetMessages(): void {
    this.#lists = []
    this.#iotlb?.forgetMessages()
  }
}

function total(pieces: readonly Piece[]): number {
  return pieces.reduce((sum, { length }) => sum + length, 0)
}

/**
 * A device with nothing between it and the case, and a driver played by hand.
 *
 * Rings are at made-up iovas, each part on pages of its own, and nothing is mapped that the case
 * did not map. Every method is one call of the device or one store to memory.
 */
import { accessBits } from '../../address'
import type { Access } from '../../address'
import { SystemError } from '../../errors'
import type { GuestMemory } from '../../memory/guest-memory'
import {
  MESSAGE_BYTES,
  VHOST_IOTLB_INVALIDATE,
  VHOST_IOTLB_UPDATE,
  decodeMessage,
  encodeMessage,
} from '../../vhost/uapi'
import type { VhostMessage } from '../../vhost/uapi'
import { DriverQueue } from '../../virtio/driver-queue'
import { features } from '../../virtio/net'
import { USED } from '../../virtio/ring-layout'
import type { BareDevice, MemoryLine } from './bare-device'

export const RX = 0
export const TX = 1
export const PAGE = 4096
export const HEADER = 12
/** Where buffers are: as iova, and in guest memory. */
export const BUFFERS = 0x2000_0000n
export const BUFFERS_GPA = 0x10_0000
/** The room of each ring part, as iova and as gpa. */
export const ROOM = 0x1_0000
export const WITHOUT_IOTLB = features('VIRTIO_F_VERSION_1', 'VIRTIO_NET_F_MRG_RXBUF')
export const FEATURES = WITHOUT_IOTLB | features('VIRTIO_F_ACCESS_PLATFORM')

const PARTS = ['desc', 'avail', 'used'] as const
export type Part = (typeof PARTS)[number]
const PART_ACCESS = { desc: 'read', avail: 'read', used: 'readwrite' } as const

export interface Question {
  readonly iova: bigint
  readonly access: number
}

export interface BenchOptions {
  readonly features?: bigint
  readonly memory?: readonly MemoryLine[]
}

export class Bench implements Disposable {
  readonly memory: GuestMemory
  readonly #rings: BenchRing[] = []

  /** Takes the device over, and closes it. */
  constructor(
    readonly device: BareDevice,
    options: BenchOptions = {},
  ) {
    this.memory = device.memory
    done(device.setFeatures(options.features ?? FEATURES))
    done(device.setMemory(options.memory ?? []))
  }

  /** A ring of `size` at its place: known to the device, with nothing mapped and no backend. */
  ring(index: number, size = 256): BenchRing {
    const ring = new BenchRing(this, index, size)
    this.#rings.push(ring)
    return ring
  }

  /** A TX or RX ring with its parts mapped and its backend set. */
  runningRing(index: number, size = 256): BenchRing {
    const ring = this.ring(index, size)
    ring.map()
    ring.start()
    this.flush()
    return ring
  }

  /** An UPDATE as it stands: neither aligned nor checked here. @returns 72, or -errno */
  update(iova: bigint, bytes: bigint | number, gpa: number, access: Access): number {
    return this.write({
      type: VHOST_IOTLB_UPDATE,
      iova,
      size: BigInt(bytes),
      uaddr: this.memory.hva(gpa),
      perm: accessBits(access),
    })
  }

  /** Maps `pages` of the buffers, from page `first` on. */
  mapBuffers(first: number, pages: number, access: Access): void {
    const bytes = first * PAGE
    done(this.update(BUFFERS + BigInt(bytes), pages * PAGE, BUFFERS_GPA + bytes, access))
  }

  invalidate(iova: bigint, bytes: bigint | number): number {
    return this.write({ type: VHOST_IOTLB_INVALIDATE, iova, size: BigInt(bytes) })
  }

  /** A full flush in two halves, which every kernel takes (K10). */
  invalidateAll(): void {
    for (const half of [0n, 1n << 63n]) done(this.invalidate(half, 1n << 63n))
  }

  /** Any message, of any length. */
  write(message: Partial<VhostMessage>, length = MESSAGE_BYTES): number {
    const bytes = encodeMessage({ version: this.device.messageVersion, ...message })
    return this.device.write(bytes, length)
  }

  /** Reads all questions of the device. */
  questions(): Question[] {
    const all: Question[] = []
    const bytes = new Uint8Array(MESSAGE_BYTES)
    while (this.device.read(bytes) === MESSAGE_BYTES) {
      const { iova, perm } = decodeMessage(bytes)
      all.push({ iova, access: perm })
    }
    return all
  }

  /** The same in words: `'read 3'` for a read of buffer page 3, `'avail 1'` for part of ring 1. */
  asked(): string[] {
    return this.questions().map(({ iova, access }) => this.place(iova, access))
  }

  place(iova: bigint, access: number): string {
    for (const ring of this.#rings) {
      const part = ring.partAt(iova)
      if (part !== undefined) return part
    }
    const way = ['nothing', 'read', 'write', 'both'][access]
    const at = iova - BUFFERS
    if (at < 0n || at >= 0x1000_0000n) return `${way} 0x${iova.toString(16)}`
    const offset = at % BigInt(PAGE)
    const where = `${way} ${(at / BigInt(PAGE)).toString()}`
    return offset === 0n ? where : `${where}+0x${offset.toString(16)}`
  }

  /** Waits for the worker, and for what its work led to. */
  flush(): void {
    this.device.flush()
  }

  [Symbol.dispose](): void {
    this.device[Symbol.dispose]()
  }
}

export class BenchRing {
  readonly queue: DriverQueue
  readonly desc: bigint
  readonly avail: bigint
  readonly used: bigint
  /** Of the first part; the others follow at `ROOM`. */
  readonly gpa: number

  constructor(
    private readonly bench: Bench,
    readonly index: number,
    readonly size: number,
  ) {
    const base = 0x1000_0000n + BigInt(index) * 0x100_0000n
    this.desc = base
    this.avail = base + BigInt(ROOM)
    this.used = base + 2n * BigInt(ROOM)
    this.gpa = index * 3 * ROOM
    const [desc, avail, used] = [0, 1, 2].map((part) => BigInt(this.gpa + part * ROOM))
    this.queue = new DriverQueue(bench.memory, { size, desc, avail, used })
    this.place()
  }

  /** Tells the device where the ring is: always its iovas, whatever was negotiated. */
  place(base = 0): void {
    const { index, size, desc, avail, used } = this
    const { device } = this.bench
    done(device.setSize(index, size))
    done(device.setBase(index, base))
    done(device.setAddresses(index, { size, desc, avail, used }))
  }

  /** Maps the three parts, each in one entry, with what is needed of it. */
  map(): void {
    for (const part of PARTS) this.mapPart(part)
  }

  mapPart(part: Part, access: Access = PART_ACCESS[part]): void {
    done(this.bench.update(this[part], ROOM, this.gpaOf(part), access))
  }

  gpaOf(part: Part): number {
    return this.gpa + PARTS.indexOf(part) * ROOM
  }

  /** Which part an iova is in, in words. */
  partAt(iova: bigint): string | undefined {
    const part = PARTS.find((name) => iova >= this[name] && iova < this[name] + BigInt(ROOM))
    if (part === undefined) return undefined
    const offset = iova - this[part]
    return `${part} ${this.index}` + (offset === 0n ? '' : `+0x${offset.toString(16)}`)
  }

  /** Maps the three parts of a ring that has asked for them, and lets it go on. */
  mapAgain(): void {
    this.map()
    this.bench.flush()
    this.bench.questions()
    this.kick()
  }

  /** NET_SET_BACKEND. @throws SystemError */
  start(): void {
    done(this.bench.device.setBackend(this.index, true))
  }

  /** The same, by its code: `'ok'`, `'EFAULT'`. */
  tryStart(): string {
    return codeOf(this.bench.device.setBackend(this.index, true))
  }

  stop(): void {
    done(this.bench.device.setBackend(this.index, false))
  }

  /** Offers a buffer of one descriptor, visible at once. */
  push(iova: bigint, length: number, writable = this.index === RX): void {
    const token = this.queue.availIndex
    if (!this.queue.add([{ address: iova, length, writable }], token)) throw new Error('ring full')
    this.queue.publish()
  }

  /** Offers a whole buffer page. */
  offer(page: number, length = HEADER + 60): void {
    this.push(BUFFERS + BigInt(page * PAGE), length)
  }

  /** A frame in buffer page `page`, with an empty header before it, offered to be sent. */
  send(page: number, frame: Uint8Array): void {
    const at = page * PAGE
    const bytes = this.bench.memory.view(BUFFERS_GPA + at, HEADER + frame.length)
    bytes.fill(0, 0, HEADER)
    bytes.set(frame, HEADER)
    this.push(BUFFERS + BigInt(at), HEADER + frame.length)
  }

  /** Kicks, and waits until the device has done what it can. */
  kick(): void {
    this.kickOnly()
    this.bench.flush()
  }

  kickOnly(): void {
    this.bench.device.kick(this.index)
  }

  /** Chains that the device completed. */
  get completed(): number {
    return this.bench.memory.loadAcquireU16(this.gpaOf('used') + USED.idx)
  }

  get usedFlags(): number {
    return this.bench.memory.u16(this.gpaOf('used') + USED.flags)
  }

  set usedFlags(flags: number) {
    this.bench.memory.setU16(this.gpaOf('used') + USED.flags, flags)
  }

  /** How often the error eventfd ticked since the last time. */
  errors(): number {
    return this.bench.device.errors(this.index)
  }
}

/** The code of a refusal, `'ok'` for none. */
export function codeOf(result: number): string {
  return result < 0 ? new SystemError(result, 'call').code : 'ok'
}

/** @throws Error for what the device refused */
export function done(result: number): void {
  if (result < 0) throw new SystemError(result, 'call')
}

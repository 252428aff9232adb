/**
 * A vhost-net device with nothing between it and the test: the kernel as an oracle.
 *
 * Rings are at made-up iovas, each part on pages of its own, and nothing is mapped that the test
 * did not map. Every method is one call of the kernel or one store to memory. `flush()` waits until
 * the worker has nothing left to do (drivers/vhost/net.c, vhost_net_ioctl: it flushes after each
 * ioctl of vhost_dev_ioctl, of which SET_LOG_FD changes least), so that no test has to sleep.
 */
import { SystemError } from '../../lib/errors'
import { accessBits } from '../../lib/address'
import type { Access } from '../../lib/address'
import { GuestMemory } from '../../lib/memory/guest-memory'
import { native } from '../../lib/native'
import type { Descriptor } from '../../lib/native'
import { KernelChannel } from '../../lib/vhost/kernel-channel'
import type { Tap } from '../../lib/vhost/tap'
import {
  IOCTLS,
  STRUCTS,
  VHOST_IOTLB_INVALIDATE,
  VHOST_IOTLB_UPDATE,
  encodeMessage,
  encodeStruct,
} from '../../lib/vhost/uapi'
import type { IoctlName, StructLayout, StructValues, VhostMessage } from '../../lib/vhost/uapi'
import { VhostDevice } from '../../lib/vhost/vhost-device'
import { features } from '../../lib/virtio/net'
import { DriverQueue } from '../../lib/virtio/driver-queue'
import { USED } from '../../lib/virtio/ring-layout'
import { quietTap } from './quiet-tap'

export const RX = 0
export const TX = 1
export const PAGE = 4096
export const HEADER = 12
/** Where buffers are: as iova, and in guest memory. */
export const BUFFERS = 0x2000_0000n
export const BUFFERS_GPA = 0x10_0000
const MEMORY = 4 * 1024 * 1024
/** The room of each ring part, as iova and as gpa. */
const ROOM = 0x1_0000
export const WITHOUT_IOTLB = features('VIRTIO_F_VERSION_1', 'VIRTIO_NET_F_MRG_RXBUF')
export const FEATURES = WITHOUT_IOTLB | features('VIRTIO_F_ACCESS_PLATFORM')

const PART_ROOM = { desc: 0, avail: 1, used: 2 } as const
const PART_ACCESS = { desc: 'read', avail: 'read', used: 'readwrite' } as const

export interface Question {
  readonly iova: bigint
  readonly access: number
}

export class Bench implements Disposable {
  readonly memory = GuestMemory.allocate(MEMORY)
  readonly device: VhostDevice
  readonly channel: KernelChannel
  readonly tap: Tap
  readonly #pin: Disposable
  readonly #rings: BenchRing[] = []

  constructor(bits = FEATURES) {
    this.device = VhostDevice.open()
    this.#pin = this.memory.pin(this, this.device.descriptor)
    this.device.setFeatures(bits)
    this.device.setMemory(undefined)
    this.channel = new KernelChannel({
      descriptor: this.device.descriptor,
      version: this.device.messageVersion,
    })
    this.tap = quietTap()
  }

  /** A ring of `size` at its place: known to the kernel, with nothing mapped and no backend. */
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

  /** Any message, of any length. */
  write(message: Partial<VhostMessage>, length = 72): number {
    const bytes = encodeMessage({ version: this.device.messageVersion, ...message })
    return native().write(this.device.descriptor, bytes, 0, length)
  }

  /** Reads all questions of the device. */
  questions(): Question[] {
    const all: Question[] = []
    for (let read = this.channel.drain(); read.length > 0; read = this.channel.drain()) {
      all.push(...read.map(({ iova, access }) => ({ iova, access })))
    }
    return all
  }

  /** Waits for the worker, and for what its work led to. */
  flush(): void {
    const none = encodeStruct(STRUCTS.s32, { value: -1 })
    for (let i = 0; i < 2; i++) {
      done(native().ioctl(this.device.descriptor, IOCTLS.VHOST_SET_LOG_FD.request, none))
    }
  }

  [Symbol.dispose](): void {
    this.channel.close()
    this.device.close()
    for (const ring of this.#rings) ring.close()
    this.#pin[Symbol.dispose]()
    this.tap.close()
    this.memory.close()
  }
}

export class BenchRing {
  readonly queue: DriverQueue
  readonly desc: bigint
  readonly avail: bigint
  readonly used: bigint
  /** Of the first part; the others follow at `ROOM`. */
  readonly gpa: number
  readonly #events: {
    readonly kick: Descriptor
    readonly call: Descriptor
    readonly error: Descriptor
  }

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
    this.#events = { kick: eventfd(), call: eventfd(), error: eventfd() }
    this.place()
  }

  /** Tells the kernel where the ring is: always its iovas, whatever was negotiated. */
  place(base = 0): void {
    const { index, size, bench } = this
    const call = (name: IoctlName, layout: StructLayout, values: StructValues): void => {
      const argument = encodeStruct(layout, { index, ...values })
      done(native().ioctl(bench.device.descriptor, IOCTLS[name].request, argument))
    }
    call('VHOST_SET_VRING_NUM', STRUCTS.vhost_vring_state, { num: size })
    call('VHOST_SET_VRING_BASE', STRUCTS.vhost_vring_state, { num: base })
    call('VHOST_SET_VRING_ADDR', STRUCTS.vhost_vring_addr, {
      desc_user_addr: this.desc,
      avail_user_addr: this.avail,
      used_user_addr: this.used,
    })
    bench.device.setEvents(index, this.#events)
  }

  /** Maps the three parts, each in one entry, with what is needed of it. */
  map(): void {
    for (const part of ['desc', 'avail', 'used'] as const) this.mapPart(part)
  }

  mapPart(part: 'desc' | 'avail' | 'used', access: Access = PART_ACCESS[part]): void {
    const gpa = this.gpa + PART_ROOM[part] * ROOM
    done(this.bench.update(this[part], ROOM, gpa, access))
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
    this.bench.device.setBackend(this.index, this.bench.tap.queues[0])
  }

  /** The same, by its code: `'ok'`, `'EFAULT'`. */
  tryStart(): string {
    return outcome(() => {
      this.start()
    })
  }

  stop(): void {
    this.bench.device.setBackend(this.index, undefined)
  }

  /** Offers a buffer of one descriptor, visible at once. */
  push(iova: bigint, length: number, writable = this.index === RX): void {
    const token = this.queue.availIndex
    if (!this.queue.add([{ address: iova, length, writable }], token)) throw new Error('ring full')
    this.queue.publish()
  }

  /** A frame in buffer page `page`, with an empty header before it, offered to be sent. */
  send(page: number, frame: Uint8Array): void {
    const at = page * PAGE
    const bytes = this.bench.memory.view(BUFFERS_GPA + at, HEADER + frame.length)
    bytes.fill(0, 0, HEADER)
    bytes.set(frame, HEADER)
    this.push(BUFFERS + BigInt(at), HEADER + frame.length)
  }

  /** Kicks, and waits until the kernel has done what it can. */
  kick(): void {
    this.kickOnly()
    this.bench.flush()
  }

  kickOnly(): void {
    native().write(this.#events.kick, Uint8Array.of(1, 0, 0, 0, 0, 0, 0, 0), 0, 8)
  }

  /** Chains that the kernel completed. */
  get completed(): number {
    return this.bench.memory.loadAcquireU16(this.gpa + 2 * ROOM + USED.idx)
  }

  get usedFlags(): number {
    return this.bench.memory.u16(this.gpa + 2 * ROOM + USED.flags)
  }

  set usedFlags(flags: number) {
    this.bench.memory.setU16(this.gpa + 2 * ROOM + USED.flags, flags)
  }

  /** How often the error eventfd ticked since the last time. */
  errors(): number {
    const count = new Uint8Array(8)
    return native().read(this.#events.error, count, 0, 8) === 8 ? count[0] : 0
  }

  close(): void {
    for (const descriptor of Object.values(this.#events)) descriptor.close()
  }
}

/** The code of the refusal, or 'ok'. */
export function outcome(call: () => void): string {
  try {
    call()
    return 'ok'
  } catch (error) {
    if (error instanceof SystemError) return error.code
    throw error
  }
}

/** @throws Error for what the kernel refused */
export function done(result: number): void {
  if (result < 0) throw new SystemError(result, 'write')
}

function eventfd(): Descriptor {
  const descriptor = native().eventfd(0)
  if (typeof descriptor === 'number') throw new SystemError(descriptor, 'eventfd')
  return descriptor
}

/**
 * A vhost-net device with its rings mapped and nothing else: the test plays the driver by hand.
 *
 * Buffers are pages that it maps, or not, and names in descriptors, mapped or not. `settle()` waits
 * until kernel and event loop have nothing left to do.
 */
import { openSync } from 'node:fs'
import { constants } from 'node:fs'
import { setTimeout as pause, setImmediate as turn } from 'node:timers/promises'
import { MiB, PAGE_SIZE } from '../../lib/address'
import type { Access, AccessBits, Gpa, Iova } from '../../lib/address'
import { IntelIommuDriver } from '../../lib/guest/intel-iommu-driver'
import type { IntelIommuDriverOptions } from '../../lib/guest/intel-iommu-driver'
import { IntelIommu } from '../../lib/iommu/intel/intel-iommu'
import type { AddressSpace } from '../../lib/memory/address-space'
import { GuestMemory } from '../../lib/memory/guest-memory'
import { native } from '../../lib/native'
import type { Descriptor } from '../../lib/native'
import { FakeAddressSpace } from '../../lib/testing/fake-address-space'
import { KernelChannel } from '../../lib/vhost/kernel-channel'
import { IOCTLS, STRUCTS, encodeStruct } from '../../lib/vhost/uapi'
import { VhostNet } from '../../lib/vhost/net'
import type { VhostNetOptions } from '../../lib/vhost/net'
import type { Tap } from '../../lib/vhost/tap'
import { DriverQueue } from '../../lib/virtio/driver-queue'
import { features } from '../../lib/virtio/net'
import { ringLayout } from '../../lib/virtio/ring-layout'
import type { RingAddresses } from '../../lib/virtio/ring-layout'
import { PacketSocket } from './packet-socket'
import { quietTap } from './quiet-tap'
import { REQUESTER } from './station'

export const RX = 0
export const TX = 1
export const HEADER = 12
export const RING_SIZE = 64
const RINGS_GPA = 48 * MiB
const BUFFERS_GPA = 56 * MiB

/** Whoever maps for the device. */
export interface Guest {
  /** Where it is missing, the device uses gpas. */
  readonly addressSpace?: AddressSpace
  map(gpa: number, bytes: number, access: Access): bigint
  /** When it returns, the device has let go. */
  unmap(iova: bigint): void
  close(): void
}

/** Tables in guest memory, a VT-d unit, and a strict driver for it. */
export class IntelGuest implements Guest {
  readonly iommu: IntelIommu
  readonly driver: IntelIommuDriver
  readonly addressSpace: AddressSpace
  faults = 0

  constructor(memory: GuestMemory, options: Partial<IntelIommuDriverOptions> = {}) {
    this.iommu = new IntelIommu(memory)
    this.iommu.on('fault', () => this.faults++)
    this.driver = new IntelIommuDriver(this.iommu, memory, {
      requester: REQUESTER,
      mode: 'strict',
      ...options,
    })
    this.driver.enable()
    this.addressSpace = this.iommu.addressSpace(REQUESTER)
  }

  map(gpa: number, bytes: number, access: Access): bigint {
    return this.driver.map(BigInt(gpa) as Gpa, bytes, access)
  }

  unmap(iova: bigint): void {
    this.driver.unmap(iova as Iova)
  }

  close(): void {
    this.driver.disable()
  }
}

/** Mappings without tables: iova is gpa plus an offset, and a change tells nobody by itself. */
export class PlainGuest implements Guest {
  readonly addressSpace = new FakeAddressSpace()

  map(gpa: number, bytes: number, access: Access): bigint {
    const first = gpa / PAGE_SIZE + 0x10_0000
    const last = first + Math.ceil(bytes / PAGE_SIZE) - 1
    const bits = { none: 0, read: 1, write: 2, readwrite: 3 } as const
    this.addressSpace.mapPages(first, last, gpa / PAGE_SIZE, bits[access])
    return BigInt(first) << 12n
  }

  unmap(iova: bigint): void {
    const page = Number(iova >> 12n)
    this.addressSpace.unmapPages(page, page)
    this.addressSpace.invalidatePages(page, page)
  }

  close(): void {
    this.addressSpace.unmapPages(0, 2 ** 52 - 1)
  }
}

/** No IOMMU: what the device is told is where it is. */
export const physicalGuest: Guest = {
  map: BigInt,
  unmap: () => undefined,
  close: () => undefined,
}

export interface RigOptions extends Partial<VhostNetOptions> {
  readonly mergeable?: boolean
  readonly ringSize?: number
  /** Used rings have pages of their own, on which the guest writes nothing. */
  readonly usedApart?: boolean
}

export class Rig<G extends Guest> implements AsyncDisposable {
  readonly nic: VhostNet
  readonly rings: readonly [RingAddresses, RingAddresses]
  readonly #queues: readonly [DriverQueue, DriverQueue]
  readonly #descriptor: Descriptor
  readonly completed = [0, 0]
  readonly #offered = [0, 0]

  private constructor(
    readonly guest: G,
    readonly memory: GuestMemory,
    readonly tap: Tap,
    readonly packets: PacketSocket,
    options: Partial<VhostNetOptions>,
    mergeable: boolean,
    readonly ringSize: number,
    usedApart: boolean,
  ) {
    const fd = openSync('/dev/vhost-net', constants.O_RDWR)
    const descriptor = native().duplicate(fd)
    if (typeof descriptor === 'number') throw new Error(`duplicate: ${descriptor}`)
    this.#descriptor = descriptor
    const { addressSpace } = guest
    const translated = addressSpace === undefined ? {} : { addressSpace }
    this.nic = VhostNet.open({ memory, ...translated, backend: tap, fd, ...options })
    this.nic.setFeatures(
      features(
        'VIRTIO_F_VERSION_1',
        ...(addressSpace === undefined ? [] : (['VIRTIO_F_ACCESS_PLATFORM'] as const)),
        ...(mergeable ? (['VIRTIO_NET_F_MRG_RXBUF'] as const) : []),
      ),
    )
    const made = [RX, TX].map((index) => this.#place(index, usedApart))
    this.#queues = [made[RX].queue, made[TX].queue]
    this.rings = [made[RX].ring, made[TX].ring]
  }

  /** Started, with both rings mapped and no buffer. */
  static async open<G extends Guest>(
    guestOf: (memory: GuestMemory) => G,
    given: RigOptions = {},
  ): Promise<Rig<G>> {
    const { mergeable = true, ringSize = RING_SIZE, usedApart = false, ...options } = given
    const tap = quietTap()
    const packets = await PacketSocket.open(tap.name)
    const memory = GuestMemory.allocate(64 * MiB)
    const guest = guestOf(memory)
    const rig = new Rig(guest, memory, tap, packets, options, mergeable, ringSize, usedApart)
    rig.nic.start()
    await rig.settle()
    return rig
  }

  /** The gpa of a buffer page. */
  gpa(page: number): number {
    return BUFFERS_GPA + page * PAGE_SIZE
  }

  /** The first page of a queue's ring, by gpa. */
  ringPage(queue: number): number {
    return (RINGS_GPA + queue * MiB) / PAGE_SIZE
  }

  /** Bytes of a buffer page. */
  bytes(page: number): Uint8Array {
    return this.memory.view(this.gpa(page), PAGE_SIZE)
  }

  map(page: number, access: Access): bigint {
    return this.guest.map(this.gpa(page), PAGE_SIZE, access)
  }

  /** A frame with an empty header before it, at the start of a buffer page. */
  write(page: number, frame: Uint8Array): number {
    this.bytes(page).fill(0, 0, HEADER).set(frame, HEADER)
    return HEADER + frame.length
  }

  /** Offers one descriptor, mapped or not, and kicks. */
  offer(queue: number, iova: bigint, length: number): void {
    this.offerAll(queue, [iova], length)
  }

  /** Offers one descriptor for each address, all at once, and kicks. */
  offerAll(queue: number, iovas: readonly bigint[], length: number): void {
    const writable = queue === RX
    for (const address of iovas) {
      if (!this.#queues[queue].add([{ address, length, writable }], 0)) throw new Error('full')
    }
    this.#offered[queue] += iovas.length
    this.nic.offering(queue, this.#offered[queue] & 0xffff)
    this.#queues[queue].publish()
    this.nic.kick(queue)
  }

  /** Offers one descriptor, and tells nobody. */
  offerSilently(queue: number, iova: bigint, length: number, writable = queue === RX): void {
    if (!this.#queues[queue].add([{ address: iova, length, writable }], 0)) throw new Error('full')
    this.#offered[queue]++
    this.#queues[queue].publish()
  }

  /** Waits, with `settle()`, for what somebody else does in his own time. @throws Error if not */
  async until(done: () => boolean, within = 20_000): Promise<void> {
    const end = Date.now() + within
    while (!done()) {
      if (Date.now() > end) throw new Error(`not within ${within} ms: ${done.toString()}`)
      await pause(2)
      await this.settle()
    }
  }

  /** A grant to the device behind the back of everybody, as one more writer of the same file. */
  grantBehind(iova: bigint, page: number, access: AccessBits): void {
    const pin = this.memory.pin(this, this.#descriptor)
    const channel = new KernelChannel({ descriptor: this.#descriptor, version: 2 })
    const hvaPage = Number(this.memory.hva(this.gpa(page)) >> 12n)
    channel.updatePages(Number(iova >> 12n), Number(iova >> 12n), hvaPage, access)
    pin[Symbol.dispose]()
  }

  /** Lets the descriptor that names an address name another one. It must be waiting, not at work. */
  redirect(queue: number, from: bigint, to: bigint): void {
    const { u8, start } = this.memory.find(RINGS_GPA)!
    const at = RINGS_GPA + queue * MiB - start + ringLayout(this.ringSize).desc
    const words = new BigUint64Array(u8.buffer, at, this.ringSize * 2)
    for (let i = 0; i < words.length; i += 2) {
      if (words[i] === from) Atomics.store(words, i, to)
    }
  }

  /** Until the worker is idle, and what it asked for is answered; collects what was completed. */
  async settle(): Promise<void> {
    const none = encodeStruct(STRUCTS.s32, { value: -1 })
    for (let round = 0; round < 6; round++) {
      for (let i = 0; i < 3; i++) await turn()
      native().ioctl(this.#descriptor, IOCTLS.VHOST_SET_LOG_FD.request, none)
    }
    this.collect()
  }

  /** Takes what was completed. */
  collect(): void {
    for (const index of [RX, TX]) while (this.#queues[index].collect()) this.completed[index]++
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.nic.close()
    this.#descriptor.close()
    this.guest.close()
    this.memory.close()
    await this.packets[Symbol.asyncDispose]()
    this.tap.close()
  }

  #place(
    index: number,
    usedApart: boolean,
  ): { readonly queue: DriverQueue; readonly ring: RingAddresses } {
    const layout = ringLayout(this.ringSize)
    const gpa = RINGS_GPA + index * MiB
    const used = usedApart ? Math.ceil(layout.bytes / PAGE_SIZE) * PAGE_SIZE : layout.used
    const parts = (base: bigint): RingAddresses => ({
      size: this.ringSize,
      desc: base + BigInt(layout.desc),
      avail: base + BigInt(layout.avail),
      used: base + BigInt(used),
    })
    const queue = new DriverQueue(this.memory, parts(BigInt(gpa)))
    const ring = parts(this.guest.map(gpa, used + layout.usedBytes, 'readwrite'))
    this.nic.setQueue(index, ring)
    return { queue, ring }
  }
}

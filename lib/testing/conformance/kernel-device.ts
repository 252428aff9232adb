/**
 * The kernel's vhost-net behind the bare interface: one system call for each call, and a tap.
 *
 * The host's side of the tap needs no helper: an ARP probe written to the tap's own descriptor is
 * answered by the kernel's stack at once, so the answer is there when the write returns; and a
 * packet socket sees what the device sent. `flush()` waits for the worker (drivers/vhost/net.c,
 * vhost_net_ioctl flushes after each ioctl of vhost_dev_ioctl, of which SET_LOG_FD changes least).
 */
import { existsSync, writeFileSync } from 'node:fs'
import { release } from 'node:os'
import { MiB } from '../../address'
import { SystemError } from '../../errors'
import { GuestMemory } from '../../memory/guest-memory'
import { raw } from '../../raw'
import type { Descriptor } from '../../raw'
import { setAddress } from '../../vhost/interface'
import { moduleParameter } from '../../vhost/module-parameters'
import { Tap, VNET_HEADER_BYTES } from '../../vhost/tap'
import { IOCTLS, STRUCTS, encodeStruct } from '../../vhost/uapi'
import type { IoctlName, StructLayout, StructValues } from '../../vhost/uapi'
import { VhostDevice } from '../../vhost/vhost-device'
import type { RingEvents } from '../../vhost/vhost-device'
import type { RingAddresses } from '../../virtio/ring-layout'
import { QUIET_ADDRESS, QUIET_MAC, arp, station } from './bare-device'
import type { BareDevice, MemoryLine } from './bare-device'

const MEMORY = 4 * MiB
const AF_PACKET = 17
const SOCK_RAW_NONBLOCK = 3 | 0o4000
/** The EtherType for experiments (IEEE 802), in network order. */
const OUR_TYPE = 0xb588
const MOST_FRAME = 2048

export class KernelDevice implements BareDevice {
  readonly name = kernelName()
  readonly memory = GuestMemory.allocate(MEMORY)
  readonly limit = moduleParameter('vhost/max_iotlb_entries')
  readonly device: VhostDevice
  readonly tap: Tap
  readonly #pin: Disposable
  readonly #events: readonly [RingEvents, RingEvents]
  readonly #packets: Descriptor
  #stations = 0

  /** @throws SystemError where vhost-net, taps or CAP_NET_RAW are missing */
  constructor() {
    this.device = VhostDevice.open()
    this.#pin = this.memory.pin(this, this.device.descriptor)
    this.#events = [ringEvents(), ringEvents()]
    this.#bindEvents()
    this.tap = quietTap()
    this.#packets = raw.socket(AF_PACKET, SOCK_RAW_NONBLOCK, OUR_TYPE)
  }

  get features(): bigint {
    return this.device.features
  }

  get messageVersion(): 1 | 2 {
    return this.device.messageVersion
  }

  setFeatures(bits: bigint): number {
    return resultOf(() => {
      this.device.setFeatures(bits)
    })
  }

  setMemory(lines: readonly MemoryLine[]): number {
    const head = STRUCTS.vhost_memory.bytes
    const each = STRUCTS.vhost_memory_region.bytes
    const table = new Uint8Array(head + each * lines.length)
    table.set(encodeStruct(STRUCTS.vhost_memory, { nregions: lines.length }))
    for (const [i, { gpa, bytes, hva }] of lines.entries()) {
      const region = { guest_phys_addr: gpa, memory_size: bytes, userspace_addr: hva }
      table.set(encodeStruct(STRUCTS.vhost_memory_region, region), head + each * i)
    }
    return this.#call('VHOST_SET_MEM_TABLE', table)
  }

  setLogBase(hva: bigint): number {
    return this.#set('VHOST_SET_LOG_BASE', STRUCTS.u64, { value: hva })
  }

  setSize(index: number, num: number): number {
    return this.#set('VHOST_SET_VRING_NUM', STRUCTS.vhost_vring_state, { index, num })
  }

  setBase(index: number, num: number): number {
    return this.#set('VHOST_SET_VRING_BASE', STRUCTS.vhost_vring_state, { index, num })
  }

  setAddresses(index: number, { desc, avail, used }: RingAddresses): number {
    return this.#set('VHOST_SET_VRING_ADDR', STRUCTS.vhost_vring_addr, {
      index,
      desc_user_addr: desc,
      avail_user_addr: avail,
      used_user_addr: used,
    })
  }

  setBackend(ring: number, attached: boolean): number {
    return resultOf(() => {
      this.device.setBackend(ring, attached ? this.tap.queues[0] : undefined)
    })
  }

  resetOwner(): number {
    const result = resultOf(() => {
      this.device.reset()
    })
    this.#bindEvents()
    return result
  }

  renew(): void {
    this.resetOwner()
    const frame = new Uint8Array(MOST_FRAME)
    while (resultOf(() => raw.read(this.tap.queues[0], frame)) > 0);
    for (const ring of [0, 1]) this.errors(ring)
    this.sent()
    this.#stations = 0
  }

  write(bytes: Uint8Array, length = bytes.byteLength): number {
    return resultOf(() => raw.write(this.device.descriptor, bytes, length))
  }

  read(buffer: Uint8Array, length = buffer.byteLength): number {
    return resultOf(() => raw.read(this.device.descriptor, buffer, length))
  }

  kick(ring: number): void {
    raw.write(this.#events[ring].kick, Uint8Array.of(1, 0, 0, 0, 0, 0, 0, 0))
  }

  errors(ring: number): number {
    const count = new Uint8Array(8)
    const read = resultOf(() => raw.read(this.#events[ring].error, count))
    return read === 8 ? new DataView(count.buffer).getUint32(0, true) : 0
  }

  flush(): void {
    const none = encodeStruct(STRUCTS.s32, { value: -1 })
    for (let i = 0; i < 2; i++) this.#call('VHOST_SET_LOG_FD', none)
  }

  receive(count: number): void {
    for (let i = 0; i < count; i++) {
      const probe = new Uint8Array(VNET_HEADER_BYTES + 42)
      probe.set(arp(1, station(this.#stations++), []), VNET_HEADER_BYTES)
      raw.write(this.tap.queues[0], probe)
    }
  }

  sent(): Uint8Array[] {
    const frames: Uint8Array[] = []
    const buffer = new Uint8Array(MOST_FRAME)
    for (;;) {
      const length = resultOf(() => raw.read(this.#packets, buffer))
      if (length <= 0) return frames
      frames.push(buffer.slice(0, length))
    }
  }

  [Symbol.dispose](): void {
    this.device.close()
    for (const { kick, call, error } of this.#events) {
      for (const descriptor of [kick, call, error]) descriptor.close()
    }
    this.#packets.close()
    this.#pin[Symbol.dispose]()
    this.tap.close()
    this.memory.close()
  }

  #bindEvents(): void {
    for (const ring of [0, 1]) this.device.setEvents(ring, this.#events[ring])
  }

  #set(name: IoctlName, layout: StructLayout, values: StructValues): number {
    return this.#call(name, encodeStruct(layout, values))
  }

  #call(name: IoctlName, argument: Uint8Array): number {
    const { request } = IOCTLS[name]
    const { descriptor } = this.device
    return resultOf(() => raw.ioctl(descriptor, request, argument, argument.byteLength))
  }
}

/** Without what a distribution adds to the number: `'Linux 6.12.117'`. */
export function kernelName(): string {
  return `Linux ${release().replace(/[^\d.].*$/, '')}`
}

/** What the system call returned, 0 where that is nothing: `-errno` for a refusal. */
function resultOf(call: () => unknown): number {
  try {
    return Number(call() ?? 0)
  } catch (error) {
    if (error instanceof SystemError) return error.errno
    throw error
  }
}

function ringEvents(): RingEvents {
  return { kick: raw.eventfd(), call: raw.eventfd(), error: raw.eventfd() }
}

/** A tap on which nobody talks unasked: IPv6 is off before the link goes up. */
function quietTap(): Tap {
  const tap = Tap.open('quiet%d', { up: false })
  const setting = `/proc/sys/net/ipv6/conf/${tap.name}/disable_ipv6`
  if (existsSync(setting)) writeFileSync(setting, '1')
  tap.macAddress = QUIET_MAC.map((byte) => byte.toString(16).padStart(2, '0')).join(':')
  tap.up = true
  // A network of one host: nothing is routed to the tap.
  setAddress(tap.name, Uint8Array.from(QUIET_ADDRESS), 32)
  return tap
}

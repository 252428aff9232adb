/**
 * A vhost-net device as a program sees it that makes every call itself: ioctls, messages, eventfds.
 *
 * It exists so that one case can be put to the kernel and to the fake. Results are the system
 * call's own: 0 or more, or `-errno`; nothing is checked, repaired or remembered here. Rings are 0,
 * which receives, and 1, which transmits.
 */
import type { GuestMemory } from '../../memory/guest-memory'
import type { MessageVersion } from '../../vhost/uapi'
import type { RingAddresses } from '../../virtio/ring-layout'

/** One line of VHOST_SET_MEM_TABLE. */
export interface MemoryLine {
  readonly gpa: bigint
  readonly bytes: bigint
  readonly hva: bigint
}

export interface BareDevice extends Disposable {
  /** What it is, for a table's head: `'Linux 6.12.117'`. */
  readonly name: string
  /** What UPDATEs may lead to. */
  readonly memory: GuestMemory
  /** Entries before eviction (`max_iotlb_entries`). */
  readonly limit: number
  /** VHOST_GET_FEATURES. */
  readonly features: bigint
  readonly messageVersion: MessageVersion
  setFeatures(bits: bigint): number
  setMemory(lines: readonly MemoryLine[]): number
  setLogBase(hva: bigint): number
  /** VHOST_SET_VRING_NUM, VHOST_SET_VRING_BASE and VHOST_SET_VRING_ADDR. */
  setSize(ring: number, size: number): number
  setBase(ring: number, index: number): number
  setAddresses(ring: number, addresses: RingAddresses): number
  /** VHOST_NET_SET_BACKEND with the tap, or with -1. */
  setBackend(ring: number, attached: boolean): number
  /** VHOST_RESET_OWNER, then VHOST_SET_OWNER and the eventfds again. */
  resetOwner(): number
  /** As it was when it was opened: also the tap is empty, and no error is left. */
  renew(): void
  /** write(2) and read(2) on the device. */
  write(bytes: Uint8Array, length?: number): number
  read(buffer: Uint8Array, length?: number): number
  kick(ring: number): void
  /** How often the ring's error eventfd ticked since the last time. */
  errors(ring: number): number
  /** Returns when the worker has nothing left to do. */
  flush(): void
  /** The host sends frames into the tap: numbered, 42 bytes each. */
  receive(count: number): void
  /** Frames of the experimental EtherType 0x88b5 that the host got since the last time. */
  sent(): Uint8Array[]
}

/** The bytes of a frame that the host sends: an ARP reply to the station with this number. */
export const RECEIVED_BYTES = 42

export const QUIET_MAC = [0x02, 0, 0, 0, 0x88, 0xb5] as const
export const QUIET_ADDRESS = [198, 18, 0, 1] as const

/** The station's MAC address carries the number. */
export function station(number: number): readonly number[] {
  return [0x02, 0, 0, 1, (number >> 8) & 0xff, number & 0xff]
}

/** ARP (RFC 826) over Ethernet: what was asked, and what is answered. */
export function arp(operation: 1 | 2, from: readonly number[], to: readonly number[]): Uint8Array {
  const request = operation === 1
  const addresses = request ? [[0, 0, 0, 0], QUIET_ADDRESS] : [QUIET_ADDRESS, [0, 0, 0, 0]]
  return Uint8Array.from([
    ...[...(request ? Array<number>(6).fill(0xff) : to), ...from, 0x08, 0x06],
    ...[0, 1, 0x08, 0, 6, 4, 0, operation],
    ...[...from, ...addresses[0], ...(request ? Array<number>(6).fill(0) : to), ...addresses[1]],
  ])
}

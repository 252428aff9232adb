/**
 * A vhost descriptor, call by call: who owns it, what it can do, its memory, its rings.
 *
 * Each method is one step of the kernel's protocol with its errors explained; nothing here decides
 * when to take it, and nothing here knows of networks' packets or of translations. The order of
 * the steps is `net-pair.ts`.
 */
import type { InspectOptions } from 'node:util'
import { SystemError } from '../errors'
import { shown, summary } from '../inspect'
import type { GuestMemory } from '../memory/guest-memory'
import { native } from '../native'
import type { Descriptor } from '../native'
import { featureNames, hasFeature } from '../virtio/net'
import { ringLayout } from '../virtio/ring-layout'
import type { RingAddresses } from '../virtio/ring-layout'
import { borrowed, openNode, refusal, release } from './descriptors'
import type { Hints } from './descriptors'
import {
  IOCTLS,
  STRUCTS,
  VHOST_BACKEND_F_IOTLB_MSG_V2,
  VHOST_VRING_F_LOG,
  decodeStruct,
  encodeStruct,
} from './uapi'
import type { IoctlName, MessageVersion } from './uapi'

export interface VhostDeviceOptions {
  /** Default /dev/vhost-net. */
  readonly path?: string
  /** An open vhost descriptor that nobody owns yet (`VhostNetOptions.fd`); it is taken over. */
  readonly fd?: number
}

/** The eventfds of a ring; undefined ones are not bound. */
export interface RingEvents {
  readonly kick: Descriptor
  readonly call: Descriptor
  readonly error: Descriptor
}

export class VhostDevice implements Disposable {
  readonly path: string
  readonly descriptor: Descriptor
  /** What the kernel can do, as bits of virtio. */
  readonly features: bigint
  readonly messageVersion: MessageVersion
  readonly #backendFeatures: bigint
  #acknowledged = 0n

  private constructor(descriptor: Descriptor, path: string) {
    this.descriptor = descriptor
    this.path = path
    this.features = this.#get('VHOST_GET_FEATURES')
    this.#backendFeatures = this.#offeredBackendFeatures()
    this.messageVersion = this.#backendFeatures === 0n ? 1 : 2
    this.#own()
  }

  /**
   * @throws SystemError ENOENT, ENODEV or ENXIO without the module, EACCES or EPERM without
   *   permission, EBUSY when the descriptor has an owner, ENOMEM when no worker can be made,
   *   ENOTTY when it is no vhost device, EBADF for a number that is not open
   */
  static open(options: VhostDeviceOptions = {}): VhostDevice {
    const { fd, path = '/dev/vhost-net' } = options
    const descriptor = fd === undefined ? openNode(path, OPEN_HINTS) : borrowed(fd)
    try {
      const device = new VhostDevice(descriptor, fd === undefined ? path : `fd ${fd}`)
      if (fd !== undefined) release(fd)
      return device
    } catch (error) {
      descriptor.close()
      throw error
    }
  }

  /** The bits of the last `setFeatures`. */
  get acknowledged(): bigint {
    return this.#acknowledged
  }

  /** Ring addresses and descriptors are iovas, and the device asks for their translations. */
  get translates(): boolean {
    return hasFeature(this.#acknowledged, 'VIRTIO_F_ACCESS_PLATFORM')
  }

  /**
   * Empties the IOTLB (K9). To be called before the rings are set: kernels since 6.12.114 forget
   * their addresses when ACCESS_PLATFORM changes (CVE-2026-97988).
   * @throws SystemError ENOTSUP for bits that are not offered
   */
  setFeatures(bits: bigint): void {
    this.#set('VHOST_SET_FEATURES', bits)
    this.#acknowledged = bits
  }

  /**
   * Takes everything back: rings, features, IOTLB, memory. Older kernels keep translating when
   * ACCESS_PLATFORM alone is cleared, so a change of it goes through here.
   */
  reset(): void {
    this.#plain('VHOST_RESET_OWNER')
    this.#acknowledged = 0n
    this.#own()
  }

  /**
   * What gpas the device may use. Where it gets its translations on demand it needs none, unless it
   * logs what it writes: then it finds gpas by this table.
   * @throws SystemError E2BIG for more regions than the module's max_mem_regions
   */
  setMemory(memory: GuestMemory | undefined): void {
    const regions = memory?.regions ?? []
    const head = STRUCTS.vhost_memory.bytes
    const each = STRUCTS.vhost_memory_region.bytes
    const table = new Uint8Array(head + each * regions.length)
    table.set(encodeStruct(STRUCTS.vhost_memory, { nregions: regions.length }))
    const guards: number[] = []
    for (const [i, region] of regions.entries()) {
      const at = head + each * i
      const fields = {
        guest_phys_addr: region.range.first,
        memory_size: region.bytes,
        userspace_addr: region.hva,
      }
      table.set(encodeStruct(STRUCTS.vhost_memory_region, fields), at)
      guards.push(
        at + STRUCTS.vhost_memory_region.fields.userspace_addr.at,
        at + STRUCTS.vhost_memory_region.fields.memory_size.at,
      )
    }
    this.#call('VHOST_SET_MEM_TABLE', table, guards)
  }

  /**
   * Size, start and addresses of a ring without a backend.
   * @param ring iovas where the device translates, host addresses of held memory where it does not
   * @param base the free-running index of the next chain to take
   * @param log gpa of the used ring, whose writes are to be logged; a device that translates finds
   *   it itself
   * @throws SystemError EBUSY while it has a backend, EINVAL, EFAULT outside the held memory
   */
  setRing(index: number, ring: RingAddresses, base: number, log?: bigint): void {
    this.#vring('VHOST_SET_VRING_NUM', index, ring.size)
    this.#vring('VHOST_SET_VRING_BASE', index, base)
    this.setRingAddresses(index, ring, log)
  }

  /**
   * The same of a ring that may run, whose size and place stay: its used ring is logged, or not.
   */
  setRingAddresses(index: number, ring: RingAddresses, log?: bigint): void {
    const layout = ringLayout(ring.size)
    const fields = STRUCTS.vhost_vring_addr.fields
    const guards = [
      fields.desc_user_addr.at,
      -layout.descBytes,
      fields.avail_user_addr.at,
      -layout.availBytes,
      fields.used_user_addr.at,
      -layout.usedBytes,
    ]
    const argument = encodeStruct(STRUCTS.vhost_vring_addr, {
      index,
      flags: log === undefined ? 0 : VHOST_VRING_F_LOG,
      desc_user_addr: ring.desc,
      used_user_addr: ring.used,
      avail_user_addr: ring.avail,
      log_guest_addr: log ?? 0n,
    })
    this.#call('VHOST_SET_VRING_ADDR', argument, this.translates ? undefined : guards)
  }

  /**
   * Where pages that the device writes are noted, one bit each, as long as VHOST_F_LOG_ALL is among
   * the features.
   * @param at in memory that the descriptor holds; `bytes` must be enough for all gpas of the
   *   device
   */
  setLogBase(at: bigint, bytes: number): void {
    this.#call('VHOST_SET_LOG_BASE', encodeStruct(STRUCTS.u64, { value: at }), [0, -bytes])
  }

  /** The free-running index of the next chain that the device takes. */
  ringBase(index: number): number {
    const argument = encodeStruct(STRUCTS.vhost_vring_state, { index })
    this.#call('VHOST_GET_VRING_BASE', argument)
    return decodeStruct(STRUCTS.vhost_vring_state, argument)['num'] as number
  }

  setEvents(index: number, events: RingEvents): void {
    this.#file('VHOST_SET_VRING_ERR', index, events.error)
    this.#file('VHOST_SET_VRING_CALL', index, events.call)
    this.#file('VHOST_SET_VRING_KICK', index, events.kick)
  }

  /**
   * Microseconds that the worker polls before it sleeps; 0 is off.
   * @throws RangeError for what is not an integer from 0 to 2^32-1
   */
  setBusyLoop(index: number, microseconds: number): void {
    this.#vring('VHOST_SET_VRING_BUSYLOOP_TIMEOUT', index, microseconds)
  }

  /**
   * Starts a ring, or stops it where there is no socket. Stopping empties the message lists of the
   * whole device: the other ring's questions are lost with this one's (K9).
   * @throws SystemError EFAULT where the rings are not accessible or the memory is not set,
   *   ENOTSOCK for a descriptor that is neither tap, macvtap nor packet socket
   */
  setBackend(index: number, socket: Descriptor | undefined): void {
    this.#file('VHOST_NET_SET_BACKEND', index, socket)
  }

  /** The kernel stops its workers and lets go of memory, eventfds and tap before this returns. */
  close(): void {
    this.descriptor.close()
  }

  [shown](depth: number, options: InspectOptions): string {
    const fields = {
      path: this.path,
      state: this.descriptor.fd < 0 ? 'closed' : 'open',
      features: featureNames(this.features),
      acknowledged: featureNames(this.#acknowledged),
    }
    return summary('VhostDevice', fields, depth, options)
  }

  [Symbol.dispose](): void {
    this.close()
  }

  #own(): void {
    this.#plain('VHOST_SET_OWNER')
    if (this.#backendFeatures !== 0n) {
      this.#set('VHOST_SET_BACKEND_FEATURES', this.#backendFeatures)
    }
  }

  /** Kernels before 4.20 do not know the request. */
  #offeredBackendFeatures(): bigint {
    try {
      return this.#get('VHOST_GET_BACKEND_FEATURES') & VHOST_BACKEND_F_IOTLB_MSG_V2
    } catch (error) {
      if (error instanceof SystemError && error.code === 'ENOTTY') return 0n
      throw error
    }
  }

  #get(ioctl: 'VHOST_GET_FEATURES' | 'VHOST_GET_BACKEND_FEATURES'): bigint {
    const argument = new Uint8Array(STRUCTS.u64.bytes)
    this.#call(ioctl, argument)
    return decodeStruct(STRUCTS.u64, argument)['value'] as bigint
  }

  #set(ioctl: 'VHOST_SET_FEATURES' | 'VHOST_SET_BACKEND_FEATURES', value: bigint): void {
    this.#call(ioctl, encodeStruct(STRUCTS.u64, { value }))
  }

  #vring(ioctl: IoctlName, index: number, num: number): void {
    this.#call(ioctl, encodeStruct(STRUCTS.vhost_vring_state, { index, num }))
  }

  #file(ioctl: IoctlName, index: number, file: Descriptor | undefined): void {
    const fd = file === undefined ? -1 : file.fd
    if (file !== undefined && fd < 0) {
      throw new SystemError(EBADF, `ioctl ${ioctl}`, { path: this.path })
    }
    this.#call(ioctl, encodeStruct(STRUCTS.vhost_vring_file, { index, fd }))
  }

  #plain(ioctl: 'VHOST_SET_OWNER' | 'VHOST_RESET_OWNER'): void {
    this.#check(native().ioctl(this.descriptor, IOCTLS[ioctl].request), ioctl)
  }

  #call(ioctl: IoctlName, argument: Uint8Array, guards?: readonly number[]): void {
    const { request } = IOCTLS[ioctl]
    const size = argument.byteLength
    this.#check(native().ioctl(this.descriptor, request, argument, size, guards), ioctl)
  }

  #check(result: number, ioctl: IoctlName): void {
    if (result < 0) throw refusal(result, `ioctl ${ioctl}`, this.path, IOCTL_HINTS[ioctl])
  }
}

const EBADF = -9

const ELSEWHERE =
  '`vhost-iotlb doctor` says what else is missing, `vhost-iotlb vm -- COMMAND` runs where it is there'

const OPEN_HINTS: Hints = {
  ENOENT: `load the module: modprobe vhost_net; ${ELSEWHERE}`,
  ENODEV: `load the module: modprobe vhost_net; ${ELSEWHERE}`,
  ENXIO: `load the module: modprobe vhost_net; ${ELSEWHERE}`,
  EACCES: 'no permission: add the user to the group of the node (Debian: kvm), or run as root',
  EPERM: `no permission: the device is not allowed here (container or cgroup); ${ELSEWHERE}`,
}

/** What a refusal of a call means. */
const IOCTL_HINTS: Readonly<Partial<Record<IoctlName, Hints>>> = {
  VHOST_GET_FEATURES: { ENOTTY: 'not a vhost device' },
  VHOST_SET_OWNER: {
    EBUSY: 'the descriptor has an owner already: pass one that was just opened',
    ENOMEM: 'no worker could be made: raise RLIMIT_NPROC or the limits of the cgroup',
  },
  VHOST_SET_FEATURES: {
    ENOTSUP: 'the kernel does not offer all of these bits',
    EFAULT: 'the module was loaded with max_iotlb_entries=0',
  },
  VHOST_SET_MEM_TABLE: {
    E2BIG: 'more regions than vhost takes: load it with a higher max_mem_regions',
    EFAULT: 'a region is not in the memory that the device holds',
  },
  VHOST_SET_LOG_BASE: { EFAULT: 'the log does not cover the memory that the device holds' },
  VHOST_SET_VRING_ADDR: { EFAULT: 'the ring is not in the memory that the device holds' },
  VHOST_NET_SET_BACKEND: {
    EFAULT: 'the used ring cannot be reached: its pages must be mapped for reading and writing',
    ENOTSOCK: 'neither a tap nor a packet socket',
  },
}

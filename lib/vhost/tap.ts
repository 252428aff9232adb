/**
 * A tap: the network interface that a vhost-net device sends to and receives from.
 *
 * Opening attaches to the interface, and creates it where it is not there. Each queue is a
 * descriptor of its own. Frames can also be read and written here directly, by a program that is
 * its own device; not while a vhost device has the tap.
 */
import type { InspectOptions } from 'node:util'
import { InvalidState, SystemError, succeeded } from '../errors'
import { shown, summary } from '../inspect'
import { native } from '../native'
import type { Descriptor } from '../native'
import { borrowed, openNode, refusal, release } from './descriptors'
import type { Hints } from './descriptors'
import {
  interfaceIndex,
  interfaceName,
  isUp,
  macAddress,
  mtu,
  setMacAddress,
  setMtu,
  setUp,
} from './interface'
import {
  IFF_MULTI_QUEUE,
  IFF_NO_PI,
  IFF_TAP,
  IFF_TUN_EXCL,
  IFF_VNET_HDR,
  IOCTLS,
  STRUCTS,
  decodeStruct,
  encodeStruct,
} from './uapi'
import { watch } from './watch'

const ENODEV = -19
const EAGAIN = -11
/** drivers/net/tun.c MAX_TAP_QUEUES */
const MOST_QUEUES = 256
/**
 * `struct virtio_net_hdr_v1`, what vhost-net uses with VERSION_1 or MRG_RXBUF (virtio 1.2 5.1.6).
 */
export const VNET_HEADER_BYTES = 12
/** The largest frame with offloads: 64 KiB of payload with its headers. */
const LARGEST_FRAME = 65536 + 64

export interface TapOptions {
  /** Each frame has a `struct virtio_net_hdr` before it. Default true; vhost-net wants it. */
  readonly vnetHeader?: boolean
  /** Pairs of rings that it can serve, 1 to 256; each a descriptor. Default 1. */
  readonly queues?: number
  /** Bring the interface up. Default true. */
  readonly up?: boolean
  /** `'if-missing'` (the default), `'never'`: it must be there, or `'always'`: it must not. */
  readonly create?: 'if-missing' | 'never' | 'always'
  /** The device node. Default /dev/net/tun. */
  readonly path?: string
}

export class Tap implements Disposable {
  readonly name: string
  readonly vnetHeader: boolean
  readonly #queues: readonly Descriptor[]
  readonly #in = new Uint8Array(LARGEST_FRAME + VNET_HEADER_BYTES)
  #headerBytes = 0
  #holder: object | undefined
  #closed = false

  private constructor(queues: readonly Descriptor[], name: string, vnetHeader: boolean) {
    this.#queues = queues
    this.name = name
    this.vnetHeader = vnetHeader
    if (vnetHeader) this.setHeaderBytes(VNET_HEADER_BYTES)
  }

  /**
   * Attaches to an interface of this name. `%d` in it becomes the first number that is free.
   * @throws RangeError for what is not an interface name
   * @throws SystemError EBUSY when somebody else has it, EPERM without CAP_NET_ADMIN, EINVAL when
   *   the name belongs to what is not a tap, ENOENT without the device node, ENODEV without the
   *   module, or when `create` is `'never'` and there is none
   */
  static open(name = 'tap%d', options: TapOptions = {}): Tap {
    const { vnetHeader = true, queues = 1, up = true, create = 'if-missing' } = options
    const bytes = interfaceName(name)
    if (!Number.isInteger(queues) || queues < 1 || queues > MOST_QUEUES) {
      throw new RangeError(`a tap has 1 to ${MOST_QUEUES} queues: ${queues}`)
    }
    if (create === 'never' && interfaceIndex(name) === undefined) {
      throw new SystemError(ENODEV, 'ioctl TUNSETIFF', { path: name, hint: 'no such interface' })
    }
    const flags =
      IFF_TAP | IFF_NO_PI | (vnetHeader ? IFF_VNET_HDR : 0) | (queues > 1 ? IFF_MULTI_QUEUE : 0)
    const made: Descriptor[] = []
    try {
      let attached = bytes
      for (let i = 0; i < queues; i++) {
        const descriptor = openNode(options.path ?? '/dev/net/tun', NODE_HINTS)
        made.push(descriptor)
        const exclusive = create === 'always' && i === 0 ? IFF_TUN_EXCL : 0
        attached = attach(descriptor, attached, flags | exclusive)
      }
      const tap = new Tap(made, new TextDecoder().decode(attached), vnetHeader)
      if (up) setUp(tap.name, true)
      return tap
    } catch (error) {
      for (const descriptor of made) descriptor.close()
      throw error
    }
  }

  /**
   * Takes over descriptors that are attached already: one for each queue. In a Worker, see
   * `VhostNetOptions.fd`.
   * @throws SystemError EBADF for a number that is not open, ENOTTY for what is not a tap
   * @throws RangeError for a tun, or for descriptors of different interfaces
   */
  static fromFd(fd: number | readonly number[]): Tap {
    const numbers = typeof fd === 'number' ? [fd] : fd
    if (numbers.length === 0) throw new RangeError('a tap has at least one descriptor')
    const made: Descriptor[] = []
    try {
      for (const number of numbers) made.push(borrowed(number))
      const attached = made.map(attachment)
      const [first] = attached
      if (attached.some(({ name }) => name !== first.name)) {
        throw new RangeError('the descriptors belong to different interfaces')
      }
      const tap = new Tap(made, first.name, (first.flags & IFF_VNET_HDR) !== 0)
      for (const number of numbers) release(number)
      return tap
    } catch (error) {
      for (const descriptor of made) descriptor.close()
      throw error
    }
  }

  /** One descriptor a queue, for a device to be given. Borrowed: they stay this tap's. */
  get queues(): readonly Descriptor[] {
    return this.#queues
  }

  /**
   * Whether frames can come and go. gone: the interface was deleted, and its descriptors are good
   * for nothing any more. One that was moved to another network namespace counts as up.
   */
  get state(): 'up' | 'down' | 'gone' {
    const { request, size } = IOCTLS.TUNGETIFF
    const argument = new Uint8Array(STRUCTS.ifreq_flags.bytes)
    if (native().ioctl(this.#queues[0], request, argument, size) < 0) return 'gone'
    try {
      return isUp(this.name) ? 'up' : 'down'
    } catch (error) {
      if (error instanceof SystemError && error.code === 'ENODEV') return 'up'
      throw error
    }
  }

  get up(): boolean {
    return isUp(this.name)
  }

  set up(up: boolean) {
    setUp(this.name, up)
  }

  /** Largest payload of a frame, without its 14 bytes of header. */
  get mtu(): number {
    return mtu(this.name)
  }

  set mtu(bytes: number) {
    setMtu(this.name, bytes)
  }

  /** `'02:00:00:00:00:01'`: the address of the host's end. */
  get macAddress(): string {
    return macAddress(this.name)
  }

  set macAddress(address: string) {
    setMacAddress(this.name, address)
  }

  /** Whether the interface outlives its last descriptor. */
  set persistent(persistent: boolean) {
    this.#value('TUNSETPERSIST', persistent ? 1 : 0)
  }

  get headerBytes(): number {
    return this.#headerBytes
  }

  /**
   * What is before each frame: 12 with VERSION_1 or MRG_RXBUF, else 10. Where it differs from what
   * vhost uses, every received packet is dropped without an error, so the device sets it.
   * @throws SystemError EINVAL below 10
   */
  setHeaderBytes(bytes: number): void {
    if (!this.vnetHeader) throw new InvalidState('ERR_UNSUPPORTED', 'this tap has no header')
    const size = encodeStruct(STRUCTS.s32, { value: bytes })
    for (const queue of this.#queues) {
      const result = native().ioctl(queue, IOCTLS.TUNSETVNETHDRSZ.request, size)
      succeeded(result, 'ioctl TUNSETVNETHDRSZ', { path: this.name })
    }
    this.#headerBytes = bytes
  }

  /**
   * What the reader of the frames takes unfinished: bits of TUN_F_CSUM, TUN_F_TSO4 and TUN_F_TSO6.
   * @throws SystemError EINVAL for a combination that the kernel refuses (segmentation without
   *   CSUM)
   */
  setOffload(bits: number): void {
    this.#value('TUNSETOFFLOAD', bits)
  }

  /** The next frame from the host, without its header, in a fresh array; undefined for none. */
  read(): Uint8Array | undefined {
    this.#direct()
    const count = native().read(this.#queues[0], this.#in, 0, this.#in.byteLength)
    if (count === EAGAIN) return undefined
    succeeded(count, 'read', { path: this.name })
    return this.#in.slice(this.#headerBytes, count)
  }

  /** Gives the host a frame; it has no offloads. @throws SystemError EIO when the link is down */
  write(frame: Uint8Array): void {
    this.#direct()
    const out = new Uint8Array(this.#headerBytes + frame.byteLength)
    out.set(frame, this.#headerBytes)
    const count = native().write(this.#queues[0], out, 0, out.byteLength)
    succeeded(count, 'write', { path: this.name })
  }

  /** Called when frames can be read. Keeps the event loop alive until it is disposed. */
  onReadable(listener: () => void): Disposable {
    this.#direct()
    const poller = watch(this.#queues[0], null, 0, listener)
    return {
      [Symbol.dispose]: () => {
        poller.close()
      },
    }
  }

  /** A device takes the tap; nobody else can until it lets go. @throws InvalidState ERR_IN_USE */
  hold(holder: object): Disposable {
    this.#direct()
    this.#holder = holder
    return {
      [Symbol.dispose]: () => {
        if (this.#holder === holder) this.#holder = undefined
      },
    }
  }

  /** @throws InvalidState ERR_IN_USE while a device has it */
  close(): void {
    if (this.#closed) return
    if (this.#holder !== undefined) {
      throw new InvalidState('ERR_IN_USE', `a device uses ${this.name}: close the device first`)
    }
    this.#closed = true
    for (const queue of this.#queues) queue.close()
  }

  [shown](depth: number, options: InspectOptions): string {
    const fields = {
      name: this.name,
      queues: this.#queues.length,
      headerBytes: this.#headerBytes,
      state: this.#closed ? 'closed' : this.#holder === undefined ? 'free' : 'held by a device',
    }
    return summary('Tap', fields, depth, options)
  }

  [Symbol.dispose](): void {
    this.close()
  }

  #direct(): void {
    if (this.#closed) throw new InvalidState('ERR_CLOSED', `${this.name} is closed`)
    if (this.#holder !== undefined) {
      throw new InvalidState('ERR_IN_USE', `a device uses ${this.name}`)
    }
  }

  #value(ioctl: 'TUNSETPERSIST' | 'TUNSETOFFLOAD', value: number): void {
    for (const queue of this.#queues) {
      const result = native().ioctl(queue, IOCTLS[ioctl].request, value, 0)
      succeeded(result, `ioctl ${ioctl}`, { path: this.name })
    }
  }
}

const NODE_HINTS: Hints = {
  ENOENT: 'load the module: modprobe tun',
  ENODEV: 'load the module: modprobe tun',
  ENXIO: 'load the module: modprobe tun',
  EACCES: 'no permission: chmod 666, or run as root',
  EPERM: 'no permission: the device is not allowed here (container or cgroup)',
}

const ATTACH_HINTS: Hints = {
  EBUSY:
    'another program or object has it, or it exists already: close the other one, take another ' +
    "name ('tap%d' finds a free one), or see who has it: grep -l iff /proc/*/fdinfo/*",
  EPERM:
    'needs CAP_NET_ADMIN: run as root, in a network namespace of your own (unshare -Urn), ' +
    'or on a tap made for you (ip tuntap add mode tap user …)',
  EINVAL: 'not a tap, or one made with other flags (header, queues)',
  E2BIG: 'no more queues',
}

/** Answers the name that the kernel chose, which differs where `%d` was asked for. */
function attach(descriptor: Descriptor, name: Uint8Array, flags: number): Uint8Array {
  const argument = encodeStruct(STRUCTS.ifreq_flags, { ifr_name: name, ifr_flags: flags })
  const { request, size } = IOCTLS.TUNSETIFF
  const result = native().ioctl(descriptor, request, argument, size)
  if (result < 0) {
    throw refusal(result, 'ioctl TUNSETIFF', new TextDecoder().decode(name), ATTACH_HINTS)
  }
  return nameBytes(argument)
}

function attachment(descriptor: Descriptor): { readonly name: string; readonly flags: number } {
  const argument = new Uint8Array(STRUCTS.ifreq_flags.bytes)
  const { request, size } = IOCTLS.TUNGETIFF
  succeeded(native().ioctl(descriptor, request, argument, size), 'ioctl TUNGETIFF')
  const flags = decodeStruct(STRUCTS.ifreq_flags, argument)['ifr_flags'] as number
  if ((flags & IFF_TAP) === 0) throw new RangeError('a tun carries packets, not frames')
  return { name: new TextDecoder().decode(nameBytes(argument)), flags }
}

function nameBytes(ifreq: Uint8Array): Uint8Array {
  const end = ifreq.indexOf(0)
  return ifreq.slice(0, end)
}

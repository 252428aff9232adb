/**
 * A kernel that says what a test wants, for what the real one will not say: no permission, no
 * memory for a worker, no IOTLB. It has no rules of its own; those are tried in the nested VM.
 * Device nodes are eventfds that never become readable; everything else is the real addon.
 */
import { native as real } from '../../lib/native'
import type { Descriptor, Native } from '../../lib/native'
import { IOCTLS, MESSAGE_BYTES, STRUCTS, decodeMessage, decodeStruct } from '../../lib/vhost/uapi'
import type { Ioctl, IoctlName, StructLayout, VhostMessage } from '../../lib/vhost/uapi'
import { features } from '../../lib/virtio/net'

export const EPERM = -1
export const ENXIO = -6
export const ENOMEM = -12
export const EACCES = -13
export const EFAULT = -14
export const EBUSY = -16
export const ENODEV = -19
export const ENOTTY = -25

/** What Linux 6.12 offers. */
export const OFFERED = 0x1033d008000n

export interface Call {
  readonly name: IoctlName
  readonly argument: Readonly<Record<string, unknown>>
}

const NAMES = new Map<number, IoctlName>(
  Object.entries(IOCTLS).map(([name, { request }]) => [request, name as IoctlName]),
)

export class FakeKernel {
  features = OFFERED
  backendFeatures = 2n
  /** By ioctl, or 'open' and a path: what is answered instead of success. */
  readonly refusals = new Map<string, number>()
  readonly calls: Call[] = []
  readonly messages: VhostMessage[] = []
  readonly opened: Descriptor[] = []
  /** What GET_VRING_BASE answers. */
  base = 0
  readonly #nodes = new Set<Descriptor>()

  /** The addon with this kernel behind it. */
  native(addon: Native): Native {
    return {
      ...addon,
      open: (path, flags) =>
        path.startsWith('/dev/') ? this.#open(path) : addon.open(path, flags),
      socket: () => this.#open('socket'),
      ioctl: (descriptor, request, argument, size, guards) =>
        this.#nodes.has(descriptor)
          ? this.#ioctl(descriptor, request, argument)
          : addon.ioctl(descriptor, request, argument, size, guards),
      writer: (descriptor, buffer, size, guards) =>
        this.#nodes.has(descriptor)
          ? () => this.messages.push(decodeMessage(bytesOf(buffer))) && 1
          : addon.writer(descriptor, buffer, size, guards),
    }
  }

  /** The names of the calls since the last time. */
  taken(): IoctlName[] {
    return this.calls.splice(0).map(({ name }) => name)
  }

  #open(path: string): Descriptor | number {
    const refusal = this.refusals.get(`open ${path}`)
    if (refusal !== undefined) return refusal
    const descriptor = this.addon.eventfd(0) as Descriptor
    this.#nodes.add(descriptor)
    this.opened.push(descriptor)
    return descriptor
  }

  constructor(private readonly addon: Native = real()) {}

  #ioctl(descriptor: Descriptor, request: number, argument?: ArrayBufferView | number): number {
    if (descriptor.fd < 0) return -9
    const name = NAMES.get(request)
    if (name === undefined) throw new Error(`unknown request 0x${request.toString(16)}`)
    const bytes =
      argument === undefined || typeof argument === 'number'
        ? undefined
        : new Uint8Array(argument.buffer, argument.byteOffset, argument.byteLength)
    const ioctl: Ioctl = IOCTLS[name]
    const layout: StructLayout | undefined =
      ioctl.argument === 'none' || ioctl.argument === 'value' ? undefined : STRUCTS[ioctl.argument]
    const decoded =
      bytes === undefined || layout === undefined
        ? { value: argument }
        : decodeStruct(layout, bytes)
    this.calls.push({ name, argument: decoded })
    const refusal = this.refusals.get(name)
    if (refusal !== undefined) return refusal
    if (bytes !== undefined) this.#answer(name, new DataView(bytes.buffer, bytes.byteOffset))
    return 0
  }

  #answer(name: IoctlName, view: DataView): void {
    if (name === 'VHOST_GET_FEATURES') view.setBigUint64(0, this.features, true)
    else if (name === 'VHOST_GET_BACKEND_FEATURES') view.setBigUint64(0, this.backendFeatures, true)
    else if (name === 'VHOST_GET_VRING_BASE') view.setUint32(4, this.base, true)
    else if (name === 'SIOCGIFFLAGS') view.setUint16(16, 1, true)
  }
}

export const PLAIN = features('VIRTIO_F_VERSION_1')
export const TRANSLATED = PLAIN | features('VIRTIO_F_ACCESS_PLATFORM')

function bytesOf({ buffer, byteOffset }: ArrayBufferView): Uint8Array {
  return new Uint8Array(buffer, byteOffset, MESSAGE_BYTES)
}

/**
 * A virtio device between its driver and its backend: status, features and queues, whatever bus
 * carries them.
 *
 * The driver is a guest, so every order of steps is possible. The backend sees only the right ones:
 * features once they are agreed on, then queues that can be, then `start`; and `stop` before
 * anything of that is taken back. Guests' mistakes are DEVICE_NEEDS_RESET or nothing at all; what
 * the host refuses is DEVICE_NEEDS_RESET and `onFailure`.
 *
 * virtio 1.3 2.1 (status), 2.2 (features), 3.1 (initialization), 4.1.4.3 (queues).
 */
import { InvalidState } from '../errors'
import { features, hasFeature } from '../virtio/net'
import type { NetDevice } from '../virtio/net-device'
import { MAX_QUEUE_SIZE, RING_ALIGNMENT, ringLayout } from '../virtio/ring-layout'
import { Listeners } from './listeners'

/** What is behind the transport: vhost-net, or a device in JavaScript. */
export interface VirtioBackend extends Omit<NetDevice, 'requester'> {
  /**
   * Takes one queue back, running or not: its place is forgotten until the next `setQueue`, which
   * starts it at once where the device runs. RING_RESET is offered where this is there.
   */
  resetQueue?(index: number): void
}

/** What a device tells its driver about itself, apart from feature bits (virtio 1.3 2.5). */
export interface DeviceConfiguration {
  /** The features that say which fields are valid; offered with those of the backend. */
  readonly features: bigint
  readonly bytes: number
  /** Inside `bytes`, `size` is 1, 2 or 4. */
  read(offset: number, size: number): number
  /** Called when a field has changed by itself. */
  onChange(listener: () => void): Disposable
}

/** Device status bits (virtio 1.3 2.1). */
export const STATUS = {
  ACKNOWLEDGE: 1,
  DRIVER: 2,
  DRIVER_OK: 4,
  FEATURES_OK: 8,
  DEVICE_NEEDS_RESET: 64,
  FAILED: 128,
} as const

/** virtio 1.3 4.1.5.1.2: no interrupt. */
export const VIRTIO_MSI_NO_VECTOR = 0xffff

export interface TransportOptions {
  /** Number of queues: 1 to 1024. */
  readonly queues: number
  /** Entries that a queue can have: a power of two, 256 where it is left out. */
  readonly queueSize?: number
  /** Of the backend's and the configuration's features, those to offer. All by default. */
  readonly features?: bigint
  /**
   * The driver has to use the platform's DMA addresses (VIRTIO_F_ACCESS_PLATFORM). True by default:
   * behind an IOMMU a driver that does not is a driver of somebody else's memory.
   */
  readonly accessPlatform?: boolean
}

/** A queue as the driver has set it up so far. */
export class Queue {
  size: number
  vector = VIRTIO_MSI_NO_VECTOR
  enabled = false
  desc = 0n
  avail = 0n
  used = 0n
  /** The backend has been told where it is. */
  placed = false

  constructor(readonly maximum: number) {
    this.size = maximum
  }

  reset(): void {
    this.size = this.maximum
    this.vector = VIRTIO_MSI_NO_VECTOR
    this.enabled = false
    this.desc = 0n
    this.avail = 0n
    this.used = 0n
    this.placed = false
  }

  /** 2.7: each part is aligned, and ends inside the address space. `setSize` minds the size. */
  get possible(): boolean {
    const { descBytes, availBytes, usedBytes } = ringLayout(this.size)
    return (
      placed(this.desc, descBytes, RING_ALIGNMENT.desc) &&
      placed(this.avail, availBytes, RING_ALIGNMENT.avail) &&
      placed(this.used, usedBytes, RING_ALIGNMENT.used)
    )
  }
}

const MAX_QUEUES = 1024
const DEFAULT_QUEUE_SIZE = 256

/**
 * What may be offered at all. Bits 0 to 23 and 50 to 63 are the device type's own (virtio 1.3 2.2);
 * of the others those that this transport carries. So bits that mean something else to vhost
 * (VHOST_F_LOG_ALL, VHOST_NET_F_VIRTIO_NET_HDR) never reach a driver.
 */
const CARRIED =
  0xffffffn |
  (0x3fffn << 50n) |
  features(
    'VIRTIO_F_INDIRECT_DESC',
    'VIRTIO_F_EVENT_IDX',
    'VIRTIO_F_VERSION_1',
    'VIRTIO_F_ACCESS_PLATFORM',
    'VIRTIO_F_ORDER_PLATFORM',
  )

export class VirtioTransport implements Disposable {
  /** Every feature bit that the driver is offered. */
  readonly offered: bigint
  readonly queues: readonly Queue[]
  readonly #backend: VirtioBackend
  readonly #required: bigint
  readonly #failures = new Listeners<[cause: unknown]>()
  readonly #broken = new Listeners<[]>()
  readonly #subscription: Disposable | undefined
  #status = 0
  #driverFeatures = 0n
  #busMaster = false
  #running = false

  /**
   * @throws RangeError for a number of queues or a queue size that can't be
   * @throws InvalidState ERR_UNSUPPORTED for a backend without a feature that is needed
   */
  constructor(backend: VirtioBackend, configured: bigint, options: TransportOptions) {
    const { queues, queueSize = DEFAULT_QUEUE_SIZE, accessPlatform = true } = options
    if (!Number.isInteger(queues) || queues < 1 || queues > MAX_QUEUES) {
      throw new RangeError(`queues must be from 1 to ${MAX_QUEUES}: ${queues}`)
    }
    if (!isQueueSize(queueSize, MAX_QUEUE_SIZE)) {
      throw new RangeError(`queueSize must be a power of two up to ${MAX_QUEUE_SIZE}: ${queueSize}`)
    }
    const platform = features('VIRTIO_F_ACCESS_PLATFORM')
    const ringReset = backend.resetQueue === undefined ? 0n : features('VIRTIO_F_RING_RESET')
    const all = (backend.features & CARRIED) | configured | ringReset
    this.#backend = backend
    this.#required = features('VIRTIO_F_VERSION_1') | (accessPlatform ? platform : 0n)
    this.offered = all & (options.features ?? ~0n) & (accessPlatform ? ~0n : ~platform)
    if ((this.#required & ~this.offered) !== 0n) {
      throw new InvalidState(
        'ERR_UNSUPPORTED',
        'the device must offer VIRTIO_F_VERSION_1, and behind an IOMMU VIRTIO_F_ACCESS_PLATFORM',
      )
    }
    this.queues = Array.from({ length: queues }, () => new Queue(queueSize))
    this.#subscription = backend.onError?.(() => {
      this.needReset()
    })
  }

  get status(): number {
    return this.#status
  }

  /** What the driver has written so far; agreed on once FEATURES_OK is set. */
  get driverFeatures(): bigint {
    return this.#driverFeatures
  }

  /** The backend may be using the rings. */
  get running(): boolean {
    return this.#running
  }

  /**
   * 2.1.1: 0 resets, and a driver never clears a single bit, so bits only add up. 3.1.1:
   * FEATURES_OK stays clear where the features do not do; DRIVER_OK is nothing before it.
   */
  writeStatus(value: number): void {
    if (value === 0) {
      this.reset()
      return
    }
    const set = value & ~this.#status
    this.#status |= value & (STATUS.ACKNOWLEDGE | STATUS.DRIVER | STATUS.FAILED)
    if ((set & STATUS.FEATURES_OK) !== 0 && this.#agree()) this.#status |= STATUS.FEATURES_OK
    if ((set & STATUS.DRIVER_OK) !== 0 && this.#has(STATUS.FEATURES_OK)) {
      this.#status |= STATUS.DRIVER_OK
      this.#configure()
      this.#startOrStop()
    }
  }

  /** 3.1.1: nothing is changed after FEATURES_OK. @param half 0 for bits 0 to 31, 1 for 32 to 63 */
  writeDriverFeatures(half: number, bits: number): void {
    if (this.#has(STATUS.FEATURES_OK) || half > 1) return
    const shift = BigInt(32 * half)
    const kept = this.#driverFeatures & ~(0xffffffffn << shift)
    this.#driverFeatures = kept | (BigInt(bits) << shift)
  }

  /** 4.1.4.3.2: a power of two, before the queue is enabled; anything else is ignored. */
  setSize(queue: Queue, size: number): void {
    if (!queue.enabled && isQueueSize(size, queue.maximum)) queue.size = size
  }

  /**
   * 4.1.4.3.2: a queue with misplaced parts breaks the device, which is what it would have done to
   * the device's memory. While the device runs, only a queue that was reset can be enabled.
   */
  enable(index: number): void {
    const queue = this.queues.at(index)
    if (queue === undefined || queue.enabled) return
    if (!queue.possible) {
      this.needReset()
      return
    }
    const late = this.#has(STATUS.DRIVER_OK)
    if (late && !this.#agreed('VIRTIO_F_RING_RESET')) return
    queue.enabled = true
    if (!late) return
    this.#attempt(() => {
      this.#setQueue(index)
    })
  }

  /** 2.6.1, 4.1.4.3.2: queue_reset. Complete when it returns. Needs RING_RESET. */
  resetQueue(index: number): void {
    const queue = this.queues.at(index)
    if (queue === undefined || !this.#agreed('VIRTIO_F_RING_RESET')) return
    if (queue.placed) this.#attempt(() => this.#backend.resetQueue?.(index))
    queue.reset()
  }

  /** The driver has put chains into a queue. Ignored where the device does not run. */
  kick(index: number): void {
    if (!this.#running || this.queues.at(index)?.enabled !== true) return
    this.#attempt(() => {
      this.#backend.kick(index)
    })
  }

  /**
   * Without bus mastering a device may touch no memory: the backend is stopped, and goes on later.
   */
  setBusMaster(enabled: boolean): void {
    this.#busMaster = enabled
    this.#startOrStop()
  }

  /** 2.1.2: the device can't go on; the driver is told so, if it is there. */
  needReset(): void {
    if (this.#has(STATUS.DEVICE_NEEDS_RESET)) return
    this.#status |= STATUS.DEVICE_NEEDS_RESET
    this.#broken.call()
  }

  /**
   * As if the device had just been made, with the backend stopped (2.4). Bus mastering stays. The
   * backend forgets the queues, or it would start those that the next driver does not use.
   */
  reset(): void {
    this.#stop()
    this.queues.forEach((queue, index) => {
      if (queue.placed) this.#attempt(() => this.#backend.resetQueue?.(index))
      queue.reset()
    })
    this.#status = 0
    this.#driverFeatures = 0n
  }

  /** Called with what the backend threw; the driver sees DEVICE_NEEDS_RESET. */
  onFailure(listener: (cause: unknown) => void): Disposable {
    return this.#failures.add(listener)
  }

  /** Called when DEVICE_NEEDS_RESET becomes set. */
  onNeedsReset(listener: () => void): Disposable {
    return this.#broken.add(listener)
  }

  [Symbol.dispose](): void {
    this.#stop()
    this.#subscription?.[Symbol.dispose]()
  }

  /**
   * 2.2.1: a driver must not accept what was not offered, nor a feature without those that it
   * requires (which the backend knows), and must accept what the device needs.
   */
  #agree(): boolean {
    const wanted = this.#driverFeatures
    if ((wanted & ~this.offered) !== 0n || (this.#required & ~wanted) !== 0n) return false
    let possible = true
    const done = this.#attempt(() => {
      try {
        this.#backend.setFeatures(wanted & this.#backend.features)
      } catch (cause) {
        if (!(cause instanceof RangeError)) throw cause
        possible = false
      }
    })
    return done && possible
  }

  #configure(): void {
    this.#attempt(() => {
      this.queues.forEach(({ enabled }, index) => {
        if (enabled) this.#setQueue(index)
      })
    })
  }

  #setQueue(index: number): void {
    const queue = this.queues[index]
    const { size, desc, avail, used } = queue
    queue.placed = true
    this.#backend.setQueue(index, { size, desc, avail, used })
  }

  #startOrStop(): void {
    const ready = this.#has(STATUS.DRIVER_OK) && !this.#has(STATUS.DEVICE_NEEDS_RESET)
    if (!this.#busMaster) this.#stop()
    else if (ready && !this.#running && this.queues.some(({ enabled }) => enabled)) this.#start()
  }

  /** A queue that was kicked while the device did not run has had no answer. */
  #start(): void {
    this.#running = this.#attempt(() => {
      this.#backend.start()
    })
    for (let index = 0; index < this.queues.length; index++) this.kick(index)
  }

  #stop(): void {
    if (!this.#running) return
    this.#running = false
    this.#attempt(() => {
      this.#backend.stop()
    })
  }

  #has(bits: number): boolean {
    return (this.#status & bits) !== 0
  }

  #agreed(name: Parameters<typeof hasFeature>[1]): boolean {
    return this.#has(STATUS.FEATURES_OK) && hasFeature(this.#driverFeatures, name)
  }

  /** A guest's write has no caller to throw at. */
  #attempt(action: () => void): boolean {
    try {
      action()
      return true
    } catch (cause) {
      this.needReset()
      this.#failures.call(cause)
      return false
    }
  }
}

function placed(address: bigint, bytes: number, alignment: number): boolean {
  return address % BigInt(alignment) === 0n && address + BigInt(bytes) <= 1n << 64n
}

function isQueueSize(size: number, maximum: number): boolean {
  return size >= 1 && size <= maximum && Number.isInteger(Math.log2(size))
}

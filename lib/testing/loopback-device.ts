/**
 * A virtio-net device in plain JavaScript: what is sent comes back, or goes where a test says.
 *
 * It stands beside `VhostNet` behind the same interface, so that a driver, its rings and its IOMMU
 * can be run without a kernel. Like the kernel it works in a turn of its own after a kick, leaves a
 * chain whose buffers it can't reach where it is, and says so. Unlike the kernel it holds no
 * translation for longer than its address space does.
 */
import type { InspectOptions } from 'node:util'
import { InvalidState } from '../errors'
import { hex, shown, summary } from '../inspect'
import type { AddressSpace } from '../memory/address-space'
import { DmaWindow, physicalView, translatedView } from '../virtio/dma-view'
import type { ByteSpace } from '../virtio/dma-view'
import {
  MAX_FRAME_BYTES,
  NET_HEADER,
  NET_HEADER_BYTES,
  NetHeader,
  features,
  hasFeature,
} from '../virtio/net'
import type { NetDevice } from '../virtio/net-device'
import type { RingAddresses } from '../virtio/ring-layout'
import { SplitQueue } from '../virtio/split-queue'
import type { Chain } from '../virtio/split-queue'

export interface LoopbackOptions {
  readonly memory: ByteSpace
  /** Without it ACCESS_PLATFORM is not offered. */
  readonly addressSpace?: AddressSpace
  /** The 16-bit source id behind the address space. */
  readonly requester?: number
  /** What is offered; default all that the device can. */
  readonly features?: bigint
  readonly pairs?: number
  /** Where sent frames go; default back to the receiving queue of the same pair. */
  readonly onTransmit?: (frame: Uint8Array, header: NetHeader, pair: number) => void
  /** Frames that wait for a buffer to receive them; more are dropped. Default 1024. */
  readonly backlog?: number
}

export interface LoopbackStats {
  readonly transmitted: number
  readonly received: number
  readonly dropped: number
  /** Chains left alone because ring, table or buffer could not be reached, or broke a rule. */
  readonly errors: number
}

const CAN = features(
  'VIRTIO_NET_F_MRG_RXBUF',
  'VIRTIO_F_INDIRECT_DESC',
  'VIRTIO_F_EVENT_IDX',
  'VIRTIO_F_VERSION_1',
)
const TRANSLATED = features('VIRTIO_F_ACCESS_PLATFORM')

interface Queue {
  ring: RingAddresses | undefined
  availIndex: number
  queue: SplitQueue | undefined
  readonly listeners: Set<() => void>
}

interface Waiting {
  readonly frame: Uint8Array
  readonly header: Uint8Array
}

/** A chain that a frame is written to: what completes it, and where its first buffer is. */
interface Taken {
  readonly head: number
  readonly length: number
  readonly page: number
  readonly offset: number
}

type Placed = 'placed' | 'no room' | 'unreachable'

export class LoopbackDevice implements NetDevice, Disposable {
  readonly features: bigint
  readonly requester: number | undefined
  readonly #options: LoopbackOptions
  readonly #queues: readonly Queue[]
  readonly #errors = new Set<(index: number) => void>()
  readonly #waiting: Waiting[][]
  readonly #kicked = new Set<number>()
  readonly #bytes = new Uint8Array(MAX_FRAME_BYTES + NET_HEADER_BYTES)
  readonly #header = new NetHeader()
  #window: DmaWindow | undefined
  #turn: NodeJS.Immediate | undefined
  #negotiated = 0n
  #started = false
  #counts = { transmitted: 0, received: 0, dropped: 0, errors: 0 }

  constructor(options: LoopbackOptions) {
    const { addressSpace, pairs = 1 } = options
    this.#options = options
    this.features = options.features ?? (addressSpace === undefined ? CAN : CAN | TRANSLATED)
    this.requester = options.requester
    this.#queues = Array.from({ length: 2 * pairs }, () => ({
      ring: undefined,
      availIndex: 0,
      queue: undefined,
      listeners: new Set<() => void>(),
    }))
    this.#waiting = Array.from({ length: pairs }, () => [])
  }

  [shown](depth: number, options: InspectOptions): string {
    const fields = {
      started: this.#started,
      queues: this.#queues.length,
      features: hex(this.#negotiated),
      ...this.#counts,
    }
    return summary('LoopbackDevice', fields, depth, options)
  }

  setFeatures(bits: bigint): void {
    if ((bits & ~this.features) !== 0n) {
      throw new RangeError(`features not offered: 0x${(bits & ~this.features).toString(16)}`)
    }
    this.#negotiated = bits
  }

  setQueue(index: number, ring: RingAddresses, state?: { readonly availIndex: number }): void {
    const queue = this.#queue(index)
    queue.ring = ring
    queue.availIndex = state?.availIndex ?? 0
  }

  start(): void {
    if (this.#started) throw new InvalidState('ERR_ALREADY_STARTED', 'the device is started')
    const { memory, addressSpace } = this.#options
    const translated =
      hasFeature(this.#negotiated, 'VIRTIO_F_ACCESS_PLATFORM') && addressSpace !== undefined
    const view = translated ? translatedView(memory, addressSpace) : physicalView(memory)
    this.#window = new DmaWindow(view)
    for (const queue of this.#queues) {
      if (queue.ring === undefined) continue
      queue.queue = new SplitQueue(view, queue.ring, {
        eventIndex: hasFeature(this.#negotiated, 'VIRTIO_F_EVENT_IDX'),
        indirect: hasFeature(this.#negotiated, 'VIRTIO_F_INDIRECT_DESC'),
        availIndex: queue.availIndex,
      })
    }
    this.#started = true
  }

  stop(): void {
    this.#started = false
    if (this.#turn !== undefined) clearImmediate(this.#turn)
    this.#turn = undefined
    this.#kicked.clear()
    for (const queue of this.#queues) {
      queue.availIndex = queue.queue?.availIndex ?? queue.availIndex
      queue.queue = undefined
    }
  }

  /** Work happens in a later turn of the event loop, or in `run()`. */
  kick(index: number): void {
    this.#queue(index)
    if (!this.#started) return
    this.#kicked.add(index)
    this.#turn ??= setImmediate(() => {
      this.#turn = undefined
      this.run()
    })
  }

  onCall(index: number, listener: () => void): Disposable {
    const { listeners } = this.#queue(index)
    listeners.add(listener)
    return { [Symbol.dispose]: () => void listeners.delete(listener) }
  }

  /** Once for each pass that met a chain it could not use. */
  onError(listener: (index: number) => void): Disposable {
    this.#errors.add(listener)
    return { [Symbol.dispose]: () => void this.#errors.delete(listener) }
  }

  /** Does now what the kicks so far asked for. */
  run(): void {
    for (const index of [...this.#kicked]) {
      this.#kicked.delete(index)
      if (index % 2 === 1) this.#transmit(index)
      else this.#receive(index)
    }
  }

  /**
   * A frame arrives from outside. It goes into the driver's buffers now, or when there are some.
   * @returns false when it was dropped
   */
  receive(frame: Uint8Array, pair = 0): boolean {
    return this.#arrive(frame, new Uint8Array(NET_HEADER_BYTES), pair)
  }

  stats(): LoopbackStats {
    return { ...this.#counts }
  }

  close(): void {
    this.stop()
  }

  [Symbol.dispose](): void {
    this.close()
  }

  #arrive(frame: Uint8Array, header: Uint8Array, pair: number): boolean {
    const waiting = this.#waiting[pair]
    if (waiting.length >= (this.#options.backlog ?? 1024)) {
      this.#counts.dropped += 1
      return false
    }
    waiting.push({ frame, header })
    this.kick(2 * pair)
    return true
  }

  #transmit(index: number): void {
    const { queue } = this.#queue(index)
    if (queue === undefined) return
    queue.disableKicks()
    for (;;) {
      const usable = this.#drain(queue, index >> 1)
      if (queue.publish()) this.#call(index)
      if (!usable) this.#error(index)
      if (queue.enableKicks(queue.left) || !usable) return
    }
  }

  /** @returns false at a chain, or a ring, that can't be reached */
  #drain(queue: SplitQueue, pair: number): boolean {
    const { chain } = queue
    while (queue.next()) {
      if (chain.refusal !== undefined || chain.readableBytes <= NET_HEADER_BYTES) {
        this.#counts.errors += 1
      } else if (!this.#readChain(chain)) {
        queue.putBack()
        return false
      } else {
        this.#sent(chain.readableBytes, pair)
      }
      queue.complete(chain.head, 0)
    }
    return chain.refusal === undefined
  }

  #sent(bytes: number, pair: number): void {
    this.#counts.transmitted += 1
    const frame = this.#bytes.slice(NET_HEADER_BYTES, bytes)
    const { onTransmit } = this.#options
    if (onTransmit === undefined) {
      this.#arrive(frame, this.#bytes.slice(0, NET_HEADER_BYTES), pair)
      return
    }
    this.#header.read(this.#bytes, 0)
    onTransmit(frame, this.#header, pair)
  }

  #readChain(chain: Chain): boolean {
    const window = this.#window
    if (window === undefined || chain.readableBytes > this.#bytes.length) return false
    let at = 0
    for (let i = 0; i < chain.count && chain.writable[i] === 0; i++) {
      const length = chain.length[i]
      if (!window.read(chain.page[i], chain.offset[i], this.#bytes, at, length)) return false
      at += length
    }
    return true
  }

  #receive(index: number): void {
    const { queue } = this.#queue(index)
    const waiting = this.#waiting[index >> 1]
    if (queue === undefined) return
    queue.disableKicks()
    for (;;) {
      let placed: Placed = 'placed'
      while (waiting.length > 0 && placed === 'placed') {
        placed = this.#place(queue, waiting[0])
        if (placed === 'placed') waiting.shift()
      }
      if (queue.publish()) this.#call(index)
      if (placed === 'unreachable') this.#error(index)
      if (queue.enableKicks(queue.left) || placed !== 'no room') return
    }
  }

  /** Writes a frame into as many chains as it needs. */
  #place(queue: SplitQueue, { frame, header }: Waiting): Placed {
    const { chain } = queue
    const total = NET_HEADER_BYTES + frame.length
    this.#bytes.set(header)
    this.#bytes.set(frame, NET_HEADER_BYTES)
    const mergeable = hasFeature(this.#negotiated, 'VIRTIO_NET_F_MRG_RXBUF')
    const taken: Taken[] = []
    for (let done = 0; done < total;) {
      const offered = queue.next()
      const usable = offered && chain.refusal === undefined && chain.readableBytes === 0
      const length = usable ? this.#writeChain(chain, done, total) : -1
      if (length < 0) {
        for (let back = taken.length + (offered ? 1 : 0); back > 0; back--) queue.putBack()
        return offered || chain.refusal !== undefined ? 'unreachable' : 'no room'
      }
      taken.push({ head: chain.head, length, page: chain.page[0], offset: chain.offset[0] })
      done += length
      if (mergeable || done === total) continue
      queue.putBack()
      this.#counts.dropped += 1
      return 'placed'
    }
    this.#finish(queue, taken)
    return 'placed'
  }

  /** The number of buffers goes into the first one, last; then all are completed at once. */
  #finish(queue: SplitQueue, taken: readonly Taken[]): void {
    const [{ page, offset }] = taken
    const count = Uint8Array.of(taken.length & 0xff, taken.length >> 8)
    this.#window?.write(page, offset + NET_HEADER.bufferCount, count, 0, 2)
    for (const { head, length } of taken) queue.complete(head, length)
    this.#counts.received += 1
  }

  /** @returns bytes written, or -1 where a buffer can't be reached */
  #writeChain(chain: Chain, from: number, total: number): number {
    let at = from
    for (let i = 0; i < chain.count && at < total; i++) {
      const length = Math.min(chain.length[i], total - at)
      const { page, offset } = { page: chain.page[i], offset: chain.offset[i] }
      if (this.#window?.write(page, offset, this.#bytes, at, length) !== true) return -1
      at += length
    }
    return at - from
  }

  #error(index: number): void {
    this.#counts.errors += 1
    for (const listener of this.#errors) listener(index)
  }

  #call(index: number): void {
    for (const listener of this.#queue(index).listeners) listener()
  }

  #queue(index: number): Queue {
    if (index in this.#queues) return this.#queues[index]
    throw new RangeError(`queues are 0 to ${this.#queues.length - 1}: ${index}`)
  }
}

/**
 * A network device whose rings are watched: what is offered and completed, kicks, calls, frames.
 *
 * It reads the rings as the device does, at the moments at which the driver passes by: when it
 * offers or kicks, and before it is told of a call. Nothing is recorded in the address space as a
 * fault, and work is bounded by the size of the ring.
 */
import { PAGE_SIZE, READ } from '../address'
import { PageTranslation } from '../memory/address-space'
import type { AddressSpace } from '../memory/address-space'
import { Chain } from '../virtio/chain'
import { DmaWindow, physicalView, translatedView } from '../virtio/dma-view'
import type { ByteSpace, DmaView } from '../virtio/dma-view'
import { features } from '../virtio/net'
import type { NetDevice } from '../virtio/net-device'
import { USED, ringLayout } from '../virtio/ring-layout'
import type { RingAddresses } from '../virtio/ring-layout'
import { SplitQueue } from '../virtio/split-queue'
import type { TraceClock, TraceSink } from './event'

export interface RecordedDeviceOptions {
  readonly memory: ByteSpace
  /** As the device has it; without one its addresses are gpas. */
  readonly addressSpace?: AddressSpace
  /** Bytes of each frame that are kept; 0, the default, records no frames. */
  readonly frameBytes?: number
}

/** What can be recorded; a device behind a transport may be able to take one queue back. */
export type RecordableDevice = NetDevice & { resetQueue?(index: number): void }

interface Surroundings extends RecordedDeviceOptions {
  readonly sink: TraceSink
  readonly clock: TraceClock
}

const INDEX_MASK = 0xffff
const ACCESS_PLATFORM = features('VIRTIO_F_ACCESS_PLATFORM')
const MERGEABLE = features('VIRTIO_NET_F_MRG_RXBUF')
const LONG_HEADER = features('VIRTIO_F_VERSION_1', 'VIRTIO_NET_F_MRG_RXBUF')
/** virtio 1.3, 5.1.6: `num_buffers`. */
const NUM_BUFFERS = 10

export class RecordedDevice implements NetDevice {
  readonly offering?: (index: number, availIndex: number) => void
  readonly resetQueue?: (index: number) => void
  readonly #nic: RecordableDevice
  readonly #around: Surroundings
  readonly #idOf: (pair: number) => number
  readonly #rings = new Map<number, RingWatch>()
  #acknowledged = 0n

  constructor(nic: RecordableDevice, around: Surroundings, idOf: (pair: number) => number) {
    this.#nic = nic
    this.#around = around
    this.#idOf = idOf
    if (nic.offering !== undefined) {
      this.offering = (index, availIndex) => {
        this.#rings.get(index)?.offered(availIndex)
        nic.offering?.(index, availIndex)
      }
    }
    if (nic.resetQueue !== undefined) {
      this.resetQueue = (index) => {
        nic.resetQueue?.(index)
        this.#rings.delete(index)
      }
    }
  }

  get features(): bigint {
    return this.#nic.features
  }

  get requester(): number | undefined {
    return this.#nic.requester
  }

  setFeatures(bits: bigint): void {
    this.#note('features', 0, { bits })
    this.#acknowledged = bits
    this.#nic.setFeatures(bits)
  }

  setQueue(index: number, ring: RingAddresses, state?: { readonly availIndex: number }): void {
    this.#nic.setQueue(index, ring, state)
    const { size, desc, avail, used } = ring
    this.#note('ring', index, { queue: index & 1, size, desc, avail, used })
    const identity = { device: this.#idOf(index >> 1), queue: index & 1 }
    const begin = state?.availIndex ?? 0
    this.#rings.set(
      index,
      new RingWatch(this.#around, this.#view(), ring, begin, identity, this.#acknowledged),
    )
  }

  start(): void {
    this.#note('start', 0)
    for (const ring of this.#rings.values()) ring.learnRings()
    this.#nic.start()
  }

  stop(): void {
    this.#nic.stop()
    this.#note('stop', 0)
  }

  kick(index: number): void {
    this.#rings.get(index)?.offered()
    this.#note('kick', index, { queue: index & 1 })
    this.#nic.kick(index)
  }

  onCall(index: number, listener: () => void): Disposable {
    return this.#nic.onCall(index, () => {
      this.#rings.get(index)?.completed()
      this.#note('call', index, { queue: index & 1 })
      listener()
    })
  }

  onError(listener: (index: number) => void): Disposable {
    return this.#nic.onError?.(listener) ?? { [Symbol.dispose]: () => undefined }
  }

  #note(kind: string, index: number, fields: object = {}): void {
    const { sink, clock } = this.#around
    sink({
      kind,
      at: clock(),
      device: this.#idOf(index >> 1),
      ...fields,
    } as Parameters<TraceSink>[0])
  }

  #view(): DmaView {
    const { memory, addressSpace } = this.#around
    if (addressSpace === undefined || (this.#acknowledged & ACCESS_PLATFORM) === 0n) {
      return physicalView(memory)
    }
    const view = translatedView(memory, addressSpace)
    return {
      get generation() {
        return view.generation
      },
      // Asks for nothing in particular: no refusal is recorded as the device's, and what the device
      // may only write can be read.
      locate: (page, _wanted, out) => view.locate(page, 0, out),
    }
  }
}

interface Offered {
  readonly index: number
  /** Four numbers a buffer, as in the event. */
  readonly buffers: readonly number[]
}

class RingWatch {
  readonly #around: Surroundings
  readonly #ring: RingAddresses
  readonly #identity: { readonly device: number; readonly queue: number }
  readonly #queue: SplitQueue
  readonly #bytes: DmaWindow
  readonly #used: DmaWindow
  readonly #chain = new Chain(1024)
  readonly #offers = new Map<number, Offered>()
  readonly #headerBytes: number
  readonly #mergeable: boolean
  /** Pages that were told of, until the address space says that something changed. */
  readonly #known = new Set<number>()
  readonly #found = new PageTranslation()
  #generation = -1
  #next: number
  #done: number
  #partial: { left: number; length: number; kept: Uint8Array[] } | undefined

  constructor(
    around: Surroundings,
    view: DmaView,
    ring: RingAddresses,
    begin: number,
    identity: { readonly device: number; readonly queue: number },
    acknowledged: bigint,
  ) {
    this.#around = around
    this.#ring = ring
    this.#identity = identity
    this.#queue = new SplitQueue(view, ring, { availIndex: begin })
    this.#bytes = new DmaWindow(view)
    this.#used = new DmaWindow(view)
    this.#headerBytes = (acknowledged & LONG_HEADER) === 0n ? 10 : 12
    this.#mergeable = (acknowledged & MERGEABLE) !== 0n
    this.#next = begin
    this.#done = begin
  }

  /** The pages of the ring's own parts. */
  learnRings(): void {
    const { descBytes, availBytes, usedBytes } = ringLayout(this.#ring.size)
    const lengths = { desc: descBytes, avail: availBytes, used: usedBytes }
    for (const name of ['desc', 'avail', 'used'] as const) {
      const at = this.#ring[name]
      this.#learn(Number(at >> 12n), Number(at & 0xfffn) + lengths[name])
    }
  }

  /** Writes down the chains up to a free-running index, or to the driver's own. */
  offered(index = this.#queue.offeredIndex()): void {
    if (index < 0) return
    const count = Math.min((index - this.#next) & INDEX_MASK, this.#ring.size)
    for (let i = count; i > 0; i--) this.#offer((index - i) & INDEX_MASK)
    this.#next = index
  }

  /** Writes down the chains that the device has completed. */
  completed(): void {
    const index = this.#queue.completedIndex()
    if (index < 0) return
    this.offered()
    const count = Math.min((index - this.#done) & INDEX_MASK, this.#ring.size)
    for (let i = count; i > 0; i--) this.#complete((index - i) & INDEX_MASK)
    this.#done = index
  }

  #offer(index: number): void {
    const chain = this.#chain
    if (!this.#queue.peek(index, chain) && chain.count === 0) return
    const { head, count, indirectBytes } = chain
    const buffers: number[] = []
    for (let i = 0; i < count; i++) {
      this.#learn(chain.page[i], chain.offset[i] + chain.length[i])
      buffers.push(chain.page[i], chain.offset[i], chain.length[i], chain.writable[i])
    }
    const indirectPage = indirectBytes > 0 ? chain.indirectPage : 0
    if (indirectBytes > 0) this.#learn(indirectPage, chain.indirectOffset + indirectBytes)
    this.#note({ kind: 'offer', index, head, indirectPage, buffers })
    this.#offers.set(head, { index, buffers })
    const { frameBytes = 0 } = this.#around
    if (this.#identity.queue === 1 && frameBytes > 0) {
      const length = chain.readableBytes - this.#headerBytes
      if (length >= 0) this.#frame(length, this.#read(buffers, this.#headerBytes, length))
    }
  }

  #complete(index: number): void {
    const { used, size } = this.#ring
    const entry = Number(used & 0xfffn) + USED.ring + USED.entry * (index & (size - 1))
    const id = this.#used.reach(Number(used >> 12n), entry + USED.id, READ)
    const head = id < 0 ? -1 : this.#used.region.u32[id / 4]
    const at = this.#used.reach(Number(used >> 12n), entry + USED.len, READ)
    const offered = this.#offers.get(head)
    if (at < 0 || offered === undefined) return
    const written = this.#used.region.u32[at / 4]
    this.#offers.delete(head)
    this.#note({ kind: 'complete', index: offered.index, head, written })
    if (this.#identity.queue === 0 && (this.#around.frameBytes ?? 0) > 0) {
      this.#received(offered.buffers, written)
    }
  }

  /** A frame may be in several buffers; the first one says how many (virtio 1.3, 5.1.6.4). */
  #received(buffers: readonly number[], written: number): void {
    if (this.#partial === undefined) {
      if (written < this.#headerBytes) return
      const header = this.#read(buffers, 0, this.#headerBytes)
      const left = this.#mergeable ? header[NUM_BUFFERS] | (header[NUM_BUFFERS + 1] << 8) : 1
      const length = written - this.#headerBytes
      const kept = [this.#read(buffers, this.#headerBytes, length)]
      this.#partial = { left, length, kept }
    } else {
      this.#partial.length += written
      this.#partial.kept.push(this.#read(buffers, 0, written))
    }
    this.#partial.left--
    if (this.#partial.left > 0) return
    const { length, kept } = this.#partial
    this.#partial = undefined
    this.#frame(length, Buffer.concat(kept))
  }

  #frame(length: number, bytes: Uint8Array): void {
    const { frameBytes = 0 } = this.#around
    this.#note({ kind: 'frame', length, bytes: bytes.subarray(0, frameBytes) })
  }

  /** Bytes of a chain from an offset on, as many as are kept, or fewer where it can't be read. */
  #read(buffers: readonly number[], from: number, length: number): Uint8Array {
    const wanted = Math.min(length, this.#around.frameBytes ?? 0)
    const out = new Uint8Array(
      Math.max(wanted, from === 0 ? Math.min(length, this.#headerBytes) : 0),
    )
    let [skip, done] = [from, 0]
    for (let i = 0; i + 3 < buffers.length && done < out.length; i += 4) {
      const [page, offset, bytes] = [buffers[i], buffers[i + 1], buffers[i + 2]]
      const run = Math.min(bytes - skip, out.length - done)
      if (run > 0) {
        if (!this.#bytes.read(page, offset + skip, out, done, run)) return out.subarray(0, done)
        done += run
      }
      skip = Math.max(0, skip - bytes)
    }
    return out
  }

  #learn(page: number, bytes: number): void {
    const { addressSpace } = this.#around
    if (addressSpace === undefined) return
    if (this.#generation !== addressSpace.generation) this.#known.clear()
    this.#generation = addressSpace.generation
    const last = page + Math.floor((bytes - 1) / PAGE_SIZE)
    for (let next = page; next <= last && next - page < this.#ring.size; next++) {
      if (this.#known.has(next)) continue
      this.#known.add(next)
      if (!addressSpace.translatePage(next, 0, this.#found)) continue
      const { firstPage, lastPage, gpaPage, access } = this.#found
      this.#note({ kind: 'mapped', firstPage, lastPage, gpaPage, access })
    }
  }

  #note(fields: object): void {
    const { sink, clock } = this.#around
    sink({ at: clock(), ...this.#identity, ...fields } as Parameters<TraceSink>[0])
  }
}

/**
 * One ring of a vhost device: its place, its three eventfds, and who is called for them.
 *
 * It knows where the ring is in each of its states (iovas, or host addresses of guest memory) and
 * reads its used index, but it takes no chain: that is the kernel's.
 */
import { PAGE_SIZE } from '../address'
import type { Gpa } from '../address'
import { InvalidState, SystemError } from '../errors'
import type { RingOutlook } from '../iotlb/miss-handler'
import type { GuestMemory } from '../memory/guest-memory'
import { native } from '../native'
import type { Descriptor, Poller } from '../native'
import { DmaWindow } from '../virtio/dma-view'
import type { DmaView } from '../virtio/dma-view'
import { AVAIL, RING_ALIGNMENT, USED, ringLayout } from '../virtio/ring-layout'
import type { RingAddresses } from '../virtio/ring-layout'
import type { RingEvents } from './vhost-device'
import { watch } from './watch'

const READ = 1
const WRITE = 2
const INDEX_MASK = 0xffff
const LAST_INDEX = 0xffff
const LAST_64 = (1n << 64n) - 1n

/** Where a ring goes on after it was stopped, or was moved from elsewhere. */
export interface QueueState {
  /** The free-running 16-bit index of the next chain to take. */
  readonly availIndex: number
}

/** A part of the ring as inclusive pages, and what the device does there. */
export interface RingPart {
  readonly name: 'desc' | 'avail' | 'used'
  readonly firstPage: number
  readonly lastPage: number
  readonly wanted: 1 | 3
}

export class Vring {
  readonly events: RingEvents
  /** The index of the next chain, while the ring is stopped. */
  base = 0
  running = false
  /** Who looks into the ring before the kernel does, while it runs. */
  outlook: RingOutlook | undefined
  kicks = 0
  calls = 0
  /** Hears of each word that `complete` writes, by gpa. */
  wrote: ((at: number, bytes: number) => void) | undefined
  /** Chains completed, as far as they were seen (`sample`). */
  chains = 0
  readonly #one = new Uint8Array(8)
  readonly #writeKick: () => number
  readonly #counter = new Uint8Array(8)
  #ring: RingAddresses | undefined
  #used: DmaWindow | undefined
  #avail: DmaWindow | undefined
  #usedIndex = -1
  #pollers: Poller[] = []

  /** @throws SystemError EMFILE */
  constructor(readonly index: number) {
    this.#one[0] = 1
    const made: Descriptor[] = []
    for (let i = 0; i < 3; i++) {
      const eventfd = native().eventfd(0)
      if (typeof eventfd === 'number') {
        for (const descriptor of made) descriptor.close()
        throw new SystemError(eventfd, 'eventfd')
      }
      made.push(eventfd)
    }
    const [kick, call, error] = made
    this.events = { kick, call, error }
    this.#writeKick = native().writer(kick, this.#one, 8)
  }

  get ring(): RingAddresses | undefined {
    return this.#ring
  }

  /** @throws RangeError, as `checkRing`; InvalidState ERR_ALREADY_STARTED */
  configure(ring: RingAddresses, state: QueueState = { availIndex: 0 }): void {
    if (this.running) throw new InvalidState('ERR_ALREADY_STARTED', 'the ring is running: stop it')
    checkRing(ring)
    const { availIndex } = state
    if (!Number.isInteger(availIndex) || availIndex < 0 || availIndex > LAST_INDEX) {
      throw new RangeError(`an available index is from 0 to ${LAST_INDEX}: ${availIndex}`)
    }
    this.#ring = ring
    this.base = availIndex
  }

  forget(): void {
    this.#ring = undefined
    this.base = 0
  }

  parts(): readonly RingPart[] {
    const ring = this.#configured()
    const { descBytes, availBytes, usedBytes } = ringLayout(ring.size)
    return [
      part('desc', ring.desc, descBytes, 1),
      part('avail', ring.avail, availBytes, 1),
      part('used', ring.used, usedBytes, 3),
    ]
  }

  /**
   * The ring's gpas as host addresses.
   * @throws RangeError for a part that is not in guest memory as a whole
   */
  inHostMemory(memory: GuestMemory): RingAddresses {
    const ring = this.#configured()
    const { descBytes, availBytes, usedBytes } = ringLayout(ring.size)
    return {
      size: ring.size,
      desc: hostAddress(memory, 'desc', ring.desc, descBytes),
      avail: hostAddress(memory, 'avail', ring.avail, availBytes),
      used: hostAddress(memory, 'used', ring.used, usedBytes),
    }
  }

  /** Starts to count chains, through the eyes of the device. */
  observe(view: DmaView): void {
    this.#used = new DmaWindow(view)
    this.#avail = new DmaWindow(view)
    this.#usedIndex = this.usedIndex()
  }

  /** The used index, or -1 where the ring can't be read. */
  usedIndex(): number {
    const at = this.#reachUsed(USED.idx, READ)
    const region = this.#used?.region
    return at < 0 || region === undefined ? -1 : Atomics.load(region.u16, at / 2)
  }

  /** What the driver has offered, as a free-running index; -1 where the ring can't be read. */
  availIndex(): number {
    if (this.#avail === undefined || this.#ring === undefined) return -1
    const { avail } = this.#ring
    const at = this.#avail.reach(Number(avail >> 12n), Number(avail & 0xfffn) + AVAIL.idx, READ)
    return at < 0 ? -1 : Atomics.load(this.#avail.region.u16, at / 2)
  }

  /**
   * Counts what was completed since the last time. Once in 65536 chains is often enough; where it
   * is not, whole rounds are missed.
   */
  sample(): void {
    const now = this.usedIndex()
    if (now < 0) return
    if (this.#usedIndex >= 0) this.chains += (now - this.#usedIndex) & INDEX_MASK
    this.#usedIndex = now
  }

  /**
   * Completes a chain in the kernel's place, with nothing written, and calls the driver. Only while
   * the ring has no backend.
   */
  complete(head: number): boolean {
    const index = this.usedIndex()
    if (index < 0) return false
    const entry = USED.ring + USED.entry * (index & (this.#configured().size - 1))
    const id = this.#reachUsed(entry + USED.id, WRITE)
    if (id < 0) return false
    this.#used!.region.u32[id / 4] = head
    this.#tell(id)
    const length = this.#reachUsed(entry + USED.len, WRITE)
    if (length < 0) return false
    this.#used!.region.u32[length / 4] = 0
    this.#tell(length)
    const at = this.#reachUsed(USED.idx, WRITE)
    if (at < 0) return false
    Atomics.store(this.#used!.region.u16, at / 2, (index + 1) & INDEX_MASK)
    this.#tell(at)
    native().write(this.events.call, this.#one, 0, 8)
    return true
  }

  kick(): void {
    this.kicks++
    this.#writeKick()
  }

  /** Watches for calls and for errors, until `unwatch`. */
  watch(onCall: () => void, onError: () => void, referenced: boolean): void {
    const { call, error } = this.events
    const called = watch(call, this.#counter, 8, () => {
      this.calls++
      onCall()
    })
    this.#pollers.push(called)
    const failed = watch(error, new Uint8Array(8), 8, onError)
    this.#pollers.push(failed)
    failed.unref()
    if (!referenced) called.unref()
  }

  /** Whether waiting for calls keeps the event loop alive. */
  reference(referenced: boolean): void {
    const called = this.#pollers.at(0)
    if (referenced) called?.ref()
    else called?.unref()
  }

  unwatch(): void {
    for (const poller of this.#pollers) poller.close()
    this.#pollers = []
  }

  close(): void {
    this.unwatch()
    const { kick, call, error } = this.events
    for (const descriptor of [kick, call, error]) descriptor.close()
  }

  #configured(): RingAddresses {
    if (this.#ring !== undefined) return this.#ring
    throw new InvalidState('ERR_NOT_CONFIGURED', `ring ${this.index} has no addresses: setQueue()`)
  }

  #tell(at: number): void {
    this.wrote?.(this.#used!.region.start + at, 1)
  }

  #reachUsed(byte: number, wanted: 1 | 2): number {
    if (this.#used === undefined || this.#ring === undefined) return -1
    const { used } = this.#ring
    return this.#used.reach(Number(used >> 12n), Number(used & 0xfffn) + byte, wanted)
  }
}

/**
 * What the specification asks of a ring, and the kernel checks only in part.
 * @throws RangeError for a size that is no power of two from 1 to 32768, a part that is misaligned
 *   (virtio 1.3, 2.7) or reaches over the end of the address space
 */
export function checkRing(ring: RingAddresses): void {
  const { descBytes, availBytes, usedBytes } = ringLayout(ring.size)
  const lengths = { desc: descBytes, avail: availBytes, used: usedBytes }
  for (const name of ['desc', 'avail', 'used'] as const) {
    const at = ring[name]
    if (typeof at !== 'bigint') throw new TypeError(`${name} is an address: a bigint`)
    if (at < 0n || at + BigInt(lengths[name]) - 1n > LAST_64) {
      throw new RangeError(`${name} is outside the address space: 0x${at.toString(16)}`)
    }
    if (at % BigInt(RING_ALIGNMENT[name]) !== 0n) {
      const alignment = RING_ALIGNMENT[name]
      throw new RangeError(`${name} is not aligned to ${alignment}: 0x${at.toString(16)}`)
    }
  }
}

function part(name: RingPart['name'], at: bigint, bytes: number, wanted: 1 | 3): RingPart {
  const firstPage = Number(at >> 12n)
  const offset = Number(at & 0xfffn)
  return {
    name,
    firstPage,
    lastPage: firstPage + Math.floor((offset + bytes - 1) / PAGE_SIZE),
    wanted,
  }
}

function hostAddress(memory: GuestMemory, name: string, at: bigint, bytes: number): bigint {
  const range = { first: at as Gpa, last: (at + BigInt(bytes) - 1n) as Gpa }
  if (memory.span(range) === undefined) {
    throw new RangeError(`${name} at gpa 0x${at.toString(16)} + ${bytes} is not in guest memory`)
  }
  return memory.hva(at as Gpa)
}

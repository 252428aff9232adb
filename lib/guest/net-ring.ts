/**
 * One queue of a network driver: its ring in guest memory, mapped for as long as the queue lives
 * (what Linux does with `dma_alloc_coherent`), and a pool of page-sized buffers beside it.
 */
import { PAGE_SIZE, READ, READWRITE } from '../address'
import type { AccessBits } from '../address'
import type { GuestMemory } from '../memory/guest-memory'
import { DriverQueue } from '../virtio/driver-queue'
import { DESC, ringLayout } from '../virtio/ring-layout'
import type { RingAddresses } from '../virtio/ring-layout'
import type { DmaPool, GuestDma } from './dma'
import type { PageAllocator } from './page-allocator'
import { PagePool } from './page-pool'

/** Where a driver's memory comes from, and how its device reaches it. */
export interface Surroundings {
  readonly memory: GuestMemory
  readonly pages: PageAllocator
  readonly dma: GuestDma
}

export interface NetRingOptions {
  readonly size: number
  readonly eventIndex: boolean
  /** Entries of each indirect table; 0 for none. */
  readonly indirectSegments: number
}

/** Pages that are mapped together: gpa page, device page, number. */
interface Area {
  readonly gpaPage: number
  readonly devicePage: number
  readonly count: number
}

export class NetRing {
  readonly queue: DriverQueue
  /** As the device uses them. */
  readonly addresses: RingAddresses
  readonly #around: Surroundings
  readonly #areas: Area[] = []

  /** @throws InvalidState ERR_EXHAUSTED; RangeError for a size that no ring has */
  constructor(around: Surroundings, options: NetRingOptions) {
    const { size, eventIndex, indirectSegments } = options
    const layout = ringLayout(size)
    this.#around = around
    try {
      const ring = this.#area(layout.bytes, READWRITE)
      this.addresses = addresses(ring.devicePage, layout)
      const bytes = DESC.bytes * indirectSegments * size
      const tables = bytes === 0 ? undefined : this.#area(bytes, READ)
      const indirect =
        tables === undefined
          ? {}
          : {
              indirect: {
                gpa: byteOf(tables.gpaPage),
                address: byteOf(tables.devicePage),
                segments: indirectSegments,
              },
            }
      this.queue = new DriverQueue(around.memory, addresses(ring.gpaPage, layout), {
        eventIndex,
        ...indirect,
      })
    } catch (error) {
      this.close()
      throw error
    }
  }

  /** The device must have stopped. */
  close(): void {
    const { dma, pages } = this.#around
    for (const { gpaPage, devicePage, count } of this.#areas.splice(0)) {
      dma.unmapPages(devicePage, count)
      pages.free(gpaPage, count)
    }
  }

  #area(bytes: number, access: 1 | 3): Area {
    const { dma, pages } = this.#around
    const count = Math.ceil(bytes / PAGE_SIZE)
    const gpaPage = pages.allocate(count)
    try {
      const area = { gpaPage, devicePage: dma.mapPages(gpaPage, count, access), count }
      this.#areas.push(area)
      return area
    } catch (error) {
      pages.free(gpaPage, count)
      throw error
    }
  }
}

/** Buffers of one page each, contiguous in guest memory, named by number. */
export class BufferPool {
  readonly count: number
  /** The region of memory that they are in. */
  readonly u8: Uint8Array
  readonly u32: Uint32Array
  /** Byte of `u8` at which buffer 0 begins. */
  readonly base: number
  /** As `GuestDma.permanent`: `map` and `unmap` have nothing to do. */
  readonly permanent: boolean
  /** A buffer is at the same device page each time that it is mapped. */
  readonly steady: boolean
  closed = false
  readonly #firstPage: number
  readonly #pages: PageAllocator
  readonly #dma: DmaPool
  readonly #mapped: Uint8Array

  /** @throws InvalidState ERR_EXHAUSTED */
  constructor({ memory, pages, dma }: Surroundings, count: number) {
    this.count = count
    this.permanent = dma.permanent === true
    this.#firstPage = pages.allocate(count)
    const region = memory.find(this.#firstPage * PAGE_SIZE)
    if (region === undefined) throw new RangeError(`page ${this.#firstPage} is not memory`)
    this.u8 = region.u8
    this.u32 = region.u32
    this.base = this.#firstPage * PAGE_SIZE - region.start
    this.#mapped = new Uint8Array(count)
    this.#pages = pages
    try {
      this.#dma = dma.pool?.(this.#firstPage, count) ?? new PagePool(dma, this.#firstPage, count)
      this.steady = this.permanent || this.#dma.steady === true
    } catch (error) {
      pages.free(this.#firstPage, count)
      throw error
    }
  }

  /** Byte of `u8` at which a buffer begins. */
  byteOf(buffer: number): number {
    return this.base + buffer * PAGE_SIZE
  }

  /** @returns the device page */
  map(buffer: number, access: AccessBits): number {
    if (this.permanent) return this.#firstPage + buffer
    const page = this.#dma.map(buffer, access)
    this.#mapped[buffer] = 1
    return page
  }

  /** Buffers of the run that are not mapped are passed over. */
  unmap(first: number, count = 1): void {
    if (this.permanent) return
    const end = first + count
    for (let buffer = first; buffer < end;) {
      const from = buffer
      while (buffer < end && this.#mapped[buffer] === 1) this.#mapped[buffer++] = 0
      if (buffer > from) this.#dma.unmap(from, buffer - from)
      else buffer++
    }
  }

  /** Unmaps everything. The device must have stopped. */
  close(): void {
    this.closed = true
    this.unmap(0, this.count)
    this.#dma.close()
    this.#pages.free(this.#firstPage, this.count)
  }
}

function addresses(page: number, layout: ReturnType<typeof ringLayout>): RingAddresses {
  const start = byteOf(page)
  return {
    size: layout.size,
    desc: start + BigInt(layout.desc),
    avail: start + BigInt(layout.avail),
    used: start + BigInt(layout.used),
  }
}

function byteOf(page: number): bigint {
  return BigInt(page) << 12n
}

/** What the tests of the miss loop share: host memory by arithmetic, and a loop made of fakes. */
import type { Access, AccessBits, Hva, Iova, Range } from '../../lib/address'
import { SystemError } from '../../lib/errors'
import type { IotlbChannel, Miss } from '../../lib/iotlb/channel'
import { MissHandler } from '../../lib/iotlb/miss-handler'
import type { MissHandlerOptions, RingOutlook } from '../../lib/iotlb/miss-handler'
import type { HostMemory, HostRegion } from '../../lib/iotlb/reply'
import { FakeAddressSpace } from '../../lib/testing/fake-address-space'
import { FakeVhost } from '../../lib/testing/fake-channel'
import type { FakeVhostOptions } from '../../lib/testing/fake-channel'
import { physicalView } from '../../lib/virtio/dma-view'
import type { ByteSpace, RegionViews } from '../../lib/virtio/dma-view'
import { DriverQueue } from '../../lib/virtio/driver-queue'

/** Where region 0 begins in the host. */
export const HVA_PAGE = 0x7f00_0000_0

export const byte = (page: number, offset = 0): bigint => (BigInt(page) << 12n) + BigInt(offset)

/** Regions by gpa page; host pages far apart unless given. */
export function hostMemory(
  ...regions: readonly { gpaPage: number; pages: number; hvaPage?: number }[]
): HostMemory {
  const made: HostRegion[] = regions.map(({ gpaPage, pages, hvaPage }, index) => ({
    start: gpaPage * 4096,
    end: (gpaPage + pages) * 4096,
    hvaPage: hvaPage ?? HVA_PAGE + index * 0x1000_0000,
  }))
  return { find: (gpa) => made.find(({ start, end }) => gpa >= start && gpa < end) }
}

export interface Loop {
  readonly vhost: FakeVhost
  readonly space: FakeAddressSpace
  readonly handler: MissHandler
}

/** One region of 64 Ki pages at gpa 0, unless the options bring another memory. */
export function loop(
  options: Partial<Omit<MissHandlerOptions, 'addressSpace'>> & { vhost?: FakeVhostOptions } = {},
): Loop {
  const vhost = new FakeVhost(options.vhost)
  const space = new FakeAddressSpace()
  const handler = new MissHandler({
    channel: vhost,
    addressSpace: space,
    memory: hostMemory({ gpaPage: 0, pages: 0x10000 }),
    ...options,
  })
  return { vhost, space, handler }
}

/** The host address of a byte of region 0. */
export function hvaOf(gpaPage: number, offset = 0): bigint {
  return byte(HVA_PAGE + gpaPage, offset)
}

/** Plain bytes from gpa 0 on: for rings that no kernel looks at. */
export function plainBytes(bytes: number): ByteSpace {
  const buffer = new ArrayBuffer(bytes)
  const region: RegionViews = {
    start: 0,
    end: bytes,
    u8: new Uint8Array(buffer),
    u16: new Uint16Array(buffer),
    u32: new Uint32Array(buffer),
  }
  return { find: (at) => (at >= 0 && at < bytes ? region : undefined) }
}

/** A driver's ring that a handler looks into; only buffers are behind the IOMMU. */
export class LookedInto {
  readonly outlook: RingOutlook
  readonly #driver: DriverQueue

  constructor(handler: MissHandler, size: number) {
    const ring = { size, desc: 0n, avail: 0x1000n, used: 0x2000n }
    const bytes = plainBytes(0x3000)
    this.#driver = new DriverQueue(bytes, ring)
    this.outlook = handler.lookInto(physicalView(bytes), ring, 0)
  }

  /** Offers a buffer, unless the ring is full. */
  offer(at: bigint, length: number, writable: boolean): void {
    if (!this.#driver.fits(1)) return
    this.#driver.add([{ address: at, length, writable }], 0)
    this.#driver.publish()
  }
}

/** A channel that refuses what it is told to, before (`'lost'`) or after (`'done'`) it took effect. */
export class Refusing implements IotlbChannel {
  /** Decides for each message; undefined lets it pass. */
  refuse: (message: 'update' | 'invalidate' | 'drain') => 'lost' | 'done' | undefined = () =>
    undefined

  /** Called when a message took effect, before the write returns. */
  sent: (message: 'update' | 'invalidate' | 'drain') => void = () => undefined

  constructor(readonly inner: FakeVhost) {}

  get limit(): number {
    return this.inner.limit
  }

  drain(): readonly Miss[] {
    this.#pass('drain', () => undefined)
    return this.inner.drain()
  }

  update(range: Range<Iova>, hva: Hva, access: Access): void {
    this.#pass('update', () => {
      this.inner.update(range, hva, access)
    })
  }

  invalidate(range: Range<Iova>): void {
    this.#pass('invalidate', () => {
      this.inner.invalidate(range)
    })
  }

  updatePages(firstPage: number, lastPage: number, hvaPage: number, access: AccessBits): void {
    this.#pass('update', () => {
      this.inner.updatePages(firstPage, lastPage, hvaPage, access)
    })
  }

  invalidatePages(firstPage: number, lastPage: number): void {
    this.#pass('invalidate', () => {
      this.inner.invalidatePages(firstPage, lastPage)
    })
  }

  onReadable(listener: () => void): Disposable {
    return this.inner.onReadable(listener)
  }

  #pass(message: 'update' | 'invalidate' | 'drain', send: () => void): void {
    const refused = this.refuse(message)
    if (refused !== 'lost') {
      send()
      this.sent(message)
    }
    if (refused !== undefined) throw new SystemError(14, 'write')
  }
}

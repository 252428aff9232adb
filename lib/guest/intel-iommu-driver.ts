/**
 * The guest's driver of VT-d for one device: maps, unmaps and invalidates as Linux's intel-iommu
 * does, so that the emulated unit sees what a real guest would send.
 *
 * Strict: the tables change, then the IOTLB and the device TLB are invalidated and the wait is
 * done, then the iova may be used again. Lazy: up to 256 unmapped ranges or 10 ms share one
 * domain-wide invalidation; their iovas are not used again before it. A unit with caching mode is
 * always driven strictly, and hears of what is mapped too.
 */
import type { InspectOptions } from 'node:util'
import { PAGE_SHIFT, PAGE_SIZE, READWRITE, accessBits } from '../address'
import type { Access, AccessBits, Gpa, Iova } from '../address'
import { InvalidState } from '../errors'
import { plain, shown, summary } from '../inspect'
import type { Iommu, MmioDevice, Requester } from '../iommu/iommu'
import { requesterName, sourceId } from '../iommu/iommu'
import type { GuestMemory } from '../memory/guest-memory'
import type { DmaPool, GuestDma, Mapping } from './dma'
import { IntelIommuUnit } from './intel-iommu-unit'
import type { DriverOrder, UnitFault } from './intel-iommu-unit'
import { IovaAllocator } from './iova-allocator'
import { PageAllocator } from './page-allocator'
import { PagePool } from './page-pool'
import { TableBuilder } from './table-builder'
import type { LeafLevel } from './table-builder'

export type PageSize = '4K' | '2M' | '1G'

/** An IOMMU as its driver reaches it. `setAts` stands for the device's own ATS capability. */
export type DrivenIommu = Pick<Iommu, 'addressSpace'> &
  MmioDevice & { setAts?(requester: Requester, enabled: boolean): void }

export interface IntelIommuDriverOptions {
  readonly requester: Requester
  readonly mode: Mapping
  /** Where tables come from; default: the allocator that this memory's drivers share. */
  readonly pages?: PageAllocator
  /** Static: the largest leaf to use; default the largest that the unit has. */
  readonly pageSize?: PageSize
  /** Context entries with TT = 1, ATS switched on, device-TLB invalidations sent. Default true. */
  readonly deviceTlb?: boolean
  /** 6.12 (default): IOTLB and device TLB in one submission. 6.1: in two. */
  readonly order?: DriverOrder
  /** Runs a callback after a time; default `setTimeout`, not holding the process. */
  readonly after?: After
}

export type After = (milliseconds: number, callback: () => void) => Disposable

const LEAF_OF_PAGE_SIZE = { '4K': 1, '2M': 2, '1G': 3 } as const
/** drivers/iommu/dma-iommu.c: IOVA_DEFAULT_FQ_SIZE, IOVA_DEFAULT_FQ_TIMEOUT. */
const LAZY_ENTRIES = 256
const LAZY_MILLISECONDS = 10
/** VT-d 4.1, 3.15: requests to this range are interrupts. */
const INTERRUPT_PAGES = { first: 0xfee00, last: 0xfeeff } as const

/** Ranges that are unmapped and not invalidated. */
class FlushQueue {
  readonly first = new Float64Array(LAZY_ENTRIES)
  readonly pages = new Float64Array(LAZY_ENTRIES)
  count = 0
}

export class IntelIommuDriver implements GuestDma, Disposable {
  readonly mode: Mapping
  readonly permanent: boolean
  readonly #iommu: DrivenIommu
  readonly #memory: GuestMemory
  readonly #pages: PageAllocator
  readonly #source: number
  readonly #options: IntelIommuDriverOptions
  readonly #order: DriverOrder
  readonly #waiting = new FlushQueue()
  readonly #after: After
  /** Lengths of what `map` gave out, by first iova page. */
  readonly #mapped = new Map<number, number>()
  #unit: IntelIommuUnit | undefined
  #tables: TableBuilder | undefined
  #iovas: IovaAllocator | undefined
  #domain = 0
  #deviceTlb = false
  #cachingMode = false
  #timer: Disposable | undefined
  #enabled = false

  constructor(iommu: DrivenIommu, memory: GuestMemory, options: IntelIommuDriverOptions) {
    this.mode = options.mode
    this.permanent = options.mode !== 'strict' && options.mode !== 'lazy'
    this.#iommu = iommu
    this.#memory = memory
    this.#options = options
    this.#pages = options.pages ?? PageAllocator.of(memory)
    this.#source = sourceId(options.requester)
    this.#order = options.order ?? '6.12'
    this.#after = options.after ?? afterTimeout
  }

  get enabled(): boolean {
    return this.#enabled
  }

  /** Invalidations and waits sent so far by the whole unit; zeros while it is switched off. */
  get submitted(): { readonly invalidations: number; readonly submissions: number } {
    if (!this.#enabled || this.#unit === undefined) return { invalidations: 0, submissions: 0 }
    const { invalidations, submissions } = this.#unit.queue
    return { invalidations, submissions }
  }

  /**
   * Tables, context entry, ATS. With `mode: 'off'` nothing but the call itself.
   * @throws InvalidState ERR_ALREADY_STARTED, or ERR_UNSUPPORTED by this IOMMU
   */
  enable(): void {
    if (this.#enabled) throw new InvalidState('ERR_ALREADY_STARTED', 'the driver is enabled')
    if (this.mode !== 'off') this.#attach()
    this.#enabled = true
  }

  /** Everything unmapped, invalidated and given back. */
  disable(): void {
    if (!this.#enabled) return
    this.#enabled = false
    this.#timer?.[Symbol.dispose]()
    this.#timer = undefined
    const unit = this.#unit
    if (unit === undefined) return
    this.#switchAts(false)
    unit.detach(this.#source, this.#domain, this.#deviceTlb)
    unit.giveDomain(this.#domain)
    this.#tables?.close()
    this.#tables = undefined
    this.#iovas = undefined
    this.#waiting.count = 0
    this.#mapped.clear()
    this.#unit = undefined
  }

  [shown](depth: number, options: InspectOptions): string {
    const fields = {
      mode: this.mode,
      requester: plain(requesterName(this.#source)),
      enabled: this.#enabled,
      mapped: this.#mapped.size,
      waiting: this.#waiting.count,
      ...this.submitted,
    }
    return summary('IntelIommuDriver', fields, depth, options)
  }

  [Symbol.dispose](): void {
    this.disable()
  }

  /**
   * @param length bytes, 1 or more; whole pages become reachable
   * @returns where the device finds the byte at `gpa`
   * @throws RangeError for what is not guest memory; InvalidState ERR_NOT_STARTED, ERR_EXHAUSTED
   */
  map(gpa: Gpa, length: number, access: Access): Iova {
    const offset = Number(gpa & 0xfffn)
    const first = Number(gpa >> 12n)
    this.#memory.view(gpa, length)
    if (length < 1) throw new RangeError(`a mapping has at least one byte: ${length}`)
    const count = (offset + length + PAGE_SIZE - 1) >>> PAGE_SHIFT
    const page = this.mapPages(first, count, accessBits(access))
    if (this.#iovas !== undefined) this.#mapped.set(page, count)
    return ((BigInt(page) << 12n) | BigInt(offset)) as Iova
  }

  /** @throws RangeError for what `map` did not give out */
  unmap(iova: Iova): void {
    this.#started()
    if (this.#iovas === undefined) return
    const page = Number(iova >> 12n)
    const count = this.#mapped.get(page)
    if (count === undefined) throw new RangeError(`iova 0x${iova.toString(16)} is not mapped`)
    this.#mapped.delete(page)
    this.unmapPages(page, count)
  }

  mapPages(gpaPage: number, count: number, access: AccessBits): number {
    const iovas = this.#iovas
    const tables = this.#tables
    if (iovas === undefined || tables === undefined) {
      this.#started()
      return gpaPage
    }
    const page = this.#takeIova(iovas, count)
    try {
      if (count === 1) tables.mapPage(page, gpaPage, access)
      else tables.mapPages(page, gpaPage, count, access)
    } catch (error) {
      tables.unmapPages(page, count)
      this.#retire(iovas, page, count)
      throw error
    }
    if (this.#cachingMode) this.#invalidate(page, count, false)
    return page
  }

  unmapPages(iovaPage: number, count: number): void {
    const iovas = this.#iovas
    const tables = this.#tables
    if (iovas === undefined || tables === undefined) {
      this.#started()
      return
    }
    if (count > 1 && iovaPage % 2 ** orderOf(count) !== 0) {
      throw new RangeError(`no ${count} pages were mapped together at iova page ${iovaPage}`)
    }
    const unmapped =
      count === 1 ? Number(tables.unmapPage(iovaPage)) : tables.unmapPages(iovaPage, count)
    if (unmapped !== count) {
      throw new RangeError(`${count} pages at iova page ${iovaPage} are not mapped as a whole`)
    }
    this.#retire(iovas, iovaPage, count)
  }

  /**
   * Strict: the pool has a run of iovas of its own, and a page always the same one; the iova is in
   * use again only after its invalidation.
   */
  pool(gpaPage: number, count: number): DmaPool {
    const iovas = this.#iovas
    const tables = this.#tables
    if (this.mode !== 'strict' || iovas === undefined || tables === undefined) {
      return new PagePool(this, gpaPage, count)
    }
    const first = iovas.allocate(count)
    return {
      steady: true,
      map: (index, access) => {
        tables.mapPage(first + index, gpaPage + index, access)
        if (this.#cachingMode) this.#invalidate(first + index, 1, false)
        return first + index
      },
      unmap: (index, pages) => {
        if (tables.unmapPages(first + index, pages) !== pages) {
          throw new RangeError(`${pages} pages at iova page ${first + index} are not mapped`)
        }
        this.#invalidateRun(first + index, pages)
      },
      close: () => {
        iovas.free(first, count)
      },
    }
  }

  /** Lazy: one domain-wide invalidation for everything that waits; else nothing to do. */
  flush(): void {
    const waiting = this.#waiting
    this.#timer?.[Symbol.dispose]()
    this.#timer = undefined
    if (waiting.count === 0 || this.#unit === undefined) return
    const queue = this.#unit.queue
    queue.iotlbDomain(this.#domain)
    if (this.#deviceTlb) {
      if (this.#order === '6.1') queue.submit()
      queue.deviceTlbAll(this.#source)
    }
    queue.submit()
    for (let at = 0; at < waiting.count; at++) {
      this.#iovas?.free(waiting.first[at], waiting.pages[at])
    }
    waiting.count = 0
  }

  /** Faults of every device of the unit, read and cleared. */
  takeFaults(): readonly UnitFault[] {
    return this.#unit?.takeFaults() ?? []
  }

  #attach(): void {
    const unit = IntelIommuUnit.of(this.#iommu, this.#memory, this.#pages, this.#order)
    const { levels, lastPage, largestLeaf, passThrough, deviceTlb, cachingMode } = unit.capabilities
    this.#cachingMode = cachingMode
    const identity = this.mode === 'passthrough'
    if (identity && !passThrough) {
      throw new InvalidState('ERR_UNSUPPORTED', 'the IOMMU has no pass-through (ECAP.PT)')
    }
    this.#domain = unit.takeDomain()
    // VT-d 4.1, 9.3: pass-through blocks translation requests, so that ATS stays off there.
    this.#deviceTlb = deviceTlb && !identity && this.#options.deviceTlb !== false
    if (!identity) {
      this.#tables = new TableBuilder(this.#memory, this.#pages, levels)
      if (this.mode === 'static') this.#mapMemory(this.#tables, largestLeaf)
      else this.#iovas = iovasUpTo(lastPage)
    }
    unit.attach(this.#source, {
      type: identity ? 'passThrough' : this.#deviceTlb ? 'deviceTlb' : 'untranslated',
      domain: this.#domain,
      levels,
      tablePage: this.#tables?.rootPage ?? 0,
    })
    this.#unit = unit
    this.#switchAts(true)
  }

  #mapMemory(tables: TableBuilder, largestLeaf: LeafLevel): void {
    const { pageSize } = this.#options
    const wanted = pageSize === undefined ? largestLeaf : LEAF_OF_PAGE_SIZE[pageSize]
    const leaf = Math.min(wanted, largestLeaf) as LeafLevel
    for (const { range, bytes } of this.#memory.regions) {
      const first = Number(range.first) / PAGE_SIZE
      tables.mapPages(first, first, bytes / PAGE_SIZE, READWRITE, leaf)
    }
  }

  #switchAts(on: boolean): void {
    if (this.#deviceTlb) this.#iommu.setAts?.(this.#source, on)
  }

  #takeIova(iovas: IovaAllocator, count: number): number {
    if (this.#waiting.count === 0) return iovas.allocate(count)
    try {
      return iovas.allocate(count)
    } catch (error) {
      if (!(error instanceof InvalidState)) throw error
      this.flush()
      return iovas.allocate(count)
    }
  }

  /** Sees to the invalidation of pages that are unmapped, and after it to their iovas. */
  #retire(iovas: IovaAllocator, iovaPage: number, count: number): void {
    if (this.mode === 'lazy' && !this.#cachingMode) {
      this.#defer(iovaPage, count)
      return
    }
    this.#invalidate(iovaPage, count, this.#deviceTlb)
    iovas.free(iovaPage, count)
  }

  #defer(iovaPage: number, count: number): void {
    const waiting = this.#waiting
    waiting.first[waiting.count] = iovaPage
    waiting.pages[waiting.count] = count
    waiting.count += 1
    if (waiting.count === LAZY_ENTRIES) this.flush()
    else
      this.#timer ??= this.#after(LAZY_MILLISECONDS, () => {
        this.flush()
      })
  }

  /** Iovas are aligned to their size, so that one block of 2^order pages covers them. */
  #invalidate(iovaPage: number, count: number, deviceTlb: boolean): void {
    const unit = this.#unit
    if (unit === undefined) return
    const queue = unit.queue
    const order = orderOf(count)
    if (order > unit.capabilities.maxOrder) queue.iotlbDomain(this.#domain)
    else queue.iotlbPages(this.#domain, iovaPage, order, true)
    if (deviceTlb) {
      if (this.#order === '6.1') queue.submit()
      queue.deviceTlb(this.#source, iovaPage, order)
    }
    queue.submit()
  }

  /** One submission (6.1: two), of the fewest aligned blocks that are the run and no more. */
  #invalidateRun(iovaPage: number, count: number): void {
    const unit = this.#unit
    if (unit === undefined) return
    const { queue, capabilities } = unit
    const most = Math.max(capabilities.maxOrder, 0)
    const end = iovaPage + count
    if (capabilities.maxOrder < 0) queue.iotlbDomain(this.#domain)
    for (let page = iovaPage; capabilities.maxOrder >= 0 && page < end;) {
      const order = blockOrder(page, end - page, most)
      queue.iotlbPages(this.#domain, page, order, true)
      page += 2 ** order
    }
    if (this.#deviceTlb && this.#order === '6.1') queue.submit()
    for (let page = iovaPage; this.#deviceTlb && page < end;) {
      const order = blockOrder(page, end - page, most)
      queue.deviceTlb(this.#source, page, order)
      page += 2 ** order
    }
    queue.submit()
  }

  #started(): void {
    if (!this.#enabled) throw new InvalidState('ERR_NOT_STARTED', 'the driver is not enabled')
  }
}

function orderOf(pages: number): number {
  return pages === 1 ? 0 : 32 - Math.clz32(pages - 1)
}

/**
 * The largest aligned block of 2^order pages that begins at `page` and has at most `count` pages.
 */
function blockOrder(page: number, count: number, most: number): number {
  let order = 0
  while (order < most && page % 2 ** (order + 1) === 0 && 2 ** (order + 1) <= count) order++
  return order
}

function iovasUpTo(lastPage: number): IovaAllocator {
  const iovas = new IovaAllocator({ lastPage })
  iovas.reserve(INTERRUPT_PAGES.first, INTERRUPT_PAGES.last)
  return iovas
}

function afterTimeout(milliseconds: number, callback: () => void): Disposable {
  const timer = setTimeout(callback, milliseconds)
  timer.unref()
  return {
    [Symbol.dispose]: () => {
      clearTimeout(timer)
    },
  }
}

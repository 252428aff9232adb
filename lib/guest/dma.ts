/**
 * How a driver makes memory reachable for its device: the DMA API of a guest, in pages.
 *
 * A network driver knows this and no IOMMU by name; `intel-iommu-driver.ts` is one, and the driver
 * of another IOMMU would be the next.
 */
import type { AccessBits } from '../address'

/**
 * off: the device uses gpas and no IOMMU. passthrough: the IOMMU lets gpas through. static: all
 * memory is mapped once, iova = gpa. strict: each buffer is mapped, and unmapped and invalidated
 * with a wait before the call returns. lazy: invalidations are batched, iovas wait for them.
 */
export type Mapping = 'off' | 'passthrough' | 'static' | 'strict' | 'lazy'

/** A run of memory whose pages are mapped one by one, and unmapped in runs. */
export interface DmaPool {
  /** A page is at the same device page each time that it is mapped. */
  readonly steady?: boolean
  /** @returns the device page of the pool's page `index`, which must not be mapped */
  map(index: number, access: AccessBits): number
  /** Unmaps `count` pages from `first` on, all of which are mapped; as `GuestDma.unmapPages`. */
  unmap(first: number, count: number): void
  /** When no page is mapped any more. */
  close(): void
}

export interface GuestDma {
  readonly mode: Mapping
  /**
   * The device reaches all of memory at its gpas for as long as this is enabled, and nobody counts
   * what is mapped: a driver need not map its buffers one by one.
   */
  readonly permanent?: boolean
  /** Before the first mapping, and before the device starts. */
  enable(): void
  /** After the device has stopped. Every mapping is gone when it returns. */
  disable(): void
  /**
   * @param access what the device may do
   * @returns the device page of `gpaPage`; the run is contiguous
   */
  mapPages(gpaPage: number, count: number, access: AccessBits): number
  /** @param count as it was mapped */
  unmapPages(iovaPage: number, count: number): void
  /**
   * For buffers that come and go by the page. Where it is there, pages that follow one another in
   * the pool do so for the device too, so that a burst of them is one translation, and one
   * invalidation.
   */
  pool?(gpaPage: number, count: number): DmaPool
  /** Invalidates what was unmapped and is still waiting for it. */
  flush(): void
}

/** Mode off: the device uses gpas. */
export const physicalDma: GuestDma = {
  mode: 'off',
  permanent: true,
  enable: () => undefined,
  disable: () => undefined,
  mapPages: (gpaPage) => gpaPage,
  unmapPages: () => undefined,
  flush: () => undefined,
}

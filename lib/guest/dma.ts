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

export interface GuestDma {
  readonly mode: Mapping
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
  /** Invalidates what was unmapped and is still waiting for it. */
  flush(): void
}

/** Mode off: the device uses gpas. */
export const physicalDma: GuestDma = {
  mode: 'off',
  enable: () => undefined,
  disable: () => undefined,
  mapPages: (gpaPage) => gpaPage,
  unmapPages: () => undefined,
  flush: () => undefined,
}

/**
 * What QEMU 7.2 remembers of walks: its IOTLB. The library has none, so that a comparison of DMA
 * needs this model around it, with QEMU's quirks: a hit is not checked for faults, and the mask of
 * a page-selective invalidation is cut to 8 bits.
 */
import { iova } from '../../lib/address'
import type { Access } from '../../lib/address'
import type { IntelIommu } from '../../lib/iommu/intel/intel-iommu'

interface CachedLeaf {
  readonly source: number
  readonly domain: number
  readonly firstPage: number
  readonly pages: number
  readonly targetPage: number
  readonly access: Access
}

export class QemuCaches {
  #leaves: CachedLeaf[] = []

  constructor(
    private readonly iommu: IntelIommu,
    private readonly domainOf: (source: number) => number,
  ) {}

  /**
   * A device's access, with the faults that it causes.
   * @returns the guest-physical address, or undefined where it is refused
   */
  access(source: number, at: bigint, write: boolean): bigint | undefined {
    const space = this.iommu.addressSpace(source)
    if (space.state === 'translating') {
      const hit = this.#find(source, at)
      if (hit !== undefined) return allowed(hit, at, write)
    }
    const result = space.translate(iova(at), write ? 'write' : 'read')
    if (!result.ok) return undefined
    if (space.state === 'translating') this.#insert(source, at, result)
    return result.gpa + (at - result.iova.first)
  }

  /** Where an access would go, with no trace left of it. */
  peek(source: number, at: bigint, write: boolean): bigint | undefined {
    const space = this.iommu.addressSpace(source)
    const hit = space.state === 'translating' ? this.#find(source, at) : undefined
    if (hit !== undefined) return allowed(hit, at, write)
    const result = space.translate(iova(at), 'none')
    return result.ok ? result.gpa + (at - result.iova.first) : undefined
  }

  flush(): void {
    this.#leaves = []
  }

  flushDomain(domain: number): void {
    this.#leaves = this.#leaves.filter((leaf) => leaf.domain !== domain)
  }

  flushPages(domain: number, page: number, mask: number): void {
    const low = ~((1 << mask) - 1) & 0xff
    this.#leaves = this.#leaves.filter(({ domain: of, firstPage, pages }) => {
      const named = (firstPage & low) === (page & low)
      return of !== domain || !(named || page - (page % pages) === firstPage)
    })
  }

  #find(source: number, at: bigint): CachedLeaf | undefined {
    const page = Number(at >> 12n)
    const hits = this.#leaves.filter(
      (leaf) =>
        leaf.source === source && page >= leaf.firstPage && page < leaf.firstPage + leaf.pages,
    )
    return hits.sort((a, b) => a.pages - b.pages)[0]
  }

  /** The leaf as a whole: the library cuts the interrupt window out of what it returns. */
  #insert(
    source: number,
    at: bigint,
    result: { iova: { first: bigint; last: bigint }; gpa: bigint; access: Access },
  ): void {
    const page = Number(at >> 12n)
    const offset = Number(result.gpa >> 12n) - Number(result.iova.first >> 12n)
    const shown = Number((result.iova.last - result.iova.first + 1n) >> 12n)
    const pages = shown <= 1 ? 1 : shown <= 512 ? 512 : 512 * 512
    const firstPage = page - (page % pages)
    const leaf = { source, domain: this.domainOf(source), firstPage, pages }
    this.#leaves = this.#leaves.filter(
      (old) => !(old.source === source && old.pages === pages && old.firstPage === firstPage),
    )
    this.#leaves.push({ ...leaf, targetPage: firstPage + offset, access: result.access })
  }
}

function allowed(leaf: CachedLeaf, at: bigint, write: boolean): bigint | undefined {
  if (leaf.access !== 'readwrite' && leaf.access !== (write ? 'write' : 'read')) return undefined
  return at + (BigInt(leaf.targetPage - leaf.firstPage) << 12n)
}

/**
 * What the guest's tables map for the network card: a walk of every entry, from the root table on.
 *
 * Of its own, and not the library's, because it is to say what the library should have answered.
 * VT-d 5.10 9.1 (root entry), 9.3 (context entry), 9.8 (second-stage entries).
 */
import type { Machine } from '../../lib/vmm/machine'

const RTADDR = 0x20
const ADDRESS = 0x000f_ffff_ffff_f000n
const PRESENT = 1n
const READ_OR_WRITE = 3n
const LARGE = 0x80n
const TYPE = 0x0cn
const PASS_THROUGH = 0x08n
const WIDTH = 7n
const ENTRIES = 512

/** Pages of 4 KiB that the function at a source id can reach; 'everything' where it passes through. */
export function mappedPages({ iommu, memory }: Machine, source: number): number | 'everything' {
  if (iommu === undefined) return 'everything'
  const root = iommu.read(RTADDR, 8) & ADDRESS
  const rootEntry = memory.u64(Number(root) + 16 * (source >> 8))
  if ((rootEntry & PRESENT) === 0n) return 0
  const at = Number(rootEntry & ADDRESS) + 16 * (source & 0xff)
  const [low, high] = [memory.u64(at), memory.u64(at + 8)]
  if ((low & PRESENT) === 0n) return 0
  if ((low & TYPE) === PASS_THROUGH) return 'everything'
  return below(memory, Number(low & ADDRESS), Number(high & WIDTH) + 2)
}

function below(memory: Machine['memory'], table: number, level: number): number {
  let pages = 0
  for (let i = 0; i < ENTRIES; i++) {
    const entry = memory.u64(table + 8 * i)
    if ((entry & READ_OR_WRITE) === 0n) continue
    if (level === 1 || (entry & LARGE) !== 0n) pages += ENTRIES ** (level - 1)
    else pages += below(memory, Number(entry & ADDRESS), level - 1)
  }
  return pages
}

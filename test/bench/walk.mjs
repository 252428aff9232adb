// Measures translations: node --expose-gc test/bench/walk.mjs [dist]
// Prints ns of processor time and bytes of garbage per translation, the best of nine runs.
import { createRequire } from 'node:module'
import { resolve } from 'node:path'

const require = createRequire(import.meta.url)
const dist = resolve(process.argv[2] ?? new URL('../../dist', import.meta.url).pathname)
const { GuestMemory } = require(`${dist}/memory/guest-memory.js`)
const { PageTranslation } = require(`${dist}/memory/address-space.js`)
const { IntelIommu } = require(`${dist}/iommu/intel/intel-iommu.js`)

const RUNS = 9
const TRANSLATIONS = 2_000_000
const FIRST_IOVA = 0xfff00000n
const PAGES = 1024

/** Tables for 1024 pages below 4 GiB; `flags` are the permission bits of each entry. */
function tables(memory, allocate, root, levels, flags, leafLevel = 1) {
  const step = 1n << BigInt(12 + 9 * (leafLevel - 1))
  for (let i = 0; i < PAGES; i++) {
    const iova = FIRST_IOVA + BigInt(i) * 4096n
    let table = root
    for (let level = levels; ; level--) {
      const entry = table + Number((iova >> BigInt(12 + 9 * (level - 1))) & 511n) * 8
      if (level === leafLevel) {
        const target = BigInt(i) * 4096n - ((BigInt(i) * 4096n) % step)
        memory.setU64(entry, target | flags | (level > 1 ? 0x80n : 0n))
        break
      }
      if (memory.u64(entry) === 0n) memory.setU64(entry, BigInt(allocate()) | flags)
      table = Number(memory.u64(entry) & 0xffffffffff000n)
    }
  }
}

function unit(options, { levels = 4, leafLevel = 1, type } = {}) {
  const memory = GuestMemory.allocate(64 * 1024 * 1024)
  const iommu = new IntelIommu(memory, options)
  let next = 0x100000
  const allocate = () => (next += 4096)
  const root = allocate()
  if (type === undefined) {
    tables(memory, allocate, root, levels, 3n, leafLevel)
    memory.setU64(0x1000, 0x2001n)
    memory.setU64(0x2000 + 0x18 * 16, BigInt(root) | 1n)
    memory.setU64(0x2000 + 0x18 * 16 + 8, BigInt(levels - 2) | 0x700n)
  } else {
    tables(memory, allocate, root, 4, 7n)
    memory.setU64(0x1000, 0x2001n)
    memory.setU64(0x2000 + 0x18 * 32, 0x3001n)
    memory.setU64(0x3000, 0x4001n)
    memory.setU64(0x4000, BigInt(type << 6) | 9n)
    memory.setU64(0x4010, BigInt(root))
  }
  iommu.write(0x20, 0x1000n | (type === undefined ? 0n : 0x400n), 8)
  iommu.write(0x18, 0x40000000n, 4)
  iommu.write(0x18, 0x80000000n, 4)
  return iommu.addressSpace('00:03.0')
}

function measure(what, space) {
  const out = new PageTranslation()
  const first = Number(FIRST_IOVA >> 12n)
  let best = Infinity
  let garbage = Infinity
  for (let run = 0; run < RUNS; run++) {
    globalThis.gc?.()
    const heap = process.memoryUsage().heapUsed
    const start = process.cpuUsage().user
    for (let i = 0; i < TRANSLATIONS; i++) {
      if (!space.translatePage(first + (i & (PAGES - 1)), 1, out)) throw new Error(`${out.reason}`)
    }
    best = Math.min(best, ((process.cpuUsage().user - start) * 1000) / TRANSLATIONS)
    garbage = Math.min(garbage, (process.memoryUsage().heapUsed - heap) / TRANSLATIONS)
  }
  console.log(`${what}: ${best.toFixed(1)} ns, ${Math.max(garbage, 0).toFixed(2)} bytes`)
}

measure('translation off', new IntelIommu(GuestMemory.allocate(4096)).addressSpace(0x18))
measure('legacy, 3 levels', unit({ addressWidth: 39 }, { levels: 3 }))
measure('legacy, 4 levels', unit({}))
measure('legacy, 5 levels', unit({ addressWidth: 57 }, { levels: 5 }))
measure('legacy, 4 levels, 2M leaf', unit({}, { leafLevel: 2 }))
measure(
  'scalable, first stage, 4 levels',
  unit({ scalableMode: true, firstStage: true }, { type: 1 }),
)

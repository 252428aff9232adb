/** First-stage and nested translation (VT-d 5.10, 3.6, 3.8 and 9.7). */
import { describe, expect, it } from 'vitest'
import { pageOf } from '../../../lib/address'
import { SCALABLE_CODES, SecondStageRules } from '../../../lib/iommu/intel/second-stage'
import { FirstStage } from '../../../lib/iommu/intel/first-stage'
import { capabilities } from '../../../lib/iommu/intel/capabilities'
import { PageTranslation } from '../../../lib/memory/address-space'
import type { TableRegion } from '../../../lib/iommu/table-memory'
import { ScalableGuest } from './guest'
import type { IntelIommuOptions } from '../../../lib/iommu/intel/capabilities'

const A = 0x20n
const D = 0x40n
const OUTSIDE = 0x7f_0000_0000n

function first(options: IntelIommuOptions = {}): ScalableGuest {
  return new ScalableGuest(options).start({ type: 1 })
}

/** Both stages; the second one maps the guest's tables to themselves. */
function nested(permission = 3): ScalableGuest {
  const guest = new ScalableGuest().start({ type: 3 })
  guest.mapTables(permission)
  return guest
}

/** The same second stage with 3 levels, for 39 bits. @returns where the PASID entry is */
function narrow(guest: ScalableGuest): number {
  guest.tableRoot = guest.entryAt(0n, 3) & ~0xfff
  return guest.pasidEntry({ type: 3, width: 1 })
}

/** The entries on the way to an address, from the top table down. */
function entries(guest: ScalableGuest, at: bigint): number[] {
  const found: number[] = []
  let table = guest.firstRoot
  for (let level = 4; level >= 1; level--) {
    const entry = table + Number((at >> BigInt(12 + 9 * (level - 1))) & 511n) * 8
    found.push(entry)
    table = Number(guest.memory.u64(entry) & 0xffffffffff000n)
  }
  return found
}

describe('a first-stage leaf', () => {
  it.each([
    [1, 0x1000n],
    [2, 0x200000n],
    [3, 0x40000000n],
  ] as const)('of level %i is one translation', (level, size) => {
    const guest = first()
    const at = 0x7fc0_0000_0000n
    guest.mapFirst(at, 5n * size, 7, level)
    expect(guest.translate(at + 5n)).toEqual({
      ok: true,
      iova: { first: at, last: at + size - 1n },
      gpa: 5n * size,
      access: 'readwrite',
    })
  })

  it('in the upper half of a canonical address space', () => {
    const guest = first()
    const at = 0xffff_8000_0000_1000n
    guest.mapFirst(at, 0x5000n)
    expect(guest.translate(at)).toMatchObject({
      ok: true,
      iova: { first: at, last: at + 0xfffn },
      gpa: 0x5000n,
    })
  })

  it('with five levels (CAP.FS5LP)', () => {
    const guest = first({ addressWidth: 57 })
    guest.pasidEntry({ type: 1, mode: 1 })
    const at = 0x00ff_ffff_ffff_f000n
    guest.mapFirst(at, 0x5000n, 7, 1, 5)
    expect(guest.translate(at)).toMatchObject({ ok: true, gpa: 0x5000n })
    expect(guest.code(0x0100_0000_0000_0000n)).toBe(0x80)
  })

  it('leaves PAT of a large page out of the address', () => {
    const guest = first()
    guest.mapFirst(0x200000n, 0x400000n | 0x1000n, 7, 2)
    expect(guest.translate(0x200000n)).toMatchObject({ ok: true, gpa: 0x400000n })
  })

  it('grants reading only where any level is read-only', () => {
    const guest = first()
    guest.mapFirst(0x1000n, 0x5000n)
    const [, middle] = entries(guest, 0x1000n)
    guest.memory.setU64(middle, guest.memory.u64(middle) & ~2n)
    expect(guest.translate(0x1000n)).toMatchObject({ access: 'read' })
    expect(guest.code(0x1000n, 'write')).toBe(0x85)
  })
})

describe('faults of the first stage', () => {
  it.each<[string, number, (guest: ScalableGuest) => void, bigint?]>([
    [
      'the top table is not memory',
      0x73,
      (g) => {
        g.firstRoot = Number(OUTSIDE)
        g.pasidEntry({ type: 1 })
      },
    ],
    [
      'a lower table is not memory',
      0x70,
      (g) => {
        g.memory.setU64(entries(g, 0x1000n)[0], OUTSIDE | 7n)
      },
    ],
    ['nothing is mapped', 0x71, () => undefined],
    [
      'an entry leads beyond the host',
      0x72,
      (g) => {
        g.mapFirst(0x1000n, 1n << 48n)
      },
    ],
    [
      'a leaf at the top level',
      0x72,
      (g) => {
        g.mapFirst(0x1000n, 0n, 7, 4)
      },
    ],
    [
      'a large leaf is not aligned',
      0x72,
      (g) => {
        g.mapFirst(0x1000n, 0x2000n, 7, 2)
      },
    ],
    ['the address is not canonical', 0x80, () => undefined, 0x8000_0000_0000n],
    [
      'a supervisor page',
      0x81,
      (g) => {
        g.mapFirst(0x1000n, 0x5000n, 3)
      },
    ],
    [
      'a leaf into the interrupt window',
      0x87,
      (g) => {
        g.mapFirst(0x1000n, 0xfee00000n)
      },
    ],
  ])('%s', (_, code, arrange, at = 0x1000n) => {
    const guest = first()
    arrange(guest)
    expect(guest.code(at)).toBe(code)
    expect(guest.fault).toMatchObject({ reason: code })
  })

  it('1G pages need CAP.FS1GP', () => {
    const guest = first({ superpages: '2M' })
    guest.mapFirst(0x40000000n, 0n, 7, 3)
    expect(guest.code(0x40000000n)).toBe(0x72)
  })

  it('FSPTPTR beyond the host is a reserved bit of the PASID entry', () => {
    const guest = first()
    guest.memory.setU64(guest.pasidEntry({ type: 1 }) + 16, 1n << 48n)
    expect(guest.code(0x1000n)).toBe(0x5a)
  })
})

describe('accessed and dirty bits (3.6.2, 4.2.3.1)', () => {
  it('are set when the page is granted: accessed on the way, dirty where writing is granted', () => {
    const guest = first()
    guest.mapFirst(0x1000n, 0x5000n)
    guest.code(0x1000n)
    expect(entries(guest, 0x1000n).map((at) => guest.memory.u64(at) & (A | D))).toEqual([
      A,
      A,
      A,
      A | D,
    ])
  })

  it('a read-only page is not dirty', () => {
    const guest = first()
    const leaf = guest.mapFirst(0x1000n, 0x5000n, 5)
    guest.code(0x1000n)
    expect(guest.memory.u64(leaf) & (A | D)).toBe(A)
  })

  it('a refused request sets none', () => {
    const guest = first()
    const leaf = guest.mapFirst(0x1000n, 0x5000n, 5)
    guest.code(0x1000n, 'write')
    expect(entries(guest, 0x1000n).map((at) => guest.memory.u64(at) & (A | D))).toEqual([
      0n,
      0n,
      0n,
      0n,
    ])
    expect(guest.memory.u64(leaf)).toBe(0x5005n)
  })

  it('a table that is its own table at every level is walked', () => {
    const guest = first()
    guest.memory.setU64(guest.firstRoot, BigInt(guest.firstRoot) | 7n)
    expect(guest.translate(0n)).toMatchObject({ ok: true, gpa: BigInt(guest.firstRoot) })
    expect(guest.memory.u64(guest.firstRoot) & (A | D)).toBe(A | D)
  })

  it.each([
    [1, 0],
    [3, 0],
    [4, 0x91],
  ])('an entry that changes under %i walks ends in 0x%s', (changes, code) => {
    const guest = nested()
    const leaf = guest.mapFirst(0x5000n, 0x80000000n)
    const trigger = guest.map(0x80000000n, 0x700000n)
    let left = changes
    // Page by page, so that the unit asks again for each table: then the guest writes the leaf.
    const memory = {
      find(at: number): TableRegion | undefined {
        const page = at - (at % 4096)
        if (at === trigger && left-- > 0) guest.memory.setU32(leaf, guest.memory.u32(leaf) ^ 0x200)
        const u32 = guest.memory.find(at)?.u32.subarray(page / 4, page / 4 + 1024)
        return u32 === undefined ? undefined : { start: page, end: page + 4096, u32 }
      },
    }
    const has = capabilities(guest.options)
    const nesting = {
      rules: new SecondStageRules(has, SCALABLE_CODES),
      root: guest.tableRoot / 4096,
      levels: 4,
      endPage: 2 ** 36,
    }
    const out = new PageTranslation()
    const stage = new FirstStage(memory, has)
    expect(stage.walk(guest.firstRoot / 4096, 4, 5, 2, out, nesting)).toBe(code)
    expect(guest.memory.u64(leaf) & D).toBe(code === 0 ? D : 0n)
  })
})

describe('nested translation', () => {
  it('puts the second stage under the first: the range is what both carry', () => {
    const guest = nested()
    guest.mapFirst(0x40000000n, 0x80000000n, 7, 2)
    guest.map(0x80000000n, 0x700000n)
    guest.map(0x80001000n, 0x900000n)
    expect(guest.translate(0x40000123n)).toEqual({
      ok: true,
      iova: { first: 0x40000000n, last: 0x40000fffn },
      gpa: 0x700000n,
      access: 'readwrite',
    })
    expect(guest.translate(0x40001000n)).toMatchObject({ gpa: 0x900000n })
  })

  it('cuts a large second-stage leaf to the first-stage page', () => {
    const guest = nested()
    guest.mapFirst(0x5000n, 0x80003000n)
    guest.map(0x80000000n, 0x40000000n, 3, 3)
    expect(guest.translate(0x5000n)).toMatchObject({
      iova: { first: 0x5000n, last: 0x5fffn },
      gpa: 0x40003000n,
    })
  })

  it('grants what both stages grant', () => {
    const guest = nested()
    guest.mapFirst(0x5000n, 0x80000000n, 7)
    const leaf = guest.map(0x80000000n, 0x700000n, 1)
    expect(guest.translate(0x5000n)).toMatchObject({ access: 'read' })
    expect(guest.code(0x5000n, 'write')).toBe(0x85)
    guest.memory.setU64(leaf, 0x700002n)
    expect(guest.code(0x5000n)).toBe(0x86)
  })

  it.each<[string, number, (guest: ScalableGuest) => void]>([
    [
      'the top table lies beyond the second stage',
      0x5b,
      (g) => {
        g.memory.setU64(narrow(g) + 16, 1n << 39n)
      },
    ],
    [
      'a lower table lies beyond the second stage',
      0x74,
      (g) => {
        narrow(g)
        g.memory.setU64(entries(g, 0x5000n)[0], (1n << 39n) | 7n)
      },
    ],
    [
      'the page lies beyond the second stage',
      0x74,
      (g) => {
        narrow(g)
        g.mapFirst(0x5000n, 1n << 39n)
      },
    ],
    [
      'a first-stage entry leads beyond the host',
      0x72,
      (g) => {
        g.mapFirst(0x5000n, 1n << 48n)
      },
    ],
    [
      'the second stage does not let the top table be read',
      0x75,
      (g) => {
        g.map(0x90000000n, BigInt(g.firstRoot), 2)
        g.memory.setU64(g.pasidEntry({ type: 3 }) + 16, 0x90000000n)
      },
    ],
    [
      'the second stage does not let a lower table be read',
      0x76,
      (g) => {
        g.map(0x90000000n, 0x5000n, 2)
        g.memory.setU64(entries(g, 0x5000n)[0], 0x90000007n)
      },
    ],
    [
      'the second stage does not map a table at all',
      0x79,
      (g) => {
        g.memory.setU64(entries(g, 0x5000n)[0], 0x90000007n)
      },
    ],
    [
      'a second-stage table is not memory',
      0x78,
      (g) => {
        g.memory.setU64(g.entryAt(0x80000000n, 3), OUTSIDE | 3n)
      },
    ],
    [
      'the second stage does not map the page',
      0x79,
      (g) => {
        g.mapFirst(0x5000n, 0xa0000000n)
      },
    ],
    [
      'a reserved bit in the second stage',
      0x7a,
      (g) => {
        g.map(0x80000000n, 0x700000n | (1n << 62n))
      },
    ],
    [
      'the page leads into the interrupt window',
      0x87,
      (g) => {
        g.map(0x80000000n, 0xfee00000n)
      },
    ],
  ])('fault: %s', (_, code, arrange) => {
    const guest = nested()
    guest.mapFirst(0x5000n, 0x80000000n)
    guest.map(0x80000000n, 0x700000n)
    arrange(guest)
    expect(guest.code(0x5000n)).toBe(code)
    expect(guest.fault).toMatchObject({ reason: code })
  })

  it('tables that the second stage makes read-only cannot be marked', () => {
    const guest = nested(1)
    guest.mapFirst(0x5000n, 0x80000000n)
    guest.map(0x80000000n, 0x700000n)
    expect(guest.code(0x5000n)).toBe(0x77)
    for (const at of entries(guest, 0x5000n)) {
      guest.memory.setU64(at, guest.memory.u64(at) | A | D)
    }
    expect(guest.code(0x5000n)).toBe(0)
  })

  it('is the same for the number twin', () => {
    const guest = nested()
    guest.mapFirst(0x5000n, 0x80000000n)
    guest.map(0x80000000n, 0x700000n)
    const out = new PageTranslation()
    expect(guest.space.translatePage(pageOf(0x5000n), 3, out)).toBe(true)
    expect(out).toEqual({ firstPage: 5, lastPage: 5, gpaPage: 0x700, access: 3, reason: 0 })
  })
})

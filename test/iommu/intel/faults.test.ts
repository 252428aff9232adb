/** Every reason of legacy mode, as a guest would cause it (VT-d 5.10 7.1.3), and FPD. */
import { describe, expect, it } from 'vitest'
import type { Access } from '../../../lib/address'
import { FAULT_REASONS, faultReason } from '../../../lib/iommu/intel/faults'
import { AT, Guest, REQUESTER } from './guest'

interface Case {
  readonly name: string
  readonly code: number
  readonly arrange: (guest: Guest) => void
  readonly at?: bigint
  readonly wanted?: Access
  /** 7.1.3: hidden by FPD of the context entry. */
  readonly qualified: boolean
}

const ENTRY = AT.context + (REQUESTER & 255) * 16
const ROOT = AT.root
const OUTSIDE = 0x7f_0000_0000n

const CASES: readonly Case[] = [
  {
    name: 'the root entry is not present',
    code: 0x01,
    qualified: false,
    arrange: (g) => {
      g.memory.setU64(ROOT, BigInt(AT.context))
    },
  },
  {
    name: 'the context entry is not present',
    code: 0x02,
    qualified: true,
    arrange: (g) => {
      g.contextEntry(REQUESTER, { p: 0 })
    },
  },
  {
    name: 'the address width is not supported',
    code: 0x03,
    qualified: true,
    arrange: (g) => {
      g.contextEntry(REQUESTER, { width: 3 })
    },
  },
  {
    name: 'the translation type is reserved',
    code: 0x03,
    qualified: true,
    arrange: (g) => {
      g.contextEntry(REQUESTER, { type: 3 })
    },
  },
  {
    name: 'the top table is not memory',
    code: 0x03,
    qualified: true,
    arrange: (g) => {
      g.memory.setU64(ENTRY, OUTSIDE | 1n)
    },
  },
  {
    name: 'the address is beyond the width of the entry',
    code: 0x04,
    qualified: true,
    at: 1n << 39n,
    arrange: (g) => {
      g.contextEntry(REQUESTER, { width: 1 })
    },
  },
  {
    name: 'the address is beyond the width of the unit',
    code: 0x04,
    qualified: true,
    at: 1n << 48n,
    arrange: () => undefined,
  },
  {
    name: 'a leaf does not grant writing',
    code: 0x05,
    qualified: true,
    wanted: 'write',
    arrange: (g) => {
      g.map(0x1000n, 0x5000n, 1)
    },
  },
  {
    name: 'a leaf does not grant reading',
    code: 0x06,
    qualified: true,
    arrange: (g) => {
      g.map(0x1000n, 0x5000n, 2)
    },
  },
  {
    name: 'nothing is mapped, for a write',
    code: 0x05,
    qualified: true,
    wanted: 'write',
    arrange: () => undefined,
  },
  {
    name: 'nothing is mapped, for a read',
    code: 0x06,
    qualified: true,
    arrange: () => undefined,
  },
  {
    name: 'a lower table is not memory',
    code: 0x07,
    qualified: true,
    arrange: (g) => {
      g.memory.setU64(g.entryAt(0x1000n, 3), OUTSIDE | 3n)
    },
  },
  {
    name: 'the root table is not memory',
    code: 0x08,
    qualified: false,
    arrange: (g) => {
      g.write('RTADDR', OUTSIDE, 8)
      g.command(1 << 30)
    },
  },
  {
    name: 'the context table is not memory',
    code: 0x09,
    qualified: false,
    arrange: (g) => {
      g.memory.setU64(ROOT, OUTSIDE | 1n)
    },
  },
  {
    name: 'the lower half of the root entry has reserved bits',
    code: 0x0a,
    qualified: false,
    arrange: (g) => {
      g.memory.setU64(ROOT, BigInt(AT.context) | 3n)
    },
  },
  {
    name: 'the upper half of the root entry has reserved bits',
    code: 0x0a,
    qualified: false,
    arrange: (g) => {
      g.memory.setU64(ROOT + 8, 1n << 40n)
    },
  },
  {
    name: 'the root entry leads beyond the host',
    code: 0x0a,
    qualified: false,
    arrange: (g) => {
      g.memory.setU64(ROOT, (1n << 48n) | 1n)
    },
  },
  {
    name: 'the context entry has reserved bits',
    code: 0x0b,
    qualified: true,
    arrange: (g) => {
      g.memory.setU64(ENTRY + 8, 2n | (1n << 7n))
    },
  },
  {
    name: 'the context entry leads beyond the host',
    code: 0x0b,
    qualified: true,
    arrange: (g) => {
      g.memory.setU64(ENTRY, (1n << 48n) | 1n)
    },
  },
  {
    name: 'a leaf has reserved bits',
    code: 0x0c,
    qualified: true,
    arrange: (g) => {
      g.map(0x1000n, 0x5000n | (1n << 62n))
    },
  },
  {
    name: 'a table entry has reserved bits',
    code: 0x0c,
    qualified: true,
    arrange: (g) => {
      const entry = g.entryAt(0x1000n, 2)
      g.memory.setU64(entry, BigInt(g.table()) | 3n | (1n << 11n))
    },
  },
  {
    name: 'a leaf above the largest superpage',
    code: 0x0c,
    qualified: true,
    arrange: (g) => {
      g.map(0x1000n, 0n, 3, 4)
    },
  },
  {
    name: 'a large leaf is not aligned to its size',
    code: 0x0c,
    qualified: true,
    arrange: (g) => {
      g.map(0x1000n, 0x1000n, 3, 2)
    },
  },
  {
    name: 'the type blocks a device TLB',
    code: 0x0d,
    qualified: true,
    arrange: (g) => {
      g.map(0x1000n, 0x5000n)
      g.iommu.setAts(REQUESTER, true)
    },
  },
  {
    name: 'a leaf leads into the interrupt window',
    code: 0x0e,
    qualified: true,
    arrange: (g) => {
      g.map(0x1000n, 0xfee00000n)
    },
  },
]

describe.each(CASES)('$name', ({ code, arrange, at = 0x1000n, wanted = 'read', qualified }) => {
  const made = (fpd: 0 | 1): Guest => {
    const guest = new Guest().start()
    arrange(guest)
    if (fpd === 1) guest.memory.setU64(ENTRY, guest.memory.u64(ENTRY) | 2n)
    return guest
  }

  it(`is fault 0x${code.toString(16)}, returned and recorded (7.1.3, 7.2.1)`, () => {
    const guest = made(0)
    expect(guest.translate(at, wanted)).toMatchObject({
      ok: false,
      iova: at,
      wanted,
      reason: { code, name: faultReason(code).name },
    })
    expect(guest.fault).toEqual({
      source: REQUESTER,
      reason: code,
      read: wanted === 'read',
      address: at & ~0xfffn,
    })
  })

  it(`is ${qualified ? 'not ' : ''}recorded with FPD set (9.3)`, () => {
    const guest = made(1)
    expect(guest.code(at, wanted)).toBe(code)
    expect(guest.fault === undefined).toBe(qualified)
  })
})

describe('the types that a unit does not have', () => {
  it('a device TLB without ECAP.DT is an invalid context', () => {
    const guest = new Guest({ deviceTlb: false }).start({ type: 1 })
    guest.map(0x1000n, 0x5000n)
    expect(guest.code(0x1000n)).toBe(0x03)
  })

  it('pass-through without ECAP.PT is an invalid context', () => {
    expect(new Guest({ passThrough: false }).start({ type: 2 }).code(0x1000n)).toBe(0x03)
  })

  it.each([
    ['none', 2],
    ['2M', 3],
  ] as const)('with superpages %s a leaf of level %i is reserved', (superpages, level) => {
    const guest = new Guest({ superpages }).start()
    guest.map(0x1000n, 0n, 3, level)
    expect(guest.code(0x1000n)).toBe(0x0c)
  })

  it('a snoop bit needs ECAP.SC', () => {
    const at = (snoopControl: boolean): number => {
      const guest = new Guest({ snoopControl }).start()
      guest.map(0x1000n, 0x5000n | (1n << 11n))
      return guest.code(0x1000n)
    }
    expect([at(false), at(true)]).toEqual([0x0c, 0])
  })

  it('a table mode that the unit does not have is fault 0x30', () => {
    const guest = new Guest().start()
    guest.write('RTADDR', BigInt(AT.root) | (1n << 10n), 8)
    guest.command(1 << 30)
    expect(guest.code(0x1000n)).toBe(0x30)
    expect(guest.fault).toMatchObject({ reason: 0x30 })
  })
})

describe('the table of reasons', () => {
  it('has every code once, and words for each', () => {
    expect(new Set(FAULT_REASONS.map(({ code }) => code)).size).toBe(FAULT_REASONS.length)
    expect(new Set(FAULT_REASONS.map(({ name }) => name)).size).toBe(FAULT_REASONS.length)
    for (const { words } of FAULT_REASONS) expect(words).not.toBe('')
  })

  it('says so of a code that it does not have', () => {
    expect(faultReason(0xfe)).toMatchObject({ code: 0xfe, name: 'unknown' })
  })
})

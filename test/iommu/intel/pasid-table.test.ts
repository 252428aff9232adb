/** Scalable mode from the root entry to the PASID entry, and its second stage (VT-d 5.10 7.1.3, 9). */
import { describe, expect, it } from 'vitest'
import type { Access } from '../../../lib/address'
import { faultReason } from '../../../lib/iommu/intel/faults'
import type { IntelIommuOptions } from '../../../lib/iommu/intel/capabilities'
import { AT, REQUESTER, ScalableGuest } from './guest'

const OUTSIDE = 0x7f_0000_0000n
const CONTEXT = AT.context + (REQUESTER & 127) * 32

interface Case {
  readonly name: string
  readonly code: number
  readonly arrange: (guest: ScalableGuest) => void
  readonly options?: IntelIommuOptions
  readonly at?: bigint
  readonly wanted?: Access
  readonly unqualified?: boolean
  readonly type?: number
}

const set =
  (at: number, value: bigint) =>
  (guest: ScalableGuest): void => {
    guest.memory.setU64(at, value)
  }
const or =
  (at: number, bits: bigint) =>
  (guest: ScalableGuest): void => {
    guest.memory.setU64(at, guest.memory.u64(at) | bits)
  }
const nothing = (): void => undefined

const CASES: readonly Case[] = [
  {
    name: 'the root table is not memory',
    code: 0x38,
    unqualified: true,
    arrange: (g) => {
      g.write('RTADDR', OUTSIDE | (1n << 10n), 8)
      g.command(1 << 30)
    },
  },
  { name: 'LP is clear', code: 0x39, unqualified: true, arrange: set(AT.root, 0n) },
  { name: 'root reserved', code: 0x3a, unqualified: true, arrange: or(AT.root, 2n) },
  { name: 'context access', code: 0x40, unqualified: true, arrange: set(AT.root, OUTSIDE | 1n) },
  {
    name: 'context not present',
    code: 0x41,
    arrange: (g) => {
      g.scalableContext({ p: 0 })
    },
  },
  { name: 'context reserved', code: 0x42, arrange: or(CONTEXT, 1n << 4n) },
  { name: 'context reserved, second quadword', code: 0x42, arrange: or(CONTEXT + 8, 1n << 20n) },
  { name: 'context reserved, last quadword', code: 0x42, arrange: or(CONTEXT + 24, 1n) },
  { name: 'PASIDE without ECAP.PASID', code: 0x42, arrange: or(CONTEXT, 8n) },
  { name: 'DTE without ECAP.DT', code: 0x42, options: { deviceTlb: false }, arrange: nothing },
  {
    name: 'DTE clear for a device TLB',
    code: 0x44,
    arrange: (g) => {
      g.scalableContext({ dte: 0 })
      g.iommu.setAts(REQUESTER, true)
    },
  },
  {
    name: 'RID_PASID beyond the directory',
    code: 0x43,
    arrange: (g) => {
      g.scalableContext({ pasid: 128 * 64 })
    },
  },
  {
    name: 'directory access',
    code: 0x50,
    unqualified: true,
    arrange: (g) => {
      g.memory.setU64(CONTEXT, OUTSIDE | 5n)
    },
  },
  { name: 'directory entry not present', code: 0x51, arrange: set(AT.directory, 0n) },
  { name: 'directory entry reserved', code: 0x52, arrange: or(AT.directory, 4n) },
  {
    name: 'PASID table access',
    code: 0x58,
    unqualified: true,
    arrange: set(AT.directory, OUTSIDE | 1n),
  },
  {
    name: 'PASID entry not present',
    code: 0x59,
    arrange: (g) => {
      g.pasidEntry({ p: 0 })
    },
  },
  { name: 'PASID entry reserved', code: 0x5a, arrange: or(AT.pasids, 1n << 9n) },
  { name: 'PASID entry reserved, last quadword', code: 0x5a, arrange: or(AT.pasids + 56, 1n) },
  {
    name: 'PASID entry of a reserved type',
    code: 0x5b,
    arrange: (g) => {
      g.pasidEntry({ type: 5 })
    },
  },
  {
    name: 'PASID entry with a width that is not supported',
    code: 0x5b,
    arrange: (g) => {
      g.pasidEntry({ width: 3 })
    },
  },
  {
    name: 'first stage without ECAP.FSTS',
    code: 0x5b,
    options: { firstStage: false },
    type: 1,
    arrange: nothing,
  },
  {
    name: 'second stage without ECAP.SSTS',
    code: 0x5b,
    options: { secondStage: false },
    arrange: nothing,
  },
  {
    name: 'nesting without both',
    code: 0x5b,
    options: { secondStage: false },
    type: 3,
    arrange: nothing,
  },
  {
    name: 'pass-through without ECAP.PT',
    code: 0x5b,
    options: { passThrough: false },
    type: 4,
    arrange: nothing,
  },
  {
    name: 'five first-stage levels without CAP.FS5LP',
    code: 0x5b,
    arrange: (g) => {
      g.pasidEntry({ type: 1, mode: 1 })
    },
  },
  {
    name: 'second-stage table access',
    code: 0x78,
    arrange: (g) => {
      g.memory.setU64(g.entryAt(0x1000n, 3), OUTSIDE | 3n)
    },
  },
  { name: 'second-stage entry not present', code: 0x79, arrange: nothing },
  {
    name: 'second-stage entry reserved',
    code: 0x7a,
    arrange: (g) => {
      g.map(0x1000n, 0x5000n | (1n << 62n))
    },
  },
  {
    name: 'second-stage top table access',
    code: 0x7b,
    arrange: (g) => {
      g.memory.setU64(AT.pasids, OUTSIDE | 0x89n)
    },
  },
  { name: 'an address beyond the second stage', code: 0x84, at: 1n << 48n, arrange: nothing },
  {
    name: 'an address beyond the host, passed through',
    code: 0x83,
    type: 4,
    at: 1n << 48n,
    arrange: nothing,
  },
  {
    name: 'a write to a read-only page',
    code: 0x85,
    wanted: 'write',
    arrange: (g) => {
      g.map(0x1000n, 0x5000n, 1)
    },
  },
  {
    name: 'a read of a write-only page',
    code: 0x86,
    arrange: (g) => {
      g.map(0x1000n, 0x5000n, 2)
    },
  },
  {
    name: 'a leaf into the interrupt window',
    code: 0x87,
    arrange: (g) => {
      g.map(0x1000n, 0xfee00000n)
    },
  },
]

describe.each(CASES)('$name', ({ code, arrange, options, at, wanted, unqualified, type }) => {
  const made = (): ScalableGuest => {
    const guest = new ScalableGuest(options).start({ type: type ?? 2 })
    arrange(guest)
    return guest
  }

  it(`is fault 0x${code.toString(16)}, ${faultReason(code).name}`, () => {
    const guest = made()
    expect(guest.code(at ?? 0x1000n, wanted)).toBe(code)
    expect(guest.fault).toMatchObject({ source: REQUESTER, reason: code })
  })

  it(`is ${unqualified === true ? '' : 'not '}recorded with FPD set in the context entry`, () => {
    const guest = made()
    or(CONTEXT, 2n)(guest)
    expect(guest.code(at ?? 0x1000n, wanted)).toBe(code)
    expect(guest.fault === undefined).toBe(unqualified !== true)
  })
})

describe('the scalable-mode tables', () => {
  it.each([0x0018, 0x0098, 0x00ff, 0xff07, 0xff80])('of source 0x%s', (source) => {
    const guest = new ScalableGuest({}, source).start()
    guest.map(0x1000n, 0x5000n)
    expect(guest.translate(0x1000n)).toMatchObject({ ok: true, gpa: 0x5000n })
  })

  it.each([1, 63, 64, 4095, 8191])('with RID_PASID %i', (pasid) => {
    const guest = new ScalableGuest().start()
    guest.map(0x1000n, 0x5000n)
    guest.scalableContext({ pasid })
    guest.memory.setU64(AT.directory, 0n)
    expect(guest.code(0x1000n)).toBe(0x51)
    guest.memory.setU64(AT.directory + Math.floor(pasid / 64) * 8, BigInt(AT.pasids) | 1n)
    guest.memory.setU64(AT.pasids, 0n)
    guest.pasidEntry({ pasid })
    expect(guest.translate(0x1000n)).toMatchObject({ ok: true, gpa: 0x5000n })
  })

  it('FPD of the PASID entry hides faults too', () => {
    const guest = new ScalableGuest().start()
    guest.pasidEntry({ fpd: 1 })
    expect(guest.code(0x1000n)).toBe(0x79)
    expect(guest.fault).toBeUndefined()
  })

  it('pass-through is identity up to the host width', () => {
    const guest = new ScalableGuest().start({ type: 4 })
    expect(guest.space.state).toBe('identity')
    expect(guest.translate(0x100000000n)).toMatchObject({
      iova: { first: 0xfef00000n, last: (1n << 48n) - 1n },
    })
  })

  it('a snoop bit in its leaves or in the PASID entry needs ECAP.SC (9.6, 9.8)', () => {
    const code = (snoopControl: boolean): number => {
      const guest = new ScalableGuest({ snoopControl }).start()
      or(AT.pasids + 8, 1n << 24n)(guest)
      guest.map(0x1000n, 0x5000n | (1n << 11n))
      return guest.code(0x1000n)
    }
    expect([code(false), code(true)]).toEqual([0x5a, 0])
    const guest = new ScalableGuest().start()
    guest.map(0x1000n, 0x5000n | (1n << 11n))
    expect(guest.code(0x1000n)).toBe(0x7a)
  })

  it('abort mode and the reserved mode are fault 0x30', () => {
    for (const mode of [2n, 3n]) {
      const guest = new ScalableGuest().start()
      guest.write('RTADDR', BigInt(AT.root) | (mode << 10n), 8)
      guest.command(1 << 30)
      expect(guest.code(0x1000n)).toBe(0x30)
    }
  })
})

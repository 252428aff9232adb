/** The register window as software sees it (VT-d 5.10, 11.4). */
import { describe, expect, it } from 'vitest'
import { capabilities } from '../../../lib/iommu/intel/capabilities'
import { registerTable } from '../../../lib/iommu/intel/registers'
import { GCMD, Guest, REG, RUNNING } from './guest'

const TABLE = registerTable(capabilities())

/** What each register has after a reset, and what of all ones it keeps: from 11.4. */
const RESET: readonly [name: string, offset: number, size: 4 | 8, reset: bigint, kept: bigint][] = [
  ['VER', 0x00, 4, 0x10n, 0x10n],
  ['GSTS', 0x1c, 4, 0n, 0n],
  ['RTADDR', 0x20, 8, 0n, 0xfffffffffffffc00n],
  ['FSTS', 0x34, 4, 0n, 0n],
  ['FECTL', 0x38, 4, 0x80000000n, 0x80000000n],
  ['FEDATA', 0x3c, 4, 0n, 0xffffn],
  ['FEADDR', 0x40, 4, 0n, 0xfffffffcn],
  ['FEUADDR', 0x44, 4, 0n, 0xffffffffn],
  ['AFLOG', 0x58, 8, 0n, 0n],
  ['PMEN', 0x64, 4, 0n, 0n],
  ['PLMBASE', 0x68, 4, 0n, 0n],
  ['PHMBASE', 0x70, 8, 0n, 0n],
  ['IQH', 0x80, 8, 0n, 0n],
  ['IQA', 0x90, 8, 0n, 0xfffffffffffff807n],
  ['ICS', 0x9c, 4, 0n, 0n],
  ['IECTL', 0xa0, 4, 0x80000000n, 0x80000000n],
  ['IEDATA', 0xa4, 4, 0n, 0xffffn],
  ['IEADDR', 0xa8, 4, 0n, 0xfffffffcn],
  ['IEUADDR', 0xac, 4, 0n, 0xffffffffn],
  ['IQERCD', 0xb0, 8, 0n, 0n],
  ['IRTA', 0xb8, 8, 0n, 0n],
  ['PQH', 0xc0, 8, 0n, 0n],
  ['PRS', 0xdc, 4, 0n, 0n],
  ['IVA', 0xf0, 8, 0n, 0n],
  ['FRCD0_LOW', 0x220, 8, 0n, 0n],
  ['FRCD0_HIGH', 0x228, 8, 0n, 0n],
]

describe('the register window', () => {
  it.each(RESET)('%s at 0x%s', (name, offset, size, reset, kept) => {
    const { iommu } = new Guest()
    expect(TABLE.find((r) => r.name === name)).toMatchObject({ offset, size })
    expect(iommu.read(offset, size)).toBe(reset)
    iommu.write(offset, size === 4 ? 0xffffffffn : 0xffffffffffffffffn, size)
    expect(iommu.read(offset, size)).toBe(kept)
  })

  it('has CAP and ECAP, whole and in halves, and they cannot be written', () => {
    const { iommu } = new Guest()
    const { cap, ecap } = iommu.capabilities
    iommu.write(REG.CAP, 0n, 8)
    expect([iommu.read(REG.CAP, 8), iommu.read(REG.ECAP, 8)]).toEqual([cap, ecap])
    expect(iommu.read(REG.CAP + 4, 4)).toBe(cap >> 32n)
  })

  it('reads GCMD as 0, and the status in GSTS', () => {
    const guest = new Guest().start()
    expect(guest.read('GCMD')).toBe(0)
    expect(guest.read('GSTS')).toBe(RUNNING)
  })

  it('takes accesses of any size at any offset, and reads 0 outside', () => {
    const { iommu } = new Guest()
    for (let offset = 0; offset < 0x1010; offset++) {
      for (const size of [1, 2, 4, 8]) {
        iommu.write(offset, 0n, size)
        const value = iommu.read(offset, size)
        if (offset >= 0x230) expect(value).toBe(0n)
      }
    }
    expect(iommu.read(0x1ffffc, 8)).toBe(0n)
  })

  it.each(['FECTL', 'IECTL', 'IEADDR'] as const)('survives an 8-byte write to %s', (name) => {
    const guest = new Guest()
    guest.write(name, 0x1234_5678_0000_0000n, 8)
    expect(guest.read(name)).toBe(0)
  })

  it('runs a command when the byte with its bit is written, whatever the size', () => {
    const guest = new Guest()
    guest.iommu.write(REG.GCMD + 3, 0x40n, 1)
    expect(guest.read('GSTS')).toBe(0x40000000)
    guest.iommu.write(REG.GCMD + 2, 0x8000n, 2)
    expect(guest.read('GSTS')).toBe(0xc0000000)
    guest.iommu.write(REG.GCMD, 0n, 1)
    expect(guest.read('GSTS')).toBe(0xc0000000)
    guest.iommu.write(REG.GCMD, 0x80000000n, 8)
    expect(guest.read('GSTS')).toBe(0xc0000000)
  })

  it('latches RTADDR with SRTP only (11.4.5)', () => {
    const guest = new Guest().start()
    guest.map(0x1000n, 0x5000n)
    guest.write('RTADDR', 0n, 8)
    expect(guest.code(0x1000n)).toBe(0)
    guest.command(GCMD.SRTP)
    expect(guest.code(0x1000n)).toBe(0x01)
  })

  it('goes back to its first state at reset()', () => {
    const guest = new Guest().start()
    guest.iommu.reset()
    for (const { name, offset, size, reset } of TABLE) {
      if (name !== 'GCMD') expect(guest.iommu.read(offset, size), name).toBe(reset ?? 0n)
    }
    expect(guest.space.state).toBe('off')
    expect(guest.wait()).toBe(false)
  })

  it('has no interrupt remapping to set up or enable (ECAP.IR is 0, 11.4.4.1)', () => {
    const guest = new Guest()
    guest.command(GCMD.SIRTP)
    guest.command(GCMD.IRE)
    expect(guest.read('GSTS')).toBe(0)
  })
})

/** CAP and ECAP: what the guest reads is what the options say. */
import { describe, expect, it } from 'vitest'
import { CAP, ECAP, capabilities } from '../../../lib/iommu/intel/capabilities'
import type { IntelIommuOptions } from '../../../lib/iommu/intel/capabilities'

/** ECAP of QEMU with intremap=on has IR and MHMV on top; interrupt remapping is not here. */
const INTERRUPT_REMAPPING = 0xf00008n

describe('CAP and ECAP as QEMU 7.2.22 reports them for the same options', () => {
  it.each<[string, IntelIommuOptions, bigint, bigint]>([
    ['nothing', {}, 0x00d2008c22260206n, 0x0000000000f00f4an],
    ['device-iotlb=on', { deviceTlb: true }, 0x00d2008c22260206n, 0x0000000000f00f4en],
    ['caching-mode=on', { cachingMode: true }, 0x00d2008c22260286n, 0x0000000000f00f4an],
    ['aw-bits=48', { addressWidth: 48 }, 0x00d2008c222f0606n, 0x0000000000f00f4an],
    ['pt=off', { passThrough: false }, 0x00d2008c22260206n, 0x0000000000f00f0an],
    ['dma-drain=off', { drain: false }, 0x0012008c22260206n, 0x0000000000f00f4an],
    ['snoop-control=on', { snoopControl: true }, 0x00d2008c22260206n, 0x0000000000f00fcan],
    ['x-scalable-mode=on', { scalableMode: true }, 0x00d2008c22260206n, 0x0000480080f00f4an],
    [
      'x-pasid-mode=on too',
      { scalableMode: true, pasid: true },
      0x00d2008c22260206n,
      0x0000490080f00f4an,
    ],
  ])('%s', (_, options, cap, ecap) => {
    const has = capabilities({ addressWidth: 39, deviceTlb: false, compat: 'qemu', ...options })
    expect(has.cap.toString(16)).toBe(cap.toString(16))
    expect(has.ecap.toString(16)).toBe((ecap & ~INTERRUPT_REMAPPING).toString(16))
  })
})

describe('CAP and ECAP (VT-d 5.10 11.4.2, 11.4.3)', () => {
  const cap = (options: IntelIommuOptions, field: keyof typeof CAP.field): number =>
    CAP.field[field].in(capabilities(options).cap)
  const ecap = (options: IntelIommuOptions, field: keyof typeof ECAP.field): number =>
    ECAP.field[field].in(capabilities(options).ecap)

  it.each([
    [39, 0b00010, 38],
    [48, 0b00110, 47],
    [57, 0b01110, 56],
  ] as const)('a width of %i offers the table depths up to it', (addressWidth, sagaw, mgaw) => {
    expect(cap({ addressWidth }, 'SAGAW')).toBe(sagaw)
    expect(cap({ addressWidth }, 'MGAW')).toBe(mgaw)
  })

  it.each([
    ['none', 0],
    ['2M', 1],
    ['1G', 3],
  ] as const)('superpages %s', (superpages, sslps) => {
    expect(cap({ superpages }, 'SSLPS')).toBe(sslps)
  })

  it('reports as many fault records as there are, less 1', () => {
    expect(cap({ faultRecords: 8 }, 'NFR')).toBe(7)
    expect(cap({}, 'FRO') * 16).toBe(0x220)
    expect(ecap({}, 'IRO') * 16).toBe(0xf0)
  })

  it('is coherent, and reports neither remapped interrupts nor page requests', () => {
    expect(['C', 'QI', 'DT', 'IR', 'PRS'].map((f) => ecap({}, f as 'C'))).toEqual([1, 1, 1, 0, 0])
  })

  it('reports nesting only with both stages', () => {
    const scalable = { scalableMode: true, firstStage: true }
    expect(ecap(scalable, 'NEST')).toBe(1)
    expect(ecap({ ...scalable, secondStage: false }, 'NEST')).toBe(0)
    expect(ecap({ ...scalable, secondStage: false }, 'SSTS')).toBe(0)
    expect(cap({ ...scalable, secondStage: false }, 'SAGAW')).toBe(0)
    expect(cap({ ...scalable, addressWidth: 57 }, 'FS5LP')).toBe(1)
    expect(ecap({ ...scalable, pasid: true }, 'PSS')).toBe(19)
  })

  it.each<[IntelIommuOptions]>([
    [{ addressWidth: 40 as 39 }],
    [{ hostAddressWidth: 53 }],
    [{ hostAddressWidth: 31 }],
    [{ faultRecords: 0 }],
    [{ faultRecords: 129 }],
    [{ faultRecords: 1.5 }],
    [{ firstStage: true }],
    [{ pasid: true }],
    [{ scalableMode: true, secondStage: false }],
  ])('refuses %j', (options) => {
    expect(() => capabilities(options)).toThrow(RangeError)
  })
})

/** CCMD, IVA and IOTLB (VT-d 5.10 6.5.1, 11.4.6). */
import { describe, expect, it } from 'vitest'
import { AT, EVERYTHING, GCMD, Guest, REG, ScalableGuest } from './guest'
import type { Heard } from './guest'

const ICC = 1n << 63n
const IVT = 1n << 63n

/** A unit without a queue, a requester of domain 7 that holds a translation, and who hears. */
function made(): { guest: Guest; heard: Heard[] } {
  const guest = new Guest().start({ queue: false })
  guest.map(0x1000n, 0x5000n)
  guest.code(0x1000n)
  return { guest, heard: guest.listen() }
}

const actual = (guest: Guest, register: 'CCMD' | 'IOTLB'): bigint =>
  guest.iommu.read(REG[register], 8)

describe('CCMD', () => {
  const GRANULARITY = { global: 1n, domain: 2n, device: 3n }

  it.each(['global', 'domain', 'device'] as const)('%s', (granularity) => {
    const { guest, heard } = made()
    const which = { global: 0n, domain: 7n, device: 0x18n << 16n }[granularity]
    guest.write('CCMD', ICC | (GRANULARITY[granularity] << 61n) | which, 8)
    expect(heard).toEqual([{ ...EVERYTHING, source: 'context' }])
    const command = actual(guest, 'CCMD')
    expect(command >> 63n).toBe(0n)
    expect((command >> 59n) & 3n).toBe(GRANULARITY[granularity])
  })

  it.each([
    [0b00, 0x18, 1],
    [0b00, 0x19, 0],
    [0b01, 0x1c, 1],
    [0b01, 0x1a, 0],
    [0b10, 0x1e, 1],
    [0b10, 0x19, 0],
    [0b11, 0x1f, 1],
    [0b11, 0x10, 0],
  ])('device with FM %i and source 0x%s reaches 00:03.0 %i times', (mask, source, times) => {
    const { guest, heard } = made()
    const command = ICC | (3n << 61n) | (BigInt(mask) << 32n) | (BigInt(source) << 16n)
    guest.write('CCMD', command, 8)
    expect(heard).toHaveLength(times)
  })

  it('with the reserved granularity does nothing, and says so', () => {
    const { guest, heard } = made()
    guest.write('CCMD', ICC, 8)
    expect([heard.length, actual(guest, 'CCMD')]).toEqual([0, 0n])
  })

  it('starts with its upper half, and keeps the lower one until then', () => {
    const { guest, heard } = made()
    guest.iommu.write(REG.CCMD, 7n, 4)
    expect(heard).toEqual([])
    guest.iommu.write(REG.CCMD + 4, 0xc0000000n, 4)
    expect(heard).toHaveLength(1)
  })

  it('is not taken while the queue is on: ICC stays', () => {
    const guest = new Guest().start()
    const heard = guest.listen()
    guest.write('CCMD', ICC | (1n << 61n), 8)
    expect([heard.length, actual(guest, 'CCMD') >> 63n]).toEqual([0, 1n])
  })
})

describe('in scalable mode', () => {
  it.each(['CCMD', 'IOTLB'] as const)('%s does nothing, and says so (11.4.6)', (register) => {
    const guest = new ScalableGuest()
    guest.write('RTADDR', BigInt(AT.root) | (1n << 10n), 8)
    guest.command(GCMD.SRTP)
    const heard = guest.listen()
    guest.write(register, ICC | (1n << (register === 'CCMD' ? 61n : 60n)), 8)
    expect(heard).toEqual([])
    expect(actual(guest, register) >> 57n).toBe(register === 'CCMD' ? 1n << 4n : 1n << 3n)
  })
})

describe('IOTLB and IVA', () => {
  const GRANULARITY = { global: 1n, domain: 2n, page: 3n }
  const command = (granularity: keyof typeof GRANULARITY, domain = 7): bigint =>
    IVT | (GRANULARITY[granularity] << 60n) | (BigInt(domain) << 32n)

  it.each(['global', 'domain', 'page'] as const)('%s', (granularity) => {
    const { guest, heard } = made()
    guest.write('IVA', 0x1000n, 8)
    guest.write('IOTLB', command(granularity), 8)
    const range = granularity === 'page' ? { first: 0x1000n, last: 0x1fffn } : EVERYTHING
    expect(heard).toEqual([{ ...range, source: 'iotlb' }])
    const value = actual(guest, 'IOTLB')
    expect([value >> 63n, (value >> 57n) & 3n]).toEqual([0n, GRANULARITY[granularity]])
  })

  it('pages are aligned down to the address mask', () => {
    const { guest, heard } = made()
    guest.write('IVA', 0x12345000n | 4n, 8)
    guest.write('IOTLB', command('page'), 8)
    expect(heard).toEqual([{ first: 0x12340000n, last: 0x1234ffffn, source: 'iotlb' }])
  })

  it.each([
    ['a mask above CAP.MAMV', 'page', 19n],
    ['the reserved granularity', undefined, 0n],
  ] as const)('%s does nothing, and says so', (_, granularity, mask) => {
    const { guest, heard } = made()
    guest.write('IVA', 0x1000n | mask, 8)
    guest.write('IOTLB', granularity === undefined ? IVT : command(granularity), 8)
    expect([heard.length, (actual(guest, 'IOTLB') >> 57n) & 3n]).toEqual([0, 0n])
    expect(actual(guest, 'IOTLB') >> 63n).toBe(0n)
  })

  it('another domain is left alone', () => {
    const { guest, heard } = made()
    guest.write('IOTLB', command('domain', 8), 8)
    expect(heard).toEqual([])
  })

  it('is not taken while the queue is on: IVT stays', () => {
    const guest = new Guest().start()
    const heard = guest.listen()
    guest.write('IOTLB', command('global'), 8)
    expect([heard.length, actual(guest, 'IOTLB') >> 63n]).toEqual([0, 1n])
  })
})

/**
 * What reaches the holder of translations, by what the guest did and whether ATS is on: the matrix
 * of `address-spaces.ts`, one test a cell, each with one notification or none.
 */
import { beforeEach, describe, expect, it } from 'vitest'
import { LAST_PAGE, iova } from '../../../lib/address'
import type { InvalidationSource } from '../../../lib/memory/address-space'
import { AT, EVERYTHING, GCMD, Guest, REQUESTER, ScalableGuest } from './guest'
import type { Heard } from './guest'

const DOMAIN = 7
const OTHER_DOMAIN = 8

const SID = BigInt(REQUESTER) << 32n
const descriptor = {
  contextGlobal: [0x11n, 0n],
  contextDomain: [0x21n | (BigInt(DOMAIN) << 16n), 0n],
  contextDevice: [0x31n | (BigInt(DOMAIN) << 16n) | SID, 0n],
  contextOtherDomain: [0x21n | (BigInt(OTHER_DOMAIN) << 16n), 0n],
  contextOtherDevice: [0x31n | (0x20n << 32n), 0n],
  iotlbGlobal: [0x12n, 0n],
  iotlbDomain: [0x22n | (BigInt(DOMAIN) << 16n), 0n],
  iotlbPage: [0x32n | (BigInt(DOMAIN) << 16n), 0x5000n],
  iotlbLeafOnly: [0x32n | (BigInt(DOMAIN) << 16n), 0x5040n],
  iotlbPages: [0x32n | (BigInt(DOMAIN) << 16n), 0x123456000n | 9n],
  iotlbOtherDomain: [0x22n | (BigInt(OTHER_DOMAIN) << 16n), 0n],
  iotlbOtherPage: [0x32n | (BigInt(OTHER_DOMAIN) << 16n), 0x5000n],
  deviceTlbPage: [0x03n | SID, 0x5000n],
  deviceTlbTwo: [0x03n | SID, 0x4001n],
  deviceTlbEight: [0x03n | SID, 0x3001n],
  deviceTlbAll: [0x03n | SID, 0x7ffffffffffff001n],
  deviceTlbOther: [0x03n | (0x20n << 32n), 0x5000n],
} as const

interface Expected {
  readonly first: bigint
  readonly last: bigint
  readonly source: InvalidationSource
}

const everything = (source: InvalidationSource): Expected => ({ ...EVERYTHING, source })
const range = (first: bigint, last: bigint, source: InvalidationSource): Expected => ({
  first,
  last,
  source,
})

/** What happens, what it tells with ATS on, and with ATS off. */
type Row = readonly [
  what: string,
  act: (guest: Guest) => void,
  on: Expected | undefined,
  off: Expected | undefined,
]

const submit =
  (name: keyof typeof descriptor) =>
  (guest: Guest): void => {
    guest.submit(descriptor[name])
  }

const MATRIX: readonly Row[] = [
  ['device TLB, a page', submit('deviceTlbPage'), range(0x5000n, 0x5fffn, 'device-tlb'), undefined],
  ['device TLB, 8 KiB', submit('deviceTlbTwo'), range(0x4000n, 0x5fffn, 'device-tlb'), undefined],
  ['device TLB, 32 KiB', submit('deviceTlbEight'), range(0n, 0x7fffn, 'device-tlb'), undefined],
  ['device TLB, all', submit('deviceTlbAll'), everything('device-tlb'), undefined],
  ['device TLB of another device', submit('deviceTlbOther'), undefined, undefined],
  ['IOTLB, a page', submit('iotlbPage'), undefined, range(0x5000n, 0x5fffn, 'iotlb')],
  ['IOTLB, leaf only', submit('iotlbLeafOnly'), undefined, range(0x5000n, 0x5fffn, 'iotlb')],
  ['IOTLB, pages', submit('iotlbPages'), undefined, range(0x123400000n, 0x1235fffffn, 'iotlb')],
  ['IOTLB, a domain', submit('iotlbDomain'), undefined, everything('iotlb')],
  ['IOTLB, global', submit('iotlbGlobal'), undefined, everything('iotlb')],
  ['IOTLB, another domain', submit('iotlbOtherDomain'), undefined, undefined],
  ['IOTLB, a page of another domain', submit('iotlbOtherPage'), undefined, undefined],
  ['context, global', submit('contextGlobal'), everything('context'), everything('context')],
  ['context, its domain', submit('contextDomain'), everything('context'), everything('context')],
  ['context, the device', submit('contextDevice'), everything('context'), everything('context')],
  ['context, another domain', submit('contextOtherDomain'), undefined, undefined],
  ['context, another device', submit('contextOtherDevice'), undefined, undefined],
  [
    'translation off',
    (guest) => {
      guest.command(0, GCMD.TE)
    },
    everything('disabled'),
    everything('disabled'),
  ],
  [
    'SRTP',
    (guest) => {
      guest.command(GCMD.SRTP)
    },
    everything('context'),
    everything('context'),
  ],
  [
    'reset',
    (guest) => {
      guest.iommu.reset()
    },
    everything('disabled'),
    everything('disabled'),
  ],
  [
    'ATS switched',
    (guest) => {
      guest.iommu.setAts(REQUESTER, !atsOn)
    },
    everything('disabled'),
    everything('disabled'),
  ],
  [
    'ATS written with the value that it has',
    (guest) => {
      guest.iommu.setAts(REQUESTER, atsOn)
    },
    undefined,
    undefined,
  ],
]

let atsOn = false

/** A requester that holds a translation, so that there is something to take back. */
function made(ats: boolean): { guest: Guest; heard: Heard[] } {
  atsOn = ats
  const guest = new Guest().start({ type: 1, domain: DOMAIN })
  guest.iommu.setAts(REQUESTER, ats)
  guest.map(0x5000n, 0x9000n)
  expect(guest.code(0x5000n)).toBe(0)
  return { guest, heard: guest.listen() }
}

describe.each(MATRIX)('%s', (_, act, on, off) => {
  it.each([
    ['on', on],
    ['off', off],
  ] as const)('with ATS %s', (ats, expected) => {
    const { guest, heard } = made(ats === 'on')
    const before = guest.space.generation
    act(guest)
    expect(heard).toEqual(expected === undefined ? [] : [expected])
    expect(guest.space.generation > before).toBe(expected !== undefined)
  })
})

describe('translation on', () => {
  it.each([true, false])('takes back the identity that was given before, ATS %s', (ats) => {
    const guest = new Guest()
    guest.iommu.setAts(REQUESTER, ats)
    guest.code(0x5000n)
    const heard = guest.listen()
    guest.start()
    expect(heard).toContainEqual(everything('disabled'))
  })
})

describe('pass-through', () => {
  it.each([true, false])('switched on and off: nothing is left that was given, ATS %s', (ats) => {
    const { guest, heard } = made(ats)
    guest.contextEntry(REQUESTER, { type: 2 })
    guest.submit(descriptor.contextDevice)
    expect(heard).toEqual([everything('context')])
    expect(guest.space.state).toBe('identity')
    expect(guest.code(0x7000n)).toBe(0)
    guest.contextEntry(REQUESTER, { type: 1 })
    guest.submit(descriptor.contextDevice)
    expect(heard).toEqual([everything('context'), everything('context')])
    expect(guest.code(0x7000n)).toBe(0x06)
  })
})

describe('domains', () => {
  it('count as they were when the translation was given', () => {
    const { guest, heard } = made(false)
    guest.contextEntry(REQUESTER, { domain: OTHER_DOMAIN })
    guest.submit(descriptor.iotlbOtherDomain)
    expect(heard).toEqual([])
    guest.submit(descriptor.iotlbDomain)
    expect(heard).toEqual([everything('iotlb')])
  })

  it('count all, once translations were given under two', () => {
    const { guest, heard } = made(false)
    guest.contextEntry(REQUESTER, { domain: OTHER_DOMAIN })
    guest.code(0x5000n)
    guest.submit(descriptor.iotlbOtherPage, descriptor.iotlbPage)
    expect(heard).toHaveLength(2)
  })

  it('count none, once everything was taken back', () => {
    const { guest, heard } = made(false)
    guest.submit(descriptor.iotlbGlobal)
    heard.length = 0
    guest.submit(descriptor.iotlbDomain, descriptor.iotlbPage)
    expect(heard).toEqual([])
  })

  it('a context command reaches one of whom nothing is known', () => {
    const guest = new Guest().start()
    const heard = guest.listen()
    guest.submit(descriptor.contextOtherDomain)
    expect(heard).toEqual([everything('context')])
  })
})

describe('a notifier', () => {
  it('is told in pages where it wants that, and in addresses otherwise', () => {
    const { guest } = made(true)
    const pages: number[][] = []
    guest.space.notify({
      invalidate: () => expect.unreachable(),
      invalidatePages: (first, last) => pages.push([first, last]),
    })
    guest.submit(descriptor.deviceTlbTwo, descriptor.deviceTlbAll)
    expect(pages).toEqual([
      [4, 5],
      [0, LAST_PAGE],
    ])
  })

  it('hears nothing more once it was disposed of', () => {
    const { guest } = made(true)
    let times = 0
    const notification = guest.space.notify({ invalidate: () => times++ })
    guest.submit(descriptor.deviceTlbAll)
    notification[Symbol.dispose]()
    guest.submit(descriptor.deviceTlbAll)
    expect(times).toBe(1)
  })

  it('may ask for translations again while it is told: it gets new ones, and hears of them', () => {
    const { guest } = made(false)
    const seen: string[] = []
    guest.space.notify({
      invalidate: (_, source) => {
        seen.push(source)
        guest.space.translate(iova(0x5000n), 'read')
      },
    })
    guest.submit(descriptor.iotlbGlobal)
    guest.submit(descriptor.iotlbDomain)
    expect(seen).toEqual(['iotlb', 'iotlb'])
  })

  it('of one device does not hear of another', () => {
    const { guest } = made(true)
    guest.iommu.setAts(0x20, true)
    const other = guest.listen(0x20)
    guest.submit(descriptor.deviceTlbPage)
    expect(other).toEqual([])
    guest.submit(descriptor.deviceTlbOther)
    expect(other).toHaveLength(1)
  })
})

describe('scalable mode', () => {
  let guest: ScalableGuest
  let heard: Heard[]

  const PASID = (pasid: number): bigint => BigInt(pasid) << 32n
  const wide = {
    cacheGlobal: [0x37n, 0n],
    cacheDomain: [0x07n | (7n << 16n), 0n],
    cachePasid: [0x17n | (7n << 16n) | PASID(0), 0n],
    cacheOtherPasid: [0x17n | (7n << 16n) | PASID(1), 0n],
    iotlbPasid: [0x26n | (7n << 16n), 0n],
    iotlbPages: [0x36n | (7n << 16n), 0x5000n | 1n],
    iotlbOtherPasid: [0x26n | (7n << 16n) | PASID(1), 0n],
    deviceTlb: [0x08n | (BigInt(REQUESTER) << 16n), 0x4000n | (1n << 11n)],
    deviceTlbOtherPasid: [0x08n | (BigInt(REQUESTER) << 16n) | PASID(1), 0x5000n],
    deviceTlbAllPasids: [0x08n | (BigInt(REQUESTER) << 16n) | PASID(1), 0x5000n | 1n],
  } as const

  beforeEach(() => {
    guest = new ScalableGuest().start({ type: 2, domain: 7 })
    guest.map(0x5000n, 0x9000n)
    expect(guest.code(0x5000n)).toBe(0)
    heard = guest.listen()
  })

  const rows: readonly [keyof typeof wide, Expected | undefined, Expected | undefined][] = [
    ['cacheGlobal', everything('context'), everything('context')],
    ['cacheDomain', everything('context'), everything('context')],
    ['cachePasid', everything('context'), everything('context')],
    ['cacheOtherPasid', undefined, undefined],
    ['iotlbPasid', undefined, everything('iotlb')],
    ['iotlbPages', undefined, range(0x4000n, 0x5fffn, 'iotlb')],
    ['iotlbOtherPasid', undefined, undefined],
    ['deviceTlb', range(0x4000n, 0x5fffn, 'device-tlb'), undefined],
    ['deviceTlbOtherPasid', undefined, undefined],
    ['deviceTlbAllPasids', range(0x5000n, 0x5fffn, 'device-tlb'), undefined],
  ]

  it.each(rows)('%s with ATS on', (name, on) => {
    guest.iommu.setAts(REQUESTER, true)
    guest.code(0x5000n)
    heard.length = 0
    guest.submit(wide[name])
    expect(guest.read('FSTS')).toBe(0)
    expect(heard).toEqual(on === undefined ? [] : [on])
  })

  it.each(rows)('%s with ATS off', (name, _, off) => {
    guest.submit(wide[name])
    expect(guest.read('FSTS')).toBe(0)
    expect(heard).toEqual(off === undefined ? [] : [off])
  })

  it.each([
    ['second stage', 2, range(0x4000n, 0x5fffn, 'iotlb')],
    ['first stage', 1, everything('iotlb')],
    ['nested stages', 3, everything('iotlb')],
  ] as const)('pages of the second stage, under %s (6.5.2.3, table 23)', (_, type, expected) => {
    const other = new ScalableGuest().start({ type, domain: 7 })
    other.mapTables()
    other.mapFirst(0x12345000n, 0x5000n)
    if (type === 2) other.map(0x800000n, 0x9000n)
    expect(other.code(type === 2 ? 0x5000n : 0x12345000n)).toBe(0)
    const told = other.listen()
    other.submit([0x32n | (7n << 16n), 0x5000n | 1n])
    expect(told).toEqual([expected])
  })

  it('a context entry has no domain: any domain means all (6.5.2.1)', () => {
    guest.submit([0x21n | (99n << 16n), 0n])
    expect(heard).toEqual([everything('context')])
  })

  it('a switch of the table mode takes everything back', () => {
    guest.write('RTADDR', BigInt(AT.root), 8)
    guest.command(GCMD.SRTP)
    expect(heard).toEqual([everything('context')])
  })
})

import { describe, expect, it } from 'vitest'
import fc from 'fast-check'
import { gpa } from '../../lib/address'
import { buildDmar, parseDmar } from '../../lib/acpi/dmar'
import type { Dmar, Drhd } from '../../lib/acpi/dmar-structures'
import type { DeviceScope } from '../../lib/acpi/device-scope'
import { buildTable, parseTable } from '../../lib/acpi/table'

const BASE = 0xfed90000
const UNIT: Drhd = { base: BASE, includePciAll: true }
const SMALLEST: Dmar = { hostAddressWidth: 39, drhd: [UNIT] }
const ENDPOINT: DeviceScope = { type: 'endpoint', path: '00:03.0' }
const ROOT_PORT: DeviceScope = { type: 'bridge', path: '00:1c.0' }

/** What follows the table's own header, as hexadecimal text. */
function body(dmar: Dmar): string {
  return Buffer.from(parseTable(buildDmar(dmar)).body).toString('hex')
}

/** Remapping structures alone. */
function structures(dmar: Omit<Dmar, 'hostAddressWidth' | 'drhd'>): string {
  return body({ ...SMALLEST, ...dmar }).slice(2 * (12 + 16))
}

describe('the bytes of a DMAR table (VT-d 4.1 chapter 8)', () => {
  it('8.1: the width is one less than the host address width, then come the flags', () => {
    expect(body({ ...SMALLEST, drhd: [UNIT] }).slice(0, 24)).toBe('2600' + '00'.repeat(10))
    const flags = { interruptRemapping: true, x2apicOptOut: true, dmaControlOptIn: true }
    expect(body({ ...SMALLEST, ...flags, hostAddressWidth: 48 }).slice(0, 4)).toBe('2f07')
    expect(body({ ...SMALLEST, dmaControlOptIn: true }).slice(0, 4)).toBe('2604')
  })

  it('8.3: DRHD', () => {
    const unit = { base: 0x123456789000n, segment: 0x0102, registerBytes: 16384 }
    const scopes: DeviceScope[] = [
      { type: 'ioapic', path: 'ff:00.0', enumerationId: 9 },
      { type: 'endpoint', path: '00:1f.7' },
      { type: 'bridge', path: '00:02.0/01.3' },
    ]
    expect(body({ ...SMALLEST, drhd: [{ ...unit, scopes }] }).slice(24)).toBe(
      '00002a00' +
        '00' +
        '02' +
        '0201' +
        '0090785634120000' +
        '0308000009ff0000' +
        '0108000000001f07' +
        '020a00000000' +
        '0200' +
        '0103',
    )
  })

  it('8.3: a unit with INCLUDE_PCI_ALL comes after the other units', () => {
    const other: Drhd = { base: 0x1000, scopes: [ENDPOINT] }
    const { drhd } = parseDmar(buildDmar({ ...SMALLEST, drhd: [UNIT, other] }))
    expect(drhd.map(({ base }) => base)).toEqual([0x1000n, BigInt(BASE)])
  })

  it('8.3.1: the five types of device scope are 1 to 5', () => {
    const andd = [{ deviceNumber: 1, objectName: '\\_SB.I2C0' }]
    const types = ['endpoint', 'bridge', 'ioapic', 'hpet', 'namespace'] as const
    const scopes = types.map((type) => ({ type, path: '00:01.0', enumerationId: 1 }))
    const unit = body({ ...SMALLEST, drhd: [{ ...UNIT, scopes }], andd }).slice(2 * 28)
    expect(unit.match(/.{16}/g)?.slice(0, 5)).toEqual(
      [1, 2, 3, 4, 5].map((type) => `0${type}08000001000100`),
    )
  })

  it('8.4: RMRR', () => {
    const range = { first: gpa(0x7f000000), last: gpa(0x7fffffff) }
    expect(structures({ rmrr: [{ range, scopes: [ENDPOINT] }] })).toBe(
      '01002000' + '00000000' + '0000007f00000000' + 'ffffff7f00000000' + '0108000000000300',
    )
  })

  it('8.5: ATSR for all ports is the eight bytes that QEMU has', () => {
    expect(structures({ atsr: [{ allPorts: true }] })).toBe('0200080001000000')
  })

  it('8.5: ATSR for one root port', () => {
    expect(structures({ atsr: [{ segment: 1, scopes: [ROOT_PORT] }] })).toBe(
      '0200100000000100' + '0208000000001c00',
    )
  })

  it('8.6: RHSA', () => {
    expect(structures({ rhsa: [{ base: BASE, proximityDomain: 3 }] })).toBe(
      '03001400' + '00000000' + '0000d9fe00000000' + '03000000',
    )
  })

  it('8.7: ANDD ends its object name with a zero', () => {
    const name = Buffer.from('\\_SB.I2C0\0').toString('hex')
    expect(structures({ andd: [{ deviceNumber: 2, objectName: '\\_SB.I2C0' }] })).toBe(
      '04001200' + '00000002' + name,
    )
  })

  it('8.8: SATC', () => {
    expect(structures({ satc: [{ atcRequired: true, scopes: [ENDPOINT] }] })).toBe(
      '0500100001000000' + '0108000000000300',
    )
    expect(structures({ satc: [{ scopes: [ENDPOINT] }] }).slice(8, 10)).toBe('00')
  })

  it('8.9: SIDP has its properties in the scopes', () => {
    const scope = { ...ENDPOINT, nestedNotAllowed: true, pageSnoopNotAllowed: true }
    const other = { ...ENDPOINT, pageWalkSnoopNotAllowed: true, atcHardened: true }
    const last = { ...ENDPOINT, atcRequired: true }
    expect(structures({ sidp: [{ scopes: [scope, other, last] }] })).toBe(
      '0600200000000000' + '0108050000000300' + '01080a0000000300' + '0108100000000300',
    )
  })

  it('8.2: structures come in the order of their types', () => {
    const dmar = {
      sidp: [{ scopes: [ENDPOINT] }],
      satc: [{ scopes: [ENDPOINT] }],
      rhsa: [{ base: BASE, proximityDomain: 0 }],
      atsr: [{ allPorts: true }],
    }
    const heads = structures(dmar)
    expect([0, 16, 56, 88].map((at) => heads.slice(at, at + 4))).toEqual([
      '0200',
      '0300',
      '0500',
      '0600',
    ])
  })
})

describe('a DMAR table that chapter 8 does not allow', () => {
  const cases: readonly (readonly [string, Partial<Dmar>, new () => Error])[] = [
    ['a host address width of 11', { hostAddressWidth: 11 }, RangeError],
    ['a host address width of 65', { hostAddressWidth: 65 }, RangeError],
    ['a host address width of 39.5', { hostAddressWidth: 39.5 }, RangeError],
    ['a register base of 0', { drhd: [{ ...UNIT, base: 0 }] }, RangeError],
    ['a register base inside a page', { drhd: [{ ...UNIT, base: 0x1010 }] }, RangeError],
    ['a register base over 2^52', { drhd: [{ ...UNIT, base: 1n << 52n }] }, RangeError],
    ['three pages of registers', { drhd: [{ ...UNIT, registerBytes: 12288 }] }, RangeError],
    ['half a page of registers', { drhd: [{ ...UNIT, registerBytes: 2048 }] }, RangeError],
    ['a segment over 65535', { drhd: [{ ...UNIT, segment: 65536 }] }, RangeError],
    ['a unit in front of nothing', { drhd: [{ base: BASE }] }, RangeError],
    ['two units for all of a segment', { drhd: [UNIT, { ...UNIT, base: 0x1000 }] }, RangeError],
    [
      'reserved memory from inside a page',
      { rmrr: [{ range: { first: gpa(1), last: gpa(0xfff) }, scopes: [ENDPOINT] }] },
      RangeError,
    ],
    [
      'reserved memory to inside a page',
      { rmrr: [{ range: { first: gpa(0), last: gpa(0xffe) }, scopes: [ENDPOINT] }] },
      RangeError,
    ],
    [
      'reserved memory that ends before it starts',
      { rmrr: [{ range: { first: gpa(0x2000), last: gpa(0xfff) }, scopes: [ENDPOINT] }] },
      RangeError,
    ],
    [
      'reserved memory of nobody',
      { rmrr: [{ range: { first: gpa(0), last: gpa(0xfff) }, scopes: [] }] },
      RangeError,
    ],
    ['ATS for no port', { atsr: [{}] }, RangeError],
    ['ATS for all ports and one', { atsr: [{ allPorts: true, scopes: [ROOT_PORT] }] }, RangeError],
    ['ATS for an endpoint', { atsr: [{ scopes: [ENDPOINT] }] }, RangeError],
    ['an affinity of no unit', { rhsa: [{ base: 0x1000, proximityDomain: 0 }] }, RangeError],
    ['a proximity domain of -1', { rhsa: [{ base: BASE, proximityDomain: -1 }] }, RangeError],
    ['an ACPI device 0', { andd: [{ deviceNumber: 0, objectName: 'A' }] }, RangeError],
    ['an ACPI device without a name', { andd: [{ deviceNumber: 1, objectName: '' }] }, TypeError],
    [
      'two ACPI devices of one number',
      {
        andd: [
          { deviceNumber: 1, objectName: 'A' },
          { deviceNumber: 1, objectName: 'B' },
        ],
      },
      RangeError,
    ],
    [
      'a scope for an ACPI device that no ANDD names',
      { drhd: [{ ...UNIT, scopes: [{ type: 'namespace', path: '00:01.0', enumerationId: 1 }] }] },
      RangeError,
    ],
    ['an ATC in a bridge', { satc: [{ scopes: [ROOT_PORT] }] }, RangeError],
    ['an ATC in nothing', { satc: [{ scopes: [] }] }, RangeError],
    ['properties of a bridge', { sidp: [{ scopes: [ROOT_PORT] }] }, RangeError],
    ['a device 32', { satc: [{ scopes: [{ type: 'endpoint', path: '00:20.0' }] }] }, TypeError],
    ['a function 8', { satc: [{ scopes: [{ type: 'endpoint', path: '00:01.8' }] }] }, TypeError],
    [
      'a path without a bus',
      { satc: [{ scopes: [{ type: 'endpoint', path: '1.0' }] }] },
      TypeError,
    ],
    [
      'an enumeration id of 256',
      { satc: [{ scopes: [{ ...ENDPOINT, enumerationId: 256 }] }] },
      RangeError,
    ],
    [
      'a path of 125 hops',
      { satc: [{ scopes: [{ type: 'endpoint', path: `00:01.0${'/01.0'.repeat(124)}` }] }] },
      RangeError,
    ],
    [
      'more scopes than a structure can have',
      { satc: [{ scopes: Array<DeviceScope>(8192).fill(ENDPOINT) }] },
      RangeError,
    ],
  ]
  it.each(cases)('%s', (_, wrong, error) => {
    expect(() => buildDmar({ ...SMALLEST, ...wrong })).toThrow(error)
  })

  it('a scope of an unknown type', () => {
    const scope = { type: 'switch', path: '00:01.0' } as unknown as DeviceScope
    expect(() => buildDmar({ ...SMALLEST, drhd: [{ base: BASE, scopes: [scope] }] })).toThrow(
      TypeError,
    )
  })
})

const hexByte = (max: number): fc.Arbitrary<string> =>
  fc.integer({ min: 0, max }).map((value) => value.toString(16).padStart(2, '0'))
const paths = fc
  .tuple(
    hexByte(255),
    fc.array(fc.tuple(hexByte(31), fc.integer({ min: 0, max: 7 })), { minLength: 1, maxLength: 4 }),
  )
  .map(([bus, hops]) => `${bus}:${hops.map(([d, f]) => `${d}.${f}`).join('/')}`)
const scopesOf = (...types: DeviceScope['type'][]): fc.Arbitrary<Required<DeviceScope>[]> =>
  fc.array(
    fc.record({
      type: fc.constantFrom(...types),
      path: paths,
      enumerationId: fc.integer({ min: 0, max: 255 }),
      nestedNotAllowed: fc.boolean(),
      pageWalkSnoopNotAllowed: fc.boolean(),
      pageSnoopNotAllowed: fc.boolean(),
      atcHardened: fc.boolean(),
      atcRequired: fc.boolean(),
    }),
    { minLength: 1, maxLength: 3 },
  )
const pages = fc.integer({ min: 1, max: 2 ** 40 - 1 })
const segments = fc.integer({ min: 0, max: 65535 })
const tables = fc
  .record({
    hostAddressWidth: fc.integer({ min: 12, max: 64 }),
    interruptRemapping: fc.boolean(),
    x2apicOptOut: fc.boolean(),
    dmaControlOptIn: fc.boolean(),
    drhd: fc.array(
      fc.record({
        segment: segments,
        base: pages.map((page) => gpa(page * 4096)),
        registerBytes: fc.integer({ min: 0, max: 15 }).map((n) => 4096 * 2 ** n),
        includePciAll: fc.constant(false),
        scopes: scopesOf('endpoint', 'bridge', 'ioapic', 'hpet'),
      }),
      { minLength: 1, maxLength: 3 },
    ),
    rmrr: fc.array(
      fc.record({
        segment: segments,
        range: fc.tuple(pages, pages).map(([a, b]) => ({
          first: gpa(Math.min(a, b) * 4096),
          last: gpa(Math.max(a, b) * 4096 + 4095),
        })),
        scopes: scopesOf('endpoint', 'bridge'),
      }),
      { maxLength: 2 },
    ),
    atsr: fc.array(
      fc.oneof(
        fc.record({ segment: segments, allPorts: fc.constant(false), scopes: scopesOf('bridge') }),
        fc.record({ segment: segments, allPorts: fc.constant(true), scopes: fc.constant([]) }),
      ),
      { maxLength: 2 },
    ),
    satc: fc.array(
      fc.record({ segment: segments, atcRequired: fc.boolean(), scopes: scopesOf('endpoint') }),
      { maxLength: 2 },
    ),
    sidp: fc.array(fc.record({ segment: segments, scopes: scopesOf('endpoint') }), {
      maxLength: 2,
    }),
    proximityDomain: fc.integer({ min: 0, max: 2 ** 32 - 1 }),
  })
  .map(({ proximityDomain, ...dmar }) => ({
    ...dmar,
    rhsa: dmar.drhd.map(({ base }) => ({ base, proximityDomain })),
    andd: [{ deviceNumber: 1, objectName: '\\_SB.PCI0.I2C1' }],
  }))

describe('parsing', () => {
  it('reads back any table that can be built', () => {
    fc.assert(
      fc.property(tables, (dmar) => {
        const { identity, unknown, ...decoded } = parseDmar(buildDmar(dmar, { oemId: 'TEST' }))
        expect(decoded).toEqual(dmar)
        expect(identity.oemId).toBe('TEST')
        expect(unknown).toEqual([])
      }),
    )
  })

  it('8.2: keeps structures of unknown types apart', () => {
    const bytes = withBody(Buffer.from(body(SMALLEST) + '2a0006001234', 'hex'))
    expect(parseDmar(bytes).unknown).toEqual([
      { type: 42, bytes: Uint8Array.of(42, 0, 6, 0, 0x12, 0x34) },
    ])
  })

  it('8.3: takes the size of a unit from the low four bits', () => {
    const hex = '260000000000000000000000' + '00001000' + '01' + 'f2' + '0000' + '0000d9fe00000000'
    expect(parseDmar(withBody(Buffer.from(hex, 'hex'))).drhd[0].registerBytes).toBe(16384)
  })

  const head = body(SMALLEST).slice(0, 24)
  it.each([
    ['another table', 'APIC', head],
    ['a table that ends in its header', 'DMAR', head.slice(2)],
    ['a structure of length 0', 'DMAR', head + '00000000'],
    ['a structure longer than the table', 'DMAR', head + '02000900010000'],
    ['a DRHD of 15 bytes', 'DMAR', head + '00000f00' + '00'.repeat(11)],
    ['half a structure head', 'DMAR', head + '0200'],
    ['an ANDD without an end', 'DMAR', head + '04000a00000000014142'],
    ['a device scope of length 0', 'DMAR', head + '020010000000000002000000' + '00000000'],
    ['a device scope without a path', 'DMAR', head + '02000e0000000000020600000000'],
    ['a device scope of an odd length', 'DMAR', head + '0200110000000000' + '020900000000000000'],
    ['half a device scope', 'DMAR', head + '02000b0000000000' + '020800'],
    ['a device scope of type 6', 'DMAR', head + '0200100000000000' + '0608000000000000'],
    ['a device 32', 'DMAR', head + '0200100000000000' + '0208000000002000'],
  ])('refuses %s', (_, signature, hex) => {
    expect(() => parseDmar(withBody(Buffer.from(hex, 'hex'), signature))).toThrow(RangeError)
  })

  it('answers any bytes with a table or a RangeError', () => {
    const bodies = fc.uint8Array({ minLength: 12, maxLength: 80 })
    fc.assert(
      fc.property(bodies, (bytes) => {
        try {
          parseDmar(withBody(bytes))
        } catch (error) {
          expect(error).toBeInstanceOf(RangeError)
        }
      }),
      { numRuns: 2000 },
    )
  })
})

function withBody(bytes: Uint8Array, signature = 'DMAR'): Uint8Array {
  return buildTable(signature, 1, bytes)
}

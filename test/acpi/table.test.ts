import { describe, expect, it } from 'vitest'
import fc from 'fast-check'
import {
  buildTable,
  checksum,
  parseTable,
  readFlags,
  readSlots,
  TABLE_HEADER_BYTES,
  writeFlags,
  writeSlots,
} from '../../lib/acpi/table'
import type { Flag, Slot } from '../../lib/acpi/table'

const text = (length: number): fc.Arbitrary<string> =>
  fc
    .string({ unit: fc.integer({ min: 0x21, max: 0x7e }).map((c) => String.fromCharCode(c)) })
    .map((s) => s.slice(0, length))

describe('a table header (ACPI 6.5 5.2.6)', () => {
  it('has its fields where the specification puts them', () => {
    const bytes = buildTable('TEST', 3, Uint8Array.of(1, 2), {
      oemId: 'OEM',
      oemTableId: 'TABLE',
      oemRevision: 0x01020304,
      creatorId: 'ME',
      creatorRevision: 0xfffffffe,
    })
    const hex = Buffer.from(bytes).toString('hex')
    expect(hex.slice(0, 18)).toBe('544553542600000003')
    expect(hex.slice(20)).toBe(
      '4f454d202020' + '5441424c45202020' + '04030201' + '4d452020' + 'feffffff' + '0102',
    )
  })

  it('makes the entire table sum up to zero, whatever it holds', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 300 }), (body) => {
        const bytes = buildTable('TEST', 1, body)
        expect(bytes.reduce((sum, byte) => (sum + byte) & 0xff, 0)).toBe(0)
        expect(checksum(bytes)).toBe(0)
      }),
    )
  })

  it('reads back what was built', () => {
    const identities = fc.record({
      oemId: text(6),
      oemTableId: text(8),
      oemRevision: fc.integer({ min: 0, max: 2 ** 32 - 1 }),
      creatorId: text(4),
      creatorRevision: fc.integer({ min: 0, max: 2 ** 32 - 1 }),
    })
    fc.assert(
      fc.property(
        identities,
        fc.integer({ min: 0, max: 255 }),
        fc.uint8Array(),
        (identity, revision, body) => {
          const table = parseTable(buildTable('ABCD', revision, body, identity))
          expect(table).toEqual({ signature: 'ABCD', revision, identity, body })
        },
      ),
    )
  })

  it('refuses a signature, text and numbers that do not fit', () => {
    const none = new Uint8Array()
    expect(() => buildTable('ABC', 1, none)).toThrow(RangeError)
    expect(() => buildTable('ABC\n', 1, none)).toThrow(TypeError)
    expect(() => buildTable('ABCD', 256, none)).toThrow(RangeError)
    expect(() => buildTable('ABCD', 1.5, none)).toThrow(RangeError)
    expect(() => buildTable('ABCD', 1, none, { oemId: '1234567' })).toThrow(RangeError)
    expect(() => buildTable('ABCD', 1, none, { creatorId: 'é' })).toThrow(TypeError)
    expect(() => buildTable('ABCD', 1, none, { oemRevision: -1 })).toThrow(RangeError)
  })

  it('does not parse what is truncated, too long for its bytes or wrong in one bit', () => {
    const bytes = buildTable('TEST', 1, Uint8Array.of(1, 2, 3, 4))
    expect(() => parseTable(bytes.subarray(0, TABLE_HEADER_BYTES - 1))).toThrow(RangeError)
    expect(() => parseTable(bytes.subarray(0, bytes.length - 1))).toThrow(RangeError)
    for (let bit = 0; bit < bytes.length * 8; bit++) {
      const bad = Uint8Array.from(bytes)
      bad[bit >> 3] ^= 1 << (bit & 7)
      expect(() => parseTable(bad), `bit ${bit}`).toThrow(RangeError)
    }
  })

  it('ignores bytes that follow the table', () => {
    const bytes = buildTable('TEST', 1, Uint8Array.of(7))
    const longer = Uint8Array.of(...bytes, 1, 2, 3)
    expect(parseTable(longer).body).toEqual(Uint8Array.of(7))
  })
})

describe('slots and flags', () => {
  const LAYOUT = [
    { name: 'a', offset: 0, size: 1 },
    { name: 'b', offset: 1, size: 2 },
    { name: 'c', offset: 3, size: 4 },
    { name: 'd', offset: 7, size: 8 },
  ] as const satisfies readonly Slot[]
  const FLAGS = [
    { name: 'low', bit: 0 },
    { name: 'high', bit: 7 },
  ] as const satisfies readonly Flag[]

  it('are little-endian, also where they are not aligned', () => {
    const bytes = new Uint8Array(15)
    const values = { a: 1, b: 0x0203, c: 0x04050607, d: 0x08090a0b0c0d0e0fn }
    writeSlots(bytes, LAYOUT, values)
    expect(Buffer.from(bytes).toString('hex')).toBe('01' + '0302' + '07060504' + '0f0e0d0c0b0a0908')
    expect(readSlots(bytes, LAYOUT)).toEqual(values)
  })

  it('name the value that does not fit', () => {
    const values = { a: 0, b: 0x10000, c: 0, d: 0n }
    expect(() => {
      writeSlots(new Uint8Array(15), LAYOUT, values)
    }).toThrow(/^b must fit in 2 bytes: 65536$/)
  })

  it('take a flag that is left out as false', () => {
    expect(writeFlags(FLAGS, { high: true })).toBe(0x80)
    expect(readFlags(FLAGS, 0x81)).toEqual({ low: true, high: true })
    expect(readFlags(FLAGS, 0x7e)).toEqual({ low: false, high: false })
  })
})

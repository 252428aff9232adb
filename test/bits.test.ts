/** Tables of bits against BigInt, which has no words to get wrong. */
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { BitField, RegisterFile, layout } from '../lib/bits'
import type { Register } from '../lib/bits'

const words = (value: bigint, count: number): Uint32Array =>
  Uint32Array.from({ length: count }, (_, i) => Number((value >> BigInt(32 * i)) & 0xffffffffn))

const valueOf = (array: Uint32Array): bigint =>
  array.reduceRight((sum, word) => (sum << 32n) | BigInt(word), 0n)

/** Fields of up to 53 bits anywhere in 128 bits. */
const someField = fc
  .tuple(fc.integer({ min: 0, max: 127 }), fc.integer({ min: 1, max: 53 }))
  .map(([from, width]) => new BitField('F', from, Math.min(from + width - 1, 127)))

const some128 = fc.bigInt({ min: 0n, max: (1n << 128n) - 1n })

describe('BitField', () => {
  it('reads what BigInt reads, in whichever words the field lies', () => {
    fc.assert(
      fc.property(someField, some128, (field, value) => {
        const expected = (value >> BigInt(field.from)) & ((1n << BigInt(field.width)) - 1n)
        expect(BigInt(field.read(words(value, 4)))).toBe(expected)
        expect(BigInt(field.in(value))).toBe(expected)
      }),
    )
  })

  it('writes the field and nothing around it', () => {
    fc.assert(
      fc.property(someField, some128, some128, (field, value, random) => {
        const put = random & ((1n << BigInt(field.width)) - 1n)
        const array = words(value, 4)
        field.write(array, Number(put))
        expect(valueOf(array)).toBe((value & ~field.bits) | field.of(put))
        expect(field.read(array)).toBe(Number(put))
      }),
    )
  })

  it('drops what does not fit the field', () => {
    const array = new Uint32Array(1)
    const field = new BitField('F', 4, 7)
    field.write(array, 0x123)
    expect(array[0]).toBe(0x30)
    expect(field.of(0x123)).toBe(0x30n)
  })

  it('has its mask in each 32-bit word', () => {
    const field = new BitField('F', 28, 67)
    expect([0, 1, 2, 3].map((word) => field.mask(word))).toEqual([0xf0000000, 0xffffffff, 0xf, 0])
  })

  it('reads a structure in the middle of an array', () => {
    expect(new BitField('F', 0, 7).read([1, 2, 3], 2)).toBe(3)
  })
})

describe('layout', () => {
  it('reserves the bits that no field names', () => {
    const { reserved, words: count } = layout(64, [
      { name: 'P', from: 0, to: 0 },
      { name: 'ADDR', from: 12, to: 51 },
    ])
    expect([count, ...reserved]).toEqual([2, 0xffe, 0xfff00000])
  })

  it.each([
    [
      'overlap',
      [
        { name: 'A', from: 0, to: 4 },
        { name: 'B', from: 4, to: 5 },
      ],
    ],
    [
      'share a name',
      [
        { name: 'A', from: 0, to: 1 },
        { name: 'A', from: 4, to: 5 },
      ],
    ],
    ['end beyond the structure', [{ name: 'A', from: 30, to: 32 }]],
    ['end before they start', [{ name: 'A', from: 5, to: 4 }]],
  ])('refuses fields that %s', (_, fields) => {
    expect(() => layout(32, fields)).toThrow(RangeError)
  })
})

const TABLE: readonly Register<'A' | 'B' | 'C'>[] = [
  { name: 'A', offset: 0x04, size: 4, reset: 0x80000001n, writable: 0xffff0000n },
  { name: 'B', offset: 0x08, size: 8, write1clear: 1n << 63n, writable: 0xffn, writeOnly: 0xf0n },
  { name: 'C', offset: 0x14, size: 4, reset: 0x12345678n },
]

describe('RegisterFile', () => {
  const made = () => new RegisterFile(TABLE, 0x18)

  it('has its reset values, and has them again after reset()', () => {
    const file = made()
    file.write(0x04, 0xffffffffn, 4)
    expect(file.read(0x04, 4)).toBe(0xffff0001n)
    file.reset()
    expect([file.read(0x04, 4), file.read(0x14, 4)]).toEqual([0x80000001n, 0x12345678n])
  })

  it('writes writable bits only, and reads write-only ones as 0', () => {
    const file = made()
    file.write(0x08, 0xffffffffffffffffn, 8)
    expect(file.get('B')).toBe(0xffn)
    expect(file.read(0x08, 8)).toBe(0x0fn)
  })

  it('clears write-1-to-clear bits, and keeps them at a 0', () => {
    const file = made()
    file.set('B', 1n << 63n)
    file.write(0x0c, 0n, 4)
    expect(file.get('B')).toBe(1n << 63n)
    file.write(0x0f, 0x80n, 1)
    expect(file.get('B')).toBe(0n)
  })

  it('names the registers that an access touched, in order of offset', () => {
    const touched = (at: number, size: number) =>
      made()
        .write(at, 0n, size)
        .map(({ name }) => name)
    expect(touched(0x04, 4)).toEqual(['A'])
    expect(touched(0x06, 4)).toEqual(['A', 'B'])
    expect(touched(0x0f, 1)).toEqual(['B'])
    expect(touched(0x10, 4)).toEqual([])
  })

  it('reads and writes its words as numbers', () => {
    const file = made()
    file.setWord('B', 0xdeadbeef, 1)
    expect([file.word('B'), file.word('B', 1)]).toEqual([0, 0xdeadbeef])
    expect(file.get('B')).toBe(0xdeadbeef00000000n)
  })

  it('agrees with a file of bytes for any size, offset and value, in or out of the window', () => {
    const masks = { writable: new Map<number, number>(), clear: new Map<number, number>() }
    const hidden = new Map<number, number>()
    const model = new Map<number, number>()
    const byte = (value: bigint | undefined, i: number): number =>
      Number(((value ?? 0n) >> BigInt(8 * i)) & 0xffn)
    const file = made()
    for (const register of TABLE) {
      for (let i = 0; i < register.size; i++) {
        masks.writable.set(register.offset + i, byte(register.writable, i))
        masks.clear.set(register.offset + i, byte(register.write1clear, i))
        hidden.set(register.offset + i, byte(register.writeOnly, i))
        model.set(register.offset + i, byte(register.reset, i))
      }
    }
    const access = fc.record({
      at: fc.integer({ min: -9, max: 0x20 }),
      size: fc.constantFrom(1, 2, 4, 8),
      value: fc.bigInt({ min: 0n, max: (1n << 64n) - 1n }),
    })
    fc.assert(
      fc.property(access, ({ at, size, value }) => {
        file.write(at, value, size)
        for (let i = 0; i < size; i++) {
          const writable = masks.writable.get(at + i) ?? 0
          const put = byte(value, i)
          const merged = ((model.get(at + i) ?? 0) & ~writable) | (put & writable)
          model.set(at + i, merged & ~((masks.clear.get(at + i) ?? 0) & put))
        }
        let expected = 0n
        for (let i = size - 1; i >= 0; i--) {
          const visible = (model.get(at + i) ?? 0) & ~(hidden.get(at + i) ?? 0xff)
          expected = (expected << 8n) | BigInt(visible)
        }
        expect(file.read(at, size)).toBe(expected)
      }),
    )
  })

  it('writes a word as a number as it does in four bytes', () => {
    const [byNumber, byBytes] = [made(), made()]
    const write = fc.record({
      at: fc.integer({ min: -2, max: 8 }).map((word) => 4 * word),
      value: fc.integer({ min: 0, max: 0xffffffff }),
    })
    fc.assert(
      fc.property(write, ({ at, value }) => {
        const touched = byNumber.writeWord(at, value)
        expect(touched).toEqual(byBytes.write(at, BigInt(value), 4))
        expect(byNumber.read(at, 4)).toBe(byBytes.read(at, 4))
        expect(['A', 'B'].map((name) => byNumber.get(name as 'A'))).toEqual(
          ['A', 'B'].map((name) => byBytes.get(name as 'A')),
        )
      }),
    )
  })

  it.each([NaN, Infinity, -Infinity, 2 ** 60])('answers 0 at the offset %s', (at) => {
    const file = made()
    expect(file.write(at, 0xffn, 4)).toEqual([])
    expect(file.writeWord(at, 0xff)).toEqual([])
    expect(file.read(at, 4)).toBe(0n)
  })

  it('refuses tables that overlap or leave the window, and names that it does not have', () => {
    const overlapping = [
      { name: 'A', offset: 0, size: 8 },
      { name: 'B', offset: 4, size: 4 },
    ] as const
    expect(() => new RegisterFile(overlapping, 16)).toThrow(RangeError)
    expect(() => new RegisterFile([{ name: 'A', offset: 12, size: 8 }], 16)).toThrow(RangeError)
    expect(() => made().get('D' as 'A')).toThrow(RangeError)
  })
})

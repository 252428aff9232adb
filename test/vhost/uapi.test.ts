import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import type { AccessBits } from '../../lib/address'
import { Miss } from '../../lib/iotlb/channel'
import {
  IOCTLS,
  LAST_PAGE_COUNT,
  MESSAGE_BYTES,
  MESSAGE_WORDS,
  STRUCTS,
  VHOST_IOTLB_INVALIDATE,
  VHOST_IOTLB_MISS,
  VHOST_IOTLB_UPDATE,
  decodeMessage,
  decodeMiss,
  decodeStruct,
  encodeInvalidate,
  encodeMessage,
  encodeStruct,
  encodeUpdate,
} from '../../lib/vhost/uapi'
import type { Ioctl, MessageVersion, StructLayout } from '../../lib/vhost/uapi'

const page = (): fc.Arbitrary<number> =>
  fc.oneof(
    fc.nat(2 ** 20 + 1),
    fc.maxSafeNat().map((n) => n % 2 ** 52),
    fc.constant(2 ** 52 - 1),
  )

function bytesOf(words: Uint32Array): Uint8Array {
  return new Uint8Array(words.buffer, words.byteOffset, words.byteLength)
}

describe('the ioctl table', () => {
  // asm-generic/ioctl.h: bits 7:0 number, 15:8 type, 29:16 size, 31:30 direction.
  test('each number states the size of its argument, or the table says what it understates', () => {
    for (const [name, ioctl] of Object.entries<Ioctl>(IOCTLS)) {
      const stated = (ioctl.request >>> 16) & 0x3fff
      if (ioctl.argument === 'none') expect(stated, name).toBe(0)
      else if (ioctl.argument === 'value') expect(ioctl.size, name).toBeUndefined()
      else {
        const { bytes } = STRUCTS[ioctl.argument]
        expect(ioctl.size ?? stated, name).toBe(bytes)
        expect(bytes, name).toBeGreaterThanOrEqual(stated)
      }
    }
  })

  test('no two requests have one number, but for those that differ in direction alone', () => {
    const numbers = Object.values(IOCTLS).map(({ request }) => request)
    expect(new Set(numbers).size).toBe(numbers.length)
  })

  test('numbers have the type of their family: 0xaf for vhost, T for tun', () => {
    for (const [name, { request }] of Object.entries<Ioctl>(IOCTLS)) {
      const type = (request >>> 8) & 0xff
      if (name.startsWith('VHOST')) expect(type, name).toBe(0xaf)
      else if (name.startsWith('TUN')) expect(type, name).toBe('T'.charCodeAt(0))
      else if (name.startsWith('SIOC')) expect(type, name).toBe(0x89)
    }
  })
})

describe('struct layouts', () => {
  const layouts = Object.entries<StructLayout>(STRUCTS)

  test('fields lie within their struct, and no two overlap', () => {
    const widths = { u8: 1, u16: 2, s16: 2, u32: 4, s32: 4, u64: 8 }
    for (const [name, { bytes, fields }] of layouts) {
      let end = 0
      for (const [field, { at, type, length }] of Object.entries(fields)) {
        expect(at, `${name}.${field}`).toBeGreaterThanOrEqual(end)
        end = at + (type === 'bytes' ? (length ?? 0) : widths[type])
      }
      expect(end, name).toBeLessThanOrEqual(bytes)
    }
  })

  test('the used ring comes before the available ring in vhost_vring_addr', () => {
    const bytes = encodeStruct(STRUCTS.vhost_vring_addr, {
      index: 1,
      desc_user_addr: 0x1122334455667788n,
      used_user_addr: 2n,
      avail_user_addr: 3n,
    })
    expect(Buffer.from(bytes).toString('hex')).toBe(
      '01000000' +
        '00000000' +
        '8877665544332211' +
        '0200000000000000' +
        '0300000000000000' +
        '00'.repeat(8),
    )
  })

  test('what is encoded is decoded again', () => {
    fc.assert(
      fc.property(fc.nat(0xffffffff), fc.integer({ min: -1, max: 2 ** 31 - 1 }), (index, fd) => {
        const bytes = encodeStruct(STRUCTS.vhost_vring_file, { index, fd })
        expect(decodeStruct(STRUCTS.vhost_vring_file, bytes)).toEqual({ index, fd })
      }),
    )
  })

  test.each([
    [{ fdd: 1 }],
    [{ index: -1 }],
    [{ index: 2 ** 32 }],
    [{ fd: 2 ** 31 }],
    [{ index: 1.5 }],
    [{ index: new Uint8Array(4) }],
  ])('refuses %o', (values) => {
    expect(() => encodeStruct(STRUCTS.vhost_vring_file, values)).toThrow(RangeError)
  })

  test('a short buffer is no struct', () => {
    expect(() => decodeStruct(STRUCTS.u64, new Uint8Array(7))).toThrow(RangeError)
  })
})

describe('the IOTLB message', () => {
  test('an UPDATE has the bytes that Linux 6.12 was seen to accept', () => {
    const words = new Uint32Array(MESSAGE_WORDS)
    encodeUpdate(words, 0, 2, 0x123456789, 1, 0x200000002, 3)
    const hex = Buffer.from(bytesOf(words)).toString('hex')
    expect(hex).toBe(
      '0200000000000000' +
        '0090785634120000' +
        '0010000000000000' +
        '0020000000200000' +
        '0302' +
        '00'.repeat(38),
    )
  })

  test('a MISS is read as it was seen: an address that is not page aligned, no size', () => {
    const bytes = new Uint8Array(MESSAGE_BYTES)
    bytes.set(Buffer.from('02000000000000000290785634120000', 'hex'))
    bytes.set([1, 1], 32)
    const miss = new Miss()
    expect(decodeMiss(new Uint32Array(bytes.buffer), 0, miss)).toBe(true)
    expect([miss.page, miss.offset, miss.access]).toEqual([0x123456789, 2, 1])
    expect(miss.iova).toBe(0x123456789002n)
  })

  test('what is not a MISS is not taken for one', () => {
    for (const type of [0, 2, 3, 4, 5, 6, 255]) {
      const words = new Uint32Array(encodeMessage({ type, iova: 1n, perm: 1 }).buffer)
      expect(decodeMiss(words, 0, new Miss()), `type ${type}`).toBe(false)
    }
  })

  test('the number codec writes what the bigint codec does', () => {
    fc.assert(
      fc.property(
        page(),
        fc.integer({ min: 1, max: LAST_PAGE_COUNT }),
        page(),
        fc.constantFrom<AccessBits>(0, 1, 2, 3),
        fc.constantFrom<MessageVersion>(1, 2),
        (first, pages, hva, access, version) => {
          const words = new Uint32Array(3 * MESSAGE_WORDS).fill(0)
          encodeUpdate(words, MESSAGE_WORDS, version, first, pages, hva, access)
          encodeInvalidate(words, 2 * MESSAGE_WORDS, version, first, pages)
          const range = { version, iova: BigInt(first) << 12n, size: BigInt(pages) << 12n }
          const update = { type: VHOST_IOTLB_UPDATE, uaddr: BigInt(hva) << 12n, perm: access }
          const all = bytesOf(words)
          expect(all.subarray(MESSAGE_BYTES, 2 * MESSAGE_BYTES)).toEqual(
            encodeMessage({ ...range, ...update }),
          )
          expect(all.subarray(2 * MESSAGE_BYTES)).toEqual(
            encodeMessage({ ...range, type: VHOST_IOTLB_INVALIDATE }),
          )
        },
      ),
    )
  })

  test('the number codec reads what the bigint codec wrote', () => {
    const address = fc.bigInt({ min: 0n, max: (1n << 64n) - 1n })
    fc.assert(
      fc.property(address, fc.constantFrom(1, 2, 3), (iova, perm) => {
        const bytes = encodeMessage({ type: VHOST_IOTLB_MISS, iova, perm })
        const miss = new Miss()
        expect(decodeMiss(new Uint32Array(bytes.buffer), 0, miss)).toBe(true)
        expect([miss.iova, miss.access]).toEqual([iova, perm])
        expect(decodeMessage(bytes)).toMatchObject({ version: 2, asid: 0, iova, perm, size: 0n })
      }),
    )
  })
})

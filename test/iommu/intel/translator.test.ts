/** How wide a translation is, and what it grants (VT-d 5.10, 3.3 to 3.7, 3.14). */
import { describe, expect, it } from 'vitest'
import { READ, WRITE } from '../../../lib/address'
import { PageTranslation } from '../../../lib/memory/address-space'
import { Guest, REQUESTER } from './guest'

const LAST = 2n ** 64n - 1n

describe('a second-stage leaf', () => {
  it.each([
    [39, 1, 0x1000n],
    [39, 2, 0x200000n],
    [39, 3, 0x40000000n],
    [48, 1, 0x1000n],
    [48, 2, 0x200000n],
    [48, 3, 0x40000000n],
    [57, 1, 0x1000n],
    [57, 2, 0x200000n],
    [57, 3, 0x40000000n],
  ] as const)('%i bits, level %i: all of it is one translation', (addressWidth, level, size) => {
    const guest = new Guest({ addressWidth }).start()
    const at = ((1n << BigInt(addressWidth)) - 1n) & ~(size - 1n)
    guest.map(at, 7n * size, 3, level)
    expect(guest.translate(at + size - 1n, 'write')).toEqual({
      ok: true,
      iova: { first: at, last: at + size - 1n },
      gpa: 7n * size,
      access: 'readwrite',
    })
  })

  it('may lead outside guest memory: that is for the device to find out', () => {
    const guest = new Guest().start()
    guest.map(0x40000000n, 0x40_0000_0000n, 3, 3)
    expect(guest.translate(0x40000000n)).toMatchObject({ ok: true, gpa: 0x40_0000_0000n })
  })

  it.each([
    [1, 'read'],
    [2, 'write'],
    [3, 'readwrite'],
  ] as const)('grants what all levels grant, whatever was wanted: R and W %i', (bits, access) => {
    const guest = new Guest().start()
    guest.map(0x1000n, 0x5000n)
    const table = guest.entryAt(0x1000n, 3)
    guest.memory.setU64(table, (guest.memory.u64(table) & ~3n) | BigInt(bits))
    expect(guest.translate(0x1000n, 'none')).toMatchObject({ ok: true, access })
  })

  it('gives writing to one who only asked to read, and never to a read-only page', () => {
    const guest = new Guest().start()
    guest.map(0x1000n, 0x5000n, 3)
    guest.map(0x2000n, 0x5000n, 1)
    expect(guest.translate(0x1000n, 'read')).toMatchObject({ access: 'readwrite' })
    expect(guest.translate(0x2000n, 'read')).toMatchObject({ access: 'read' })
  })

  it('brings the neighbours that were asked for, as far as each of them says the same', () => {
    const guest = new Guest().start()
    const first = 0x1f0
    const runs = [
      { gpaPage: 0x300, access: 3, pages: 5 },
      { gpaPage: 0x305, access: 1, pages: 9 },
      { gpaPage: 0x311, access: 1, pages: 20 },
    ] as const
    let page = first
    for (const { gpaPage, access, pages } of runs) {
      for (let i = 0; i < pages; i++, page++) {
        guest.map(BigInt(page) << 12n, BigInt(gpaPage + i) << 12n, access)
      }
    }
    const one = new PageTranslation()
    const out = new PageTranslation()
    for (let asked = first - 2; asked < page + 2; asked++) {
      for (const [above, below] of [
        [0, 0],
        [3, 0],
        [0, 4],
        [64, 64],
      ]) {
        Object.assign(out, { above, below })
        const granted = guest.space.translatePage(asked, 0, out)
        expect(granted).toBe(asked >= first && asked < page)
        if (!granted) continue
        expect(out.firstPage).toBeGreaterThanOrEqual(asked - below)
        expect(out.lastPage).toBeLessThanOrEqual(asked + above)
        for (let each = out.firstPage; each <= out.lastPage; each++) {
          expect(guest.space.translatePage(each, 0, one)).toBe(true)
          expect(one.gpaPage).toBe(out.gpaPage + each - out.firstPage)
          expect(one.access).toBe(out.access)
        }
      }
    }
    // Not over the end of its table: 0x1f0 to 0x1ff, and what follows in the next.
    Object.assign(out, { above: 64, below: 64 })
    guest.space.translatePage(0x1fe, 0, out)
    expect([out.firstPage, out.lastPage]).toEqual([0x1fe, 0x1ff])
    guest.space.translatePage(0x1f2, 0, out)
    expect([out.firstPage, out.lastPage]).toEqual([0x1f0, 0x1f4])
    guest.space.translatePage(0x208, 0, out)
    expect([out.firstPage, out.lastPage]).toEqual([0x200, 0x211])
  })

  it('is used with 3 levels by a unit of 4 (CAP.SAGAW)', () => {
    const guest = new Guest({ addressWidth: 48 }).start()
    guest.contextEntry(REQUESTER, { width: 1 })
    guest.memory.setU64(guest.tableRoot, 0x40000000n | 0x83n)
    expect(guest.translate(0x12345n)).toMatchObject({ ok: true, gpa: 0x40000000n })
  })

  it('ignores the bits that the specification gives to software (9.8)', () => {
    const guest = new Guest().start()
    const ignored = (1n << 63n) | (0x3ffn << 52n) | (7n << 8n) | (0x1fn << 2n)
    guest.map(0x1000n, 0x5000n | ignored)
    expect(guest.translate(0x1000n)).toMatchObject({ ok: true, gpa: 0x5000n })
  })
})

describe('the interrupt window 0xfee00000 to 0xfeefffff (3.15)', () => {
  const window = [0xfee00000n, 0xfee12345n, 0xfeefffffn]

  it('is never translated, with translation on, off, or passed through', () => {
    for (const guest of [new Guest(), new Guest().start(), new Guest().start({ type: 2 })]) {
      for (const at of window) {
        expect(guest.translate(at)).toMatchObject({ ok: false, reason: { code: 0x100 } })
      }
    }
  })

  it('is cut out of a large leaf on the side of the iova', () => {
    const guest = new Guest().start()
    guest.map(0xc0000000n, 0x100000000n, 3, 3)
    expect(guest.translate(0xfedfffffn)).toMatchObject({
      iova: { first: 0xc0000000n, last: 0xfedfffffn },
      gpa: 0x100000000n,
    })
    expect(guest.translate(0xfef00000n)).toMatchObject({
      iova: { first: 0xfef00000n, last: 0xffffffffn },
      gpa: 0x13ef00000n,
    })
  })

  it('is cut out of a large leaf on the side of the target, where it is fault 0xe', () => {
    const guest = new Guest().start()
    guest.map(0x100000000n, 0xc0000000n, 3, 3)
    expect(guest.translate(0x100000000n)).toMatchObject({
      iova: { first: 0x100000000n, last: 0x13edfffffn },
      gpa: 0xc0000000n,
    })
    expect(guest.translate(0x13ef00000n)).toMatchObject({
      iova: { first: 0x13ef00000n, last: 0x13fffffffn },
      gpa: 0xfef00000n,
    })
    expect(guest.code(0x13ee00000n)).toBe(0x0e)
    expect(guest.code(0x13eefffffn)).toBe(0x0e)
  })

  it('is cut out of a leaf that maps to itself, once', () => {
    const guest = new Guest().start()
    guest.map(0xc0000000n, 0xc0000000n, 3, 3)
    expect(guest.translate(0xffffffffn)).toMatchObject({
      iova: { first: 0xfef00000n, last: 0xffffffffn },
      gpa: 0xfef00000n,
    })
  })
})

describe('identity', () => {
  const low = { ok: true, iova: { first: 0n, last: 0xfedfffffn }, gpa: 0n, access: 'readwrite' }

  it('is everything around the interrupt window while translation is off', () => {
    const guest = new Guest()
    expect(guest.space.state).toBe('off')
    expect(guest.translate(0x12345678n)).toEqual(low)
    expect(guest.translate(LAST, 'write')).toMatchObject({
      iova: { first: 0xfef00000n, last: LAST },
      gpa: 0xfef00000n,
    })
  })

  it('is everything up to the width with pass-through (9.3, TT = 10b)', () => {
    const guest = new Guest().start({ type: 2 })
    expect(guest.space.state).toBe('identity')
    expect(guest.translate(0x12345678n)).toEqual(low)
    expect(guest.translate(0x100000000n)).toMatchObject({
      iova: { first: 0xfef00000n, last: (1n << 48n) - 1n },
    })
    expect(guest.code(1n << 48n)).toBe(0x04)
  })

  it('is granted to a device TLB too: what it holds ends with the context', () => {
    const guest = new Guest().start({ type: 2 })
    guest.iommu.setAts(REQUESTER, true)
    expect(guest.translate(0x1000n).ok).toBe(true)
  })
})

describe('an address space', () => {
  it('is one object for one requester, however that is named', () => {
    const { iommu } = new Guest()
    expect(iommu.addressSpace('00:03.0')).toBe(iommu.addressSpace(0x18))
    expect(iommu.addressSpace('00:03.0')).not.toBe(iommu.addressSpace('00:03.1'))
    expect(iommu.addressSpace('00:03.0').requester).toBe(0x18)
  })

  it('fills the caller’s object, and leaves it empty but for the reason when it refuses', () => {
    const guest = new Guest().start()
    guest.map(0x200000n, 0x400000n, 1, 2)
    const out = new PageTranslation()
    expect(guest.space.translatePage(0x234, READ, out)).toBe(true)
    const leaf = { firstPage: 0x200, lastPage: 0x3ff, gpaPage: 0x400, access: READ, reason: 0 }
    expect(out).toEqual(leaf)
    expect(guest.space.translatePage(0x234, WRITE, out)).toBe(false)
    expect(out).toEqual({
      firstPage: 0x234,
      lastPage: 0x234,
      gpaPage: 0,
      access: 0,
      reason: 5,
    })
  })

  it('refuses a word that is no access', () => {
    expect(() => new Guest().translate(0n, 'execute' as 'read')).toThrow(TypeError)
  })

  it('reads the tables anew for each request: nothing is cached', () => {
    const guest = new Guest().start()
    const entry = guest.map(0x1000n, 0x5000n)
    expect(guest.code(0x1000n)).toBe(0)
    guest.memory.setU64(entry, 0n)
    expect(guest.code(0x1000n)).toBe(0x06)
    guest.memory.setU64(entry, 0x6003n)
    expect(guest.translate(0x1000n)).toMatchObject({ gpa: 0x6000n })
  })
})

/** A window on another address space: arithmetic, cutting, and what passes through. */
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { LAST_PAGE, iova, iovaRange, pageOf } from '../../lib/address'
import { AddressSpaceAlias } from '../../lib/memory/alias'
import { PageTranslation } from '../../lib/memory/address-space'
import type { InvalidationSource } from '../../lib/memory/address-space'
import { Guest } from '../iommu/intel/guest'

/** Window pages [first, last] stand for target pages from `target`. */
function alias(guest: Guest, first: number, last: number, target: number): AddressSpaceAlias {
  return new AddressSpaceAlias(guest.space, {
    range: iovaRange(first, last),
    target: iovaRange(target, target).first,
  })
}

const WHOLE = 2n ** 64n - 1n

describe('an alias', () => {
  it('translates through its offset, up or down', () => {
    const guest = new Guest().start()
    guest.map(0x5000n, 0x9000n, 1)
    for (const [first, target] of [
      [0x100, 0],
      [0, 5],
    ] as const) {
      const window = alias(guest, first, first + 15, target)
      const at = iova((first + (5 - target)) * 4096 + 0x123)
      expect(window.translate(at, 'read')).toEqual({
        ok: true,
        iova: iovaRange(pageOf(at), pageOf(at)),
        gpa: 0x9000n,
        access: 'read',
      })
    }
  })

  it('cuts a large translation at both edges of the window', () => {
    const guest = new Guest().start()
    guest.map(0x200000n, 0x600000n, 3, 2)
    const window = alias(guest, 0x1000, 0x1003, 0x210)
    const out = new PageTranslation()
    for (const page of [0x1000, 0x1002, 0x1003]) {
      expect(window.translatePage(page, 2, out)).toBe(true)
      const cut = { firstPage: 0x1000, lastPage: 0x1003, gpaPage: 0x610, access: 3, reason: 0 }
      expect(out).toEqual(cut)
    }
    expect(window.translate(iova(0x1002000n), 'write')).toMatchObject({
      iova: { first: 0x1000000n, last: 0x1003fffn },
      gpa: 0x610000n,
    })
  })

  it('leaves a translation alone that ends inside the window', () => {
    const guest = new Guest().start()
    guest.map(0x5000n, 0x9000n)
    const out = new PageTranslation()
    expect(alias(guest, 0, 9, 0).translatePage(5, 1, out)).toBe(true)
    expect(out).toMatchObject({ firstPage: 5, lastPage: 5, gpaPage: 9 })
  })

  it('translates nothing outside, and records nothing for it', () => {
    const guest = new Guest().start()
    const window = alias(guest, 0x10, 0x1f, 0)
    const out = new PageTranslation()
    for (const page of [0xf, 0x20, 0, LAST_PAGE]) {
      expect(window.translatePage(page, 1, out)).toBe(false)
      expect(out).toEqual({ firstPage: page, lastPage: page, gpaPage: 0, access: 0, reason: 0x101 })
      expect(window.translate(iovaRange(page, page).first, 'read')).toMatchObject({
        ok: false,
        reason: { name: 'outside-window' },
      })
    }
    expect(guest.fault).toBeUndefined()
  })

  it('answers a refusal in its own iovas; the target records its own', () => {
    const guest = new Guest().start()
    const window = alias(guest, 0x1000, 0x1fff, 0)
    const at = iova(0x1005123n)
    expect(window.translate(at, 'read')).toMatchObject({ ok: false, iova: at, reason: { code: 6 } })
    expect(guest.fault?.address).toBe(0x5000n)
    const out = new PageTranslation()
    expect(window.translatePage(0x1005, 1, out)).toBe(false)
    expect(out).toEqual({ firstPage: 0x1005, lastPage: 0x1005, gpaPage: 0, access: 0, reason: 6 })
  })

  it('has the state, the generation and the requester of its target', () => {
    const guest = new Guest()
    const window = alias(guest, 0, LAST_PAGE, 0)
    expect([window.state, window.generation, window.requester]).toEqual(['off', 0, 0x18])
    guest.start()
    expect(window.state).toBe('translating')
    expect(window.generation).toBe(guest.space.generation)
  })

  it('refuses a word that is no access, inside and outside', () => {
    const window = alias(new Guest(), 1, 1, 0)
    for (const at of [0n, 0x1000n]) {
      expect(() => window.translate(iova(at), 'execute' as 'read')).toThrow(TypeError)
    }
  })

  it.each<[string, bigint, bigint, bigint]>([
    ['empty', 0x2000n, 0x1fffn, 0n],
    ['not page aligned at its start', 0x10n, 0xfffn, 0n],
    ['not page aligned at its end', 0n, 0xffen, 0n],
    ['not page aligned in its target', 0n, 0xfffn, 1n],
    ['beyond 2^64 in its target', 0n, 0x1fffn, WHOLE - 0xfffn],
  ])('refuses a window that is %s', (_, first, last, target) => {
    const window = { range: { first: iova(first), last: iova(last) }, target: iova(target) }
    expect(() => new AddressSpaceAlias(new Guest().space, window)).toThrow(RangeError)
  })

  it('may be as large as the address space, and as high', () => {
    const guest = new Guest()
    expect(alias(guest, 0, LAST_PAGE, 0).translate(iova(WHOLE), 'read')).toMatchObject({
      iova: { last: WHOLE },
    })
    const top = alias(guest, LAST_PAGE, LAST_PAGE, 3)
    expect(top.translate(iova(WHOLE), 'read')).toMatchObject({
      iova: { first: WHOLE - 0xfffn, last: WHOLE },
      gpa: 0x3000n,
    })
  })
})

describe('invalidations through an alias', () => {
  const sent = (
    [first, last, target]: readonly [number, number, number],
    [from, to]: readonly [number, number],
    pages: boolean,
  ): readonly [number, number, InvalidationSource][] => {
    const guest = new Guest().start({ type: 1 })
    guest.iommu.setAts(guest.source, true)
    const heard: [number, number, InvalidationSource][] = []
    const note = (a: number, b: number, source: InvalidationSource): void => {
      heard.push([a, b, source])
    }
    const notifier = {
      invalidate: (range: { first: bigint; last: bigint }, source: InvalidationSource) => {
        note(pageOf(range.first), pageOf(range.last), source)
      },
    }
    alias(guest, first, last, target).notify(
      pages ? { ...notifier, invalidatePages: note } : notifier,
    )
    for (let page = from; page <= to; page++) {
      guest.submit([0x03n | (BigInt(guest.source) << 32n), BigInt(page) << 12n])
    }
    return heard
  }

  it.each([true, false])('are shifted, and cut to the window (in pages: %s)', (pages) => {
    expect(sent([0x100, 0x101, 0x50], [0x4f, 0x52], pages)).toEqual([
      [0x100, 0x100, 'device-tlb'],
      [0x101, 0x101, 'device-tlb'],
    ])
  })

  it('of everything are of the whole window', () => {
    const guest = new Guest()
    const heard: number[][] = []
    alias(guest, 0x10, 0x1f, 0x1000).notify({
      invalidate: () => undefined,
      invalidatePages: (first, last) => heard.push([first, last]),
    })
    guest.iommu.reset()
    expect(heard).toEqual([[0x10, 0x1f]])
  })

  it('end when the notification is disposed of', () => {
    const guest = new Guest()
    let times = 0
    const notification = alias(guest, 0, 1, 0).notify({ invalidate: () => times++ })
    guest.iommu.reset()
    notification[Symbol.dispose]()
    guest.iommu.reset()
    expect(times).toBe(1)
  })

  it('reach a page of the window exactly if they reach the page that it stands for', () => {
    const window = fc.record({
      first: fc.integer({ min: 0, max: 40 }),
      pages: fc.integer({ min: 1, max: 12 }),
      target: fc.integer({ min: 0, max: 40 }),
      page: fc.integer({ min: 0, max: 60 }),
    })
    fc.assert(
      fc.property(window, ({ first, pages, target, page }) => {
        const heard = sent([first, first + pages - 1, target], [page, page], true)
        const inside = page >= target && page < target + pages
        const own = first + page - target
        expect(heard).toEqual(inside ? [[own, own, 'device-tlb']] : [])
      }),
      { numRuns: 60 },
    )
  })
})

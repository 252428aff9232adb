import { describe, expect, it } from 'vitest'
import { readWords, storeWord } from '../../lib/iommu/table-memory'
import { PlainMemory } from './plain-memory'

const memory = () => new PlainMemory([{ start: 0x1000, bytes: 0x1000 }])

describe('table memory', () => {
  it('copies words', () => {
    const from = memory()
    from.setU64(0x1ff8, 0x1122334455667788n)
    const into = new Uint32Array(2)
    expect(readWords(from, 0x1ff8, into)).toBe(true)
    expect([...into]).toEqual([0x55667788, 0x11223344])
  })

  it('stores a word where memory is, aligned, and nowhere else', () => {
    const to = memory()
    expect(storeWord(to, 0x1ffc, 7)).toBe(true)
    expect(to.u32(0x1ffc)).toBe(7)
    for (const at of [0xffc, 0x2000, 0x1ffe, 2 ** 60]) expect(storeWord(to, at, 9)).toBe(false)
    expect(to.u32(0x1ffc)).toBe(7)
  })

  it('reads nothing where no memory is', () => {
    expect(readWords(memory(), 0xff8, new Uint32Array(2))).toBe(false)
  })
})

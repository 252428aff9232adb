import { describe, expect, it } from 'vitest'
import fc from 'fast-check'
import { Ats } from '../../lib/pci/ats'
import type { AtsOptions } from '../../lib/pci/ats'
import { ConfigSpace } from '../../lib/pci/config-space'
import { endpointHeader } from '../../lib/pci/header'
import { accesses, extendedList } from './support'

const AT = 0x100

function made(options?: AtsOptions) {
  const ats = new Ats(options)
  const header = endpointHeader({
    vendor: 1,
    device: 2,
    classCode: 0,
    subsystemVendor: 1,
    subsystem: 1,
  })
  const config = new ConfigSpace(header, [ats])
  const heard: [boolean, number][] = []
  ats.onAts((enabled, stu) => heard.push([enabled, stu]))
  return { ats, config, heard }
}

describe('the ATS extended capability (PCIe 5.0 10.5.1)', () => {
  it('10.5.1.1: has the id 0x000f and version 1', () => {
    const { config } = made()
    expect(extendedList(config)).toEqual([{ id: 0x0f, version: 1, offset: AT }])
    expect(config.read(AT, 4)).toBe(0x0001000fn)
  })

  it.each<[string, AtsOptions, bigint]>([
    ['by default a depth of 32, page aligned requests', {}, 0x0020n],
    ['a depth of 32 as 0', { invalidateQueueDepth: 32, pageAlignedRequest: false }, 0x0000n],
    ['a depth of 31', { invalidateQueueDepth: 31 }, 0x003fn],
    ['a depth of 1', { invalidateQueueDepth: 1, pageAlignedRequest: false }, 0x0001n],
    ['global invalidate', { globalInvalidate: true }, 0x0060n],
  ])('10.5.1.2: says %s', (_, options, word) => {
    expect(made(options).config.read(AT + 4, 2)).toBe(word)
  })

  it.each([0, 33, 1.5, Number.NaN])('10.5.1.2: refuses a queue depth of %d', (depth) => {
    expect(() => new Ats({ invalidateQueueDepth: depth })).toThrow(RangeError)
  })

  it('10.5.1.3: the guest may write Enable and all five bits of STU, nothing else', () => {
    const { config } = made()
    config.write(AT, 0xffffffffffffffffn, 8)
    expect(config.read(AT, 8)).toBe(0x801f0020_0001000fn)
    config.write(AT, 0n, 8)
    expect(config.read(AT, 8)).toBe(0x00000020_0001000fn)
  })

  it.each([
    ['8 bits at +7', 7, 0x80n, 1],
    ['16 bits at +6', 6, 0x8000n, 2],
    ['32 bits at +4', 4, 0x80000000n, 4],
    ['64 bits at +0', 0, 0x80000000_00000000n, 8],
    ['32 bits across the halves at +5', 5, 0x800000n, 4],
  ])('10.5.1.3: Enable is heard, set and cleared, by %s', (_, offset, value, size) => {
    const { config, ats, heard } = made()
    config.write(AT + offset, value, size)
    expect(ats.enabled).toBe(true)
    expect(config.read(AT + 6, 2)).toBe(0x8000n)
    config.write(AT + offset, 0n, size)
    expect(ats.enabled).toBe(false)
    expect(heard).toEqual([
      [true, 0],
      [false, 0],
    ])
  })

  it('a change of STU is heard like one of Enable, and writing the same again is not', () => {
    const { config, heard } = made()
    config.write(AT + 6, 0x0005n, 2)
    config.write(AT + 6, 0x8005n, 2)
    config.write(AT + 6, 0x8005n, 2)
    config.write(AT + 6, 0x1fn, 1)
    config.write(AT + 4, 0xffffn, 2)
    expect(heard).toEqual([
      [false, 5],
      [true, 5],
      [true, 31],
    ])
  })

  it.each(['conventional', 'function'] as const)(
    '10.5.1.3: a %s reset clears both, and is heard',
    (kind) => {
      const { config, ats, heard } = made()
      config.write(AT + 6, 0x8003n, 2)
      config.reset(kind)
      expect(ats.enabled).toBe(false)
      expect(ats.stu).toBe(0)
      expect(config.read(AT + 6, 2)).toBe(0n)
      expect(heard.at(-1)).toEqual([false, 0])
      config.reset(kind)
      expect(heard).toHaveLength(2)
    },
  )

  it('whatever is written, the last call is what the register says', () => {
    fc.assert(
      fc.property(accesses(12, 20), (list) => {
        const { config, ats, heard } = made()
        for (const { offset, value, size } of list.filter((access) => access.size < 8)) {
          const before = heard.length
          const was = config.read(AT + 6, 2)
          config.write(AT + offset, value, size)
          expect(heard.length - before).toBe(config.read(AT + 6, 2) === was ? 0 : 1)
        }
        const control = Number(config.read(AT + 6, 2))
        expect(ats.enabled).toBe((control & 0x8000) !== 0)
        expect(ats.stu).toBe(control & 0x1f)
        if (heard.length > 0) expect(heard.at(-1)).toEqual([ats.enabled, ats.stu])
      }),
      { numRuns: 500 },
    )
  })
})

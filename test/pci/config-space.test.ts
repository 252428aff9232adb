import { describe, expect, it } from 'vitest'
import fc from 'fast-check'
import type { Capability } from '../../lib/pci/capabilities'
import { ConfigSpace } from '../../lib/pci/config-space'
import { constant, register } from '../../lib/pci/config-register'
import { CONFIG_SPACE_BYTES, bridgeHeader, endpointHeader } from '../../lib/pci/header'
import type { Bar } from '../../lib/pci/header'
import { accesses, capabilityList, extendedList } from './support'

const IDENTITY = {
  vendor: 0x1af4,
  device: 0x1041,
  revision: 1,
  classCode: 0x020000,
  subsystemVendor: 0x1af4,
  subsystem: 0x1100,
}
const COMMAND = 4
const STATUS = 6

function endpoint(bars: readonly Bar[] = [], capabilities: readonly Capability[] = []) {
  return new ConfigSpace(endpointHeader({ ...IDENTITY, bars }), capabilities)
}

/** A capability with one word that the guest may write. */
function scratch(name: string, id: number, bytes: number, version?: number): Capability {
  const registers = [register('word', 4, [{ name: 'w', from: 0, to: 31, access: 'writable' }])]
  return { name, id, bytes, registers, ...(version === undefined ? {} : { version }) }
}

describe('the type 0 header (PCIe 5.0 7.5.1.2)', () => {
  it('identifies the function', () => {
    const config = endpoint()
    expect(config.read(0, 4)).toBe(0x10411af4n)
    expect(config.read(8, 4)).toBe(0x02000001n)
    expect(config.read(0x0e, 1)).toBe(0n)
    expect(config.read(0x2c, 4)).toBe(0x11001af4n)
  })

  it('is read in any width', () => {
    const config = endpoint()
    expect([0, 1, 2, 3].map((at) => config.read(at, 1))).toEqual([0xf4n, 0x1an, 0x41n, 0x10n])
    expect(config.read(2, 2)).toBe(0x1041n)
    expect(config.read(0, 8)).toBe((config.read(4, 4) << 32n) | 0x10411af4n)
  })

  it('lets the guest write what it may, and nothing else', () => {
    const config = endpoint()
    for (let at = 0; at < CONFIG_SPACE_BYTES; at += 4) config.write(at, 0xffffffffn, 4)
    expect(config.read(0, 4)).toBe(0x10411af4n)
    expect(config.read(COMMAND, 2)).toBe(0x0546n)
    expect(config.read(0x0c, 4)).toBe(0xffn)
    expect(config.read(0x3c, 4)).toBe(0xffn)
    for (let at = 0x40; at < CONFIG_SPACE_BYTES; at += 4) expect(config.read(at, 4)).toBe(0n)
  })

  it('7.5.1.1.4: an error bit of Status is cleared by writing 1 to it, and only by that', () => {
    const config = endpoint()
    config.set('command', config.get('command') | 0x20000000n)
    config.write(STATUS, 0n, 2)
    expect(config.read(STATUS, 2)).toBe(0x2010n)
    config.write(STATUS, 0x2000n, 2)
    expect(config.read(STATUS, 2)).toBe(0x0010n)
  })

  it('a write to one byte of a register leaves the others', () => {
    const config = endpoint()
    config.write(COMMAND, 0x0406n, 2)
    config.write(COMMAND + 1, 0n, 1)
    expect(config.read(COMMAND, 2)).toBe(0x0006n)
    expect(config.busMaster).toBe(true)
    expect(config.memorySpace).toBe(true)
    expect(config.interruptDisable).toBe(false)
  })

  it('a write of eight bytes is two of four', () => {
    const config = endpoint([{ index: 0, bytes: 0x1000, kind: 'memory64' }])
    config.write(0x10, 0x0000_0012_3456_7000n, 8)
    expect(config.barAddress(0)).toBe(0x12_3456_7000n)
  })

  it.each([
    [4096, 4],
    [4094, 4],
    [-1, 1],
    [0, 3],
    [0, 16],
    [Number.NaN, 4],
  ])('offset %d, size %d: reads all ones or nothing, and writes nothing', (offset, size) => {
    const config = endpoint()
    const before = snapshot(config)
    config.write(offset, 0xffffffffn, size)
    const ones = [1, 2, 4, 8].includes(size) ? (1n << BigInt(8 * size)) - 1n : 0n
    expect(config.read(offset, size)).toBe(ones)
    expect(snapshot(config)).toEqual(before)
  })
})

describe('base address registers (PCIe 5.0 7.5.1.2.1)', () => {
  it('tell their size to software that writes all ones', () => {
    const config = endpoint([
      { index: 0, bytes: 0x8000, kind: 'memory64', prefetchable: true },
      { index: 2, bytes: 16, kind: 'memory32' },
      { index: 5, bytes: 2 ** 31, kind: 'memory32' },
    ])
    for (let at = 0x10; at < 0x28; at += 4) config.write(at, 0xffffffffn, 4)
    expect([0x10, 0x14, 0x18, 0x1c, 0x20, 0x24].map((at) => config.read(at, 4))).toEqual([
      0xffff800cn,
      0xffffffffn,
      0xfffffff0n,
      0n,
      0n,
      0x80000000n,
    ])
  })

  it('hold the address without the flags', () => {
    const config = endpoint([{ index: 4, bytes: 2 ** 40, kind: 'memory64' }])
    config.write(0x20, 0xffffffffn, 4)
    config.write(0x24, 0x12345n, 4)
    expect(config.barAddress(4)).toBe(0x12300_0000_0000n)
    expect(config.read(0x20, 1)).toBe(4n)
  })

  it.each<[string, Bar]>([
    ['an index of 6', { index: 6, bytes: 16, kind: 'memory32' }],
    ['64 bits at index 5', { index: 5, bytes: 16, kind: 'memory64' }],
    ['8 bytes', { index: 0, bytes: 8, kind: 'memory32' }],
    ['24 bytes', { index: 0, bytes: 24, kind: 'memory32' }],
    ['4 GiB in 32 bits', { index: 0, bytes: 2 ** 32, kind: 'memory32' }],
  ])('cannot have %s', (_, bar) => {
    expect(() => endpoint([bar])).toThrow(RangeError)
  })

  it('cannot overlap', () => {
    const bars: Bar[] = [
      { index: 0, bytes: 16, kind: 'memory64' },
      { index: 1, bytes: 16, kind: 'memory32' },
    ]
    expect(() => endpoint(bars)).toThrow(RangeError)
  })
})

describe('the type 1 header (PCIe 5.0 7.5.1.3)', () => {
  it('says that it is a bridge, with windows for memory alone', () => {
    const config = new ConfigSpace(bridgeHeader(IDENTITY))
    for (let at = 0x10; at < 0x40; at += 4) config.write(at, 0xffffffffn, 4)
    expect(config.read(0x0e, 1)).toBe(1n)
    expect(config.read(0x10, 8)).toBe(0n)
    expect(config.read(0x18, 4)).toBe(0x00ffffffn)
    expect(config.read(0x1c, 4)).toBe(0n)
    expect(config.read(0x20, 4)).toBe(0xfff0fff0n)
    expect(config.read(0x24, 4)).toBe(0xfff1fff1n)
    expect(config.read(0x28, 8)).toBe(0xffffffffffffffffn)
    expect(config.read(0x30, 4)).toBe(0n)
    expect(config.read(0x3c, 4)).toBe(0x004300ffn)
  })
})

describe('capability lists', () => {
  const capabilities = [
    scratch('a', 0x10, 60),
    scratch('b', 0x0f, 8, 1),
    scratch('c', 0x11, 10),
    scratch('d', 0x23, 12, 3),
    scratch('e', 0x09, 8),
  ]

  it('7.5.1.1.11: link standard capabilities from 0x34 on, in their order, aligned', () => {
    const config = endpoint([], capabilities)
    expect(config.read(STATUS, 1)).toBe(0x10n)
    expect(capabilityList(config)).toEqual([
      { id: 0x10, offset: 0x40 },
      { id: 0x11, offset: 0x7c },
      { id: 0x09, offset: 0x88 },
    ])
  })

  it('7.6.3: link extended capabilities from 0x100 on, with their versions', () => {
    expect(extendedList(endpoint([], capabilities))).toEqual([
      { id: 0x0f, version: 1, offset: 0x100 },
      { id: 0x23, version: 3, offset: 0x108 },
    ])
  })

  it('are empty where there is none', () => {
    expect(capabilityList(endpoint())).toEqual([])
    expect(extendedList(endpoint())).toEqual([])
  })

  it('cannot be unlinked by the guest', () => {
    const config = endpoint([], capabilities)
    const before = [capabilityList(config), extendedList(config)]
    for (let at = 0; at < CONFIG_SPACE_BYTES; at += 4) config.write(at, 0xffffffffn, 4)
    for (let at = 0; at < CONFIG_SPACE_BYTES; at += 4) config.write(at, 0n, 4)
    expect([capabilityList(config), extendedList(config)]).toEqual(before)
  })

  it.each<[string, Capability[]]>([
    ['do not fit', [scratch('a', 1, 0x80), scratch('b', 1, 0x44)]],
    ['have one name', [scratch('a', 1, 8), scratch('a', 2, 8)]],
    ['have a register outside', [scratch('a', 1, 4)]],
    ['do not fit the extended space', [scratch('a', 1, 0xf04, 1)]],
  ])('are refused where they %s', (_, list) => {
    expect(() => endpoint([], list)).toThrow(RangeError)
  })

  it('tell a capability of accesses to its registers, by its own names', () => {
    const heard: string[] = []
    const capability: Capability = {
      name: 'x',
      id: 9,
      bytes: 12,
      registers: [...scratch('x', 9, 12).registers, constant('fixed', 8, 7)],
      attach: (own) => heard.push(`attach ${own.offset} ${own.get('fixed')}`),
      reading: (name) => heard.push(`reading ${name}`),
      written: (name) => heard.push(`written ${name}`),
      reset: () => heard.push('reset'),
    }
    const config = endpoint([], [capability])
    config.read(0x47, 2)
    config.write(0x44, 0n, 1)
    config.write(0x48, 1n, 4)
    config.reset('conventional')
    config.read(0x4c, 4)
    expect(heard).toEqual([
      'attach 64 7',
      'reading word',
      'reading fixed',
      'written word',
      'written fixed',
      'reset',
    ])
  })
})

describe('changes and resets', () => {
  it('tell the names of registers that a write has changed', () => {
    const config = endpoint([{ index: 0, bytes: 16, kind: 'memory32' }])
    const heard: string[] = []
    const subscription = config.onChange((name) => heard.push(name))
    config.write(COMMAND, 4n, 2)
    config.write(COMMAND, 4n, 2)
    config.write(0x10, 0x1000n, 4)
    config.write(0, 0xffffffffn, 4)
    config.reset('conventional')
    subscription[Symbol.dispose]()
    config.write(COMMAND, 2n, 2)
    expect(heard).toEqual(['command', 'bar0', 'command', 'bar0'])
  })

  it('6.6.2: a function level reset keeps sticky bits, a conventional one does not', () => {
    const fields = [
      { name: 'kept', from: 0, to: 3, access: 'writable', sticky: true, reset: 1 },
      { name: 'lost', from: 4, to: 7, access: 'writable', reset: 2 },
    ] as const
    const capability = { name: 'x', id: 1, bytes: 8, registers: [register('r', 4, fields)] }
    const config = endpoint([], [capability])
    config.write(0x44, 0xffn, 1)
    config.reset('function')
    expect(config.read(0x44, 1)).toBe(0x2fn)
    config.reset('conventional')
    expect(config.read(0x44, 1)).toBe(0x21n)
  })

  it('any sequence of accesses leaves what is read-only, and resets to the beginning', () => {
    const make = () =>
      endpoint(
        [{ index: 0, bytes: 0x8000, kind: 'memory64' }],
        [scratch('a', 0x10, 60), scratch('b', 0x0f, 8, 1)],
      )
    const fresh = snapshot(make())
    fc.assert(
      fc.property(accesses(CONFIG_SPACE_BYTES + 8, 40), (list) => {
        const config = make()
        for (const { offset, size, value, write } of list) {
          if (write) config.write(offset, value, size)
          else expect(config.read(offset, size) >> BigInt(8 * size)).toBe(0n)
        }
        expect(config.read(0, 4)).toBe(0x10411af4n)
        expect(capabilityList(config)).toEqual([{ id: 0x10, offset: 0x40 }])
        config.reset('conventional')
        expect(snapshot(config)).toEqual(fresh)
      }),
      { numRuns: 200 },
    )
  })
})

function snapshot(config: ConfigSpace): bigint[] {
  return Array.from({ length: CONFIG_SPACE_BYTES / 8 }, (_, i) => config.read(8 * i, 8))
}

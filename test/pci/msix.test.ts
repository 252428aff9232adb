import { describe, expect, it } from 'vitest'
import fc from 'fast-check'
import { ConfigSpace } from '../../lib/pci/config-space'
import { endpointHeader } from '../../lib/pci/header'
import { Msix } from '../../lib/pci/msix'
import type { Message } from '../../lib/pci/msix'
import { accesses, find } from './support'

const ENABLE = 0x8000n
const FUNCTION_MASK = 0x4000n

function made(vectors = 3) {
  const msix = new Msix({ vectors, bar: 1, tableOffset: 0x4000, pendingOffset: 0x5000 })
  const header = endpointHeader({
    vendor: 1,
    device: 2,
    classCode: 0,
    subsystemVendor: 1,
    subsystem: 1,
  })
  const config = new ConfigSpace(header, [msix])
  const at = find(config, 0x11)
  const sent: [number, Message][] = []
  msix.onMessage((message, vector) => sent.push([vector, message]))
  return {
    msix,
    config,
    at,
    sent,
    control: (value: bigint) => {
      config.write(at + 2, value, 2)
    },
    mask: (vector: number, masked: boolean) => {
      msix.table.write(16 * vector + 12, BigInt(masked), 4)
    },
  }
}

describe('the MSI-X capability (PCIe 5.0 7.7.2)', () => {
  it('7.7.2.2: the table size is one less than the number of vectors', () => {
    const { config, at } = made(3)
    expect(config.read(at + 2, 2)).toBe(2n)
    expect(made(2048).config.read(at + 2, 2)).toBe(0x7ffn)
  })

  it('7.7.2.3: says in which BAR and where the structures are', () => {
    const { config, at } = made()
    expect(config.read(at + 4, 4)).toBe(0x4001n)
    expect(config.read(at + 8, 4)).toBe(0x5001n)
  })

  it('lets the guest write Enable and Function Mask alone', () => {
    const { config, at } = made()
    for (let i = 0; i < 12; i += 4) config.write(at + i, 0xffffffffn, 4)
    expect(config.read(at, 4)).toBe(0xc0020011n)
    expect(config.read(at + 4, 8)).toBe(0x0000500100004001n)
  })

  it.each([
    ['no vector', { vectors: 0 }],
    ['2049 vectors', { vectors: 2049 }],
    ['BAR 6', { bar: 6 }],
    ['a table at 4', { tableOffset: 4 }],
    ['pending bits at -8', { pendingOffset: -8 }],
  ])('cannot have %s', (_, wrong) => {
    const options = { vectors: 1, bar: 0, tableOffset: 0, pendingOffset: 0x800 }
    expect(() => new Msix({ ...options, ...wrong })).toThrow(RangeError)
  })
})

describe('the table (PCIe 5.0 7.7.2.5 to 7.7.2.8)', () => {
  it('is masked after a reset', () => {
    const { msix } = made()
    expect([0, 16, 32].map((at) => msix.table.read(at + 12, 4))).toEqual([1n, 1n, 1n])
  })

  it('is read and written in 4 and 8 bytes; the reserved bits stay 0', () => {
    const { msix } = made()
    msix.table.write(16, 0x1_fee0_0fffn, 8)
    msix.table.write(24, 0xffffffffffffffffn, 8)
    expect(msix.table.read(16, 4)).toBe(0xfee00ffcn)
    expect(msix.table.read(20, 4)).toBe(1n)
    expect(msix.table.read(24, 8)).toBe(0x00000001_ffffffffn)
    expect(msix.table.read(0, 8)).toBe(0n)
  })

  it.each([
    [0, 1],
    [0, 2],
    [2, 4],
    [4, 8],
    [48, 4],
    [-16, 4],
  ])('does nothing at offset %d with size %d', (offset, size) => {
    const { msix } = made()
    msix.table.write(offset, 0xffffffffn, size)
    expect(msix.table.read(offset, size)).toBe(0n)
    expect(msix.table.read(0, 8)).toBe(0n)
  })
})

describe('an interrupt (PCIe 5.0 6.1.4)', () => {
  it('is a message of the vector, as the guest has written it', () => {
    const { msix, sent, control, mask } = made()
    msix.table.write(16, 0x1_fee0_1000n, 8)
    msix.table.write(24, 0x4041n, 4)
    mask(1, false)
    control(ENABLE)
    expect(msix.raise(1)).toBe(true)
    expect(sent).toEqual([[1, { address: 0x1_fee0_1000n, data: 0x4041 }]])
  })

  it('is not there while MSI-X is off, nor for a vector beyond the table', () => {
    const { msix, sent, control, mask } = made()
    mask(0, false)
    expect(msix.raise(0)).toBe(false)
    control(ENABLE)
    expect(sent).toEqual([])
    expect(msix.raise(3)).toBe(false)
    expect(msix.raise(0xffff)).toBe(false)
    expect(msix.raise(-1)).toBe(false)
    expect(sent).toEqual([])
  })

  it('6.1.4.5: is pending while its vector is masked, and then sent once', () => {
    const { msix, sent, control, mask } = made()
    control(ENABLE)
    msix.raise(2)
    msix.raise(2)
    expect(sent).toEqual([])
    expect(msix.pendingBits.read(0, 8)).toBe(4n)
    mask(2, false)
    expect(sent.map(([vector]) => vector)).toEqual([2])
    expect(msix.pendingBits.read(0, 8)).toBe(0n)
    mask(2, true)
    mask(2, false)
    expect(sent).toHaveLength(1)
  })

  it('6.1.4.5: is pending while the function is masked', () => {
    const { msix, sent, control, mask } = made()
    mask(0, false)
    mask(1, false)
    control(ENABLE | FUNCTION_MASK)
    msix.raise(0)
    msix.raise(1)
    expect(sent).toEqual([])
    expect(msix.pendingBits.read(0, 4)).toBe(3n)
    control(ENABLE)
    expect(sent.map(([vector]) => vector)).toEqual([0, 1])
  })

  it('is pending while the function may not write memory', () => {
    const { msix, sent, control, mask } = made()
    mask(0, false)
    control(ENABLE)
    msix.hold(true)
    msix.raise(0)
    expect(sent).toEqual([])
    msix.hold(false)
    expect(sent).toHaveLength(1)
  })

  it('has a route exactly while it would be sent at once', () => {
    const { msix, control, mask } = made()
    const routed = (): boolean => msix.route(1) !== undefined
    msix.table.write(16, 0xfee00000n, 8)
    msix.table.write(16 + 8, 0x31n, 4)
    mask(1, false)
    expect(routed()).toBe(false)
    control(ENABLE)
    expect(msix.route(1)).toEqual({ address: 0xfee00000n, data: 0x31 })
    control(ENABLE | FUNCTION_MASK)
    expect(routed()).toBe(false)
    control(ENABLE)
    msix.hold(true)
    expect(routed()).toBe(false)
    msix.hold(false)
    mask(1, true)
    expect(routed()).toBe(false)
    expect(msix.route(3)).toBeUndefined()
    expect(msix.route(0xffff)).toBeUndefined()
  })

  it('is forgotten by a reset, with the addresses', () => {
    const { msix, config, sent, control, mask } = made()
    msix.table.write(0, 0xfee00000n, 8)
    control(ENABLE)
    msix.raise(0)
    config.reset('function')
    expect(msix.enabled).toBe(false)
    control(ENABLE)
    mask(0, false)
    expect(sent).toEqual([])
    expect(msix.table.read(0, 8)).toBe(0n)
  })

  it('tells when messages are switched on and off', () => {
    const { msix, control, config } = made()
    const heard: boolean[] = []
    msix.onEnable((enabled) => heard.push(enabled))
    control(ENABLE)
    control(ENABLE | FUNCTION_MASK)
    control(0n)
    control(ENABLE)
    config.reset('conventional')
    expect(heard).toEqual([true, false, true, false])
  })

  it('the pending bits cannot be written', () => {
    const { msix, control } = made()
    control(ENABLE)
    msix.raise(1)
    msix.pendingBits.write(0, 0n, 8)
    expect(msix.pendingBits.read(0, 8)).toBe(2n)
    expect(msix.pendingBits.read(0, 2)).toBe(0n)
    expect(msix.pendingBits.read(8, 8)).toBe(0n)
  })

  it('of any vector is sent exactly once for each raise between masks, or still pending', () => {
    const steps = fc.array(
      fc.record({
        step: fc.constantFrom('raise', 'mask', 'unmask', 'mask all', 'unmask all'),
        vector: fc.nat({ max: 2 }),
      }),
    )
    fc.assert(
      fc.property(steps, (list) => {
        const { msix, sent, control, mask } = made()
        control(ENABLE)
        const masked = [true, true, true]
        const pending = [false, false, false]
        let all = false
        const expected: number[] = []
        for (const { step, vector } of list) {
          if (step === 'raise') {
            msix.raise(vector)
            pending[vector] = true
          } else if (step === 'mask' || step === 'unmask') {
            mask(vector, step === 'mask')
            masked[vector] = step === 'mask'
          } else {
            all = step === 'mask all'
            control(all ? ENABLE | FUNCTION_MASK : ENABLE)
          }
          for (let v = 0; v < 3; v++) {
            if (!pending[v] || masked[v] || all) continue
            pending[v] = false
            expected.push(v)
          }
        }
        expect(sent.map(([v]) => v)).toEqual(expected)
        const bits = pending.reduce((sum, p, v) => sum | (p ? 1 << v : 0), 0)
        expect(msix.pendingBits.read(0, 4)).toBe(BigInt(bits))
      }),
      { numRuns: 300 },
    )
  })

  it('survives any access to the table and the pending bits', () => {
    fc.assert(
      fc.property(accesses(64, 30), (list) => {
        const { msix, control } = made()
        control(ENABLE)
        for (const { offset, size, value, write } of list) {
          const region = (offset & 64) === 0 ? msix.table : msix.pendingBits
          if (write) region.write(offset, value, size)
          else expect(region.read(offset, size) >> BigInt(8 * size)).toBe(0n)
          msix.raise(offset % 4)
        }
        for (const at of [0, 16, 32]) expect(msix.table.read(at, 4) & 3n).toBe(0n)
      }),
      { numRuns: 300 },
    )
  })
})

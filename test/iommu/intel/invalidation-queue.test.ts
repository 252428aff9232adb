/** The queue itself: registers, order, errors and waits (VT-d 5.10 6.5.2, 11.4.9). */
import { describe, expect, it } from 'vitest'
import type { Interrupt } from '../../../lib/iommu/intel/event-message'
import { AT, GCMD, Guest, REG, ScalableGuest } from './guest'

const IQE = 0x10
const QIES = 0x04000000

const GLOBAL_IOTLB = [0x12n, 0n] as const
const DOMAIN_IOTLB = (domain: number) => [0x22n | (BigInt(domain) << 16n), 0n] as const
const WAIT = 0x25n
const status = (data: bigint) => [(data << 32n) | WAIT, BigInt(AT.status)] as const

/** Why the queue stopped: IQERCD.IQEI (11.4.9.9). */
const cause = (guest: Guest): number => guest.read('IQERCD', 8) & 15

describe('the queue', () => {
  it('does all that is between head and tail before the write returns', () => {
    const guest = new Guest().start()
    guest.submit(GLOBAL_IOTLB, GLOBAL_IOTLB, status(7n))
    expect(guest.memory.u32(AT.status)).toBe(7)
    expect(guest.head).toBe(3)
  })

  it('wraps around its end', () => {
    const guest = new Guest().start()
    guest.submit(...Array.from({ length: 250 }, () => GLOBAL_IOTLB))
    guest.submit(...Array.from({ length: 10 }, () => GLOBAL_IOTLB), status(9n))
    expect([guest.head, guest.memory.u32(AT.status)]).toEqual([5, 9])
  })

  it('has 2^(QS + 8) descriptors, and a tail beyond them is an error', () => {
    const guest = new Guest().start({ queue: false })
    guest.write('IQA', BigInt(AT.queue) | 1n, 8)
    guest.command(GCMD.QIE)
    guest.write('IQT', 511 * 16)
    expect([guest.read('FSTS'), cause(guest)]).toEqual([IQE, 3])
    guest.write('IQT', 512 * 16)
    guest.write('FSTS', IQE)
    expect([guest.read('FSTS'), cause(guest)]).toEqual([IQE, 1])
  })

  it('takes a tail that was set before it was switched on', () => {
    const guest = new Guest().start({ queue: false })
    guest.submit(GLOBAL_IOTLB, status(3n))
    expect(guest.memory.u32(AT.status)).toBe(0)
    guest.write('IQA', BigInt(AT.queue), 8)
    guest.command(GCMD.QIE)
    expect([guest.memory.u32(AT.status), guest.head]).toEqual([3, 2])
  })

  it('uses the base that IQA had when it was switched on', () => {
    const guest = new Guest().start()
    guest.write('IQA', 0x40000n, 8)
    expect(guest.wait()).toBe(true)
    expect(guest.read('IQA', 8)).toBe(0x40000)
  })

  it('is switched off when it is empty; the head is 0 then, and the tail stays', () => {
    const guest = new Guest().start()
    guest.wait()
    guest.command(0, GCMD.QIE)
    expect(guest.read('GSTS') & QIES).toBe(0)
    expect([guest.head, guest.read('IQT')]).toEqual([0, 16])
    guest.memory.setU32(AT.status, 0)
    guest.write('IQT', 0)
    guest.write('IQT', 16)
    expect(guest.memory.u32(AT.status)).toBe(0)
  })

  it('is switched off before anything was submitted', () => {
    const guest = new Guest().start()
    guest.command(0, GCMD.QIE)
    expect(guest.read('GSTS') & QIES).toBe(0)
  })

  it('is not switched off while a descriptor is left', () => {
    const guest = new Guest().start()
    guest.submit([0n, 0n])
    guest.command(0, GCMD.QIE)
    expect(guest.read('GSTS') & QIES).toBe(QIES)
  })

  it('takes writes of IQT in any part and size', () => {
    const guest = new Guest().start()
    for (let i = 0; i < 20; i++) {
      guest.memory.setU64(AT.queue + i * 16, status(BigInt(i + 1))[0])
      guest.memory.setU64(AT.queue + i * 16 + 8, BigInt(AT.status))
    }
    guest.iommu.write(REG.IQT, 0x10n, 1)
    expect(guest.memory.u32(AT.status)).toBe(1)
    guest.iommu.write(REG.IQT + 1, 1n, 1)
    expect(guest.memory.u32(AT.status)).toBe(17)
    guest.iommu.write(REG.IQT + 4, 0n, 4)
    expect(guest.head).toBe(17)
  })
})

describe('an invalidation queue error (6.5.2.11)', () => {
  it('stops at the descriptor; a new tail is not enough, clearing IQE goes on', () => {
    const guest = new Guest().start()
    guest.submit(GLOBAL_IOTLB, [0n, 0n], status(5n))
    expect([guest.head, guest.read('FSTS'), guest.memory.u32(AT.status)]).toEqual([1, IQE, 0])
    guest.memory.setU64(AT.queue + 16, 0x12n)
    guest.write('IQT', 3 * 16)
    expect(guest.head).toBe(1)
    expect(guest.memory.u32(AT.status)).toBe(0)
    guest.write('FSTS', IQE)
    expect([guest.head, guest.memory.u32(AT.status)]).toEqual([3, 5])
  })

  it('is also a queue that is not memory', () => {
    const guest = new Guest().start({ queue: false })
    guest.write('IQA', 0x7f_0000_0000n, 8)
    guest.command(GCMD.QIE)
    guest.submit(GLOBAL_IOTLB)
    expect([guest.read('FSTS'), cause(guest)]).toEqual([IQE, 2])
  })

  it('is also a status that is not memory: the wait is not done', () => {
    const guest = new Guest().start()
    guest.submit([(5n << 32n) | WAIT, 0x7f_0000_0000n])
    expect([guest.head, cause(guest)]).toEqual([0, 2])
  })

  const low = (bits: readonly number[]) => bits.map((bit) => [1n << BigInt(bit), 0n] as const)
  const high = (bits: readonly number[]) => bits.map((bit) => [0n, 1n << BigInt(bit)] as const)
  const span = (from: number, to: number) =>
    Array.from({ length: to - from + 1 }, (_, i) => from + i)
  const KINDS: readonly [string, bigint, readonly (readonly [bigint, bigint])[]][] = [
    ['context', 0x11n, [...low([6, 7, 8, ...span(12, 15), ...span(50, 63)]), ...high(span(0, 63))]],
    ['IOTLB', 0x12n, [...low([8, ...span(12, 15), ...span(32, 63)]), ...high(span(7, 11))]],
    [
      'device TLB',
      0x03n,
      [
        ...low([...span(4, 8), ...span(12, 15), ...span(21, 31), ...span(48, 63)]),
        ...high(span(1, 11)),
      ],
    ],
    [
      'interrupt entry',
      0x04n,
      [...low([...span(5, 8), ...span(12, 26), ...span(48, 63)]), ...high(span(0, 63))],
    ],
    ['wait', 0x45n, [...low([7, 8, ...span(12, 31)]), ...high([0, 1])]],
  ]

  describe.each(KINDS)('a %s descriptor', (_, descriptor, reserved) => {
    it('is done without reserved bits', () => {
      const guest = new Guest().start()
      guest.submit([descriptor, 0n])
      expect([guest.head, guest.read('FSTS')]).toEqual([1, 0])
    })

    it(`is refused for each of ${reserved.length} reserved bits`, () => {
      for (const [low, high] of reserved) {
        const guest = new Guest().start()
        guest.submit([descriptor | low, high])
        const bits = `${low.toString(16)} ${high.toString(16)}`
        expect([bits, guest.head, guest.read('FSTS'), cause(guest)]).toEqual([bits, 0, IQE, 4])
      }
    })

    it('is another type with any of bits 11:9', () => {
      for (const bit of [9n, 10n, 11n]) {
        const guest = new Guest().start()
        guest.submit([descriptor | (1n << bit), 0n])
        expect(cause(guest)).toBe(3)
      }
    })
  })

  it.each([0, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15])('is type %i in legacy mode', (type) => {
    const guest = new Guest().start()
    guest.submit([BigInt(type), 0n])
    expect([guest.read('FSTS'), cause(guest)]).toEqual([IQE, 3])
  })

  it.each([
    ['context', 0x01n],
    ['IOTLB', 0x02n],
  ])('is the reserved granularity of a %s descriptor', (_, descriptor) => {
    const guest = new Guest().start()
    guest.submit([descriptor, 0n])
    expect(cause(guest)).toBe(4)
  })

  it('is an address mask above CAP.MAMV', () => {
    const guest = new Guest().start()
    guest.submit([0x32n, 18n])
    expect(guest.read('FSTS')).toBe(0)
    guest.submit([0x32n, 19n])
    expect(cause(guest)).toBe(4)
  })
})

describe('a wait descriptor (6.5.2.9)', () => {
  function armed(masked = false): { guest: Guest; sent: Interrupt[] } {
    const guest = new Guest().start()
    const sent: Interrupt[] = []
    guest.iommu.on('interrupt', (interrupt) => sent.push(interrupt))
    guest.write('IEDATA', 0x31)
    guest.write('IEADDR', 0xfee02000)
    guest.write('IEUADDR', 2)
    guest.write('IECTL', masked ? 0x80000000 : 0)
    return { guest, sent }
  }

  it('writes 32 bits of status, and only those', () => {
    const guest = new Guest().start()
    guest.memory.setU64(AT.status - 4, 0xaaaaaaaa_aaaaaaaan)
    guest.memory.setU64(AT.status + 4, 0xbbbbbbbb_bbbbbbbbn)
    guest.submit(status(0xdeadbeefn))
    const words = [-4, 0, 4].map((offset) => guest.memory.u32(AT.status + offset))
    expect(words).toEqual([0xaaaaaaaa, 0xdeadbeef, 0xbbbbbbbb])
  })

  it('with IF sends the completion event and sets IWC', () => {
    const { guest, sent } = armed()
    guest.submit([0x15n, 0n])
    expect(sent).toEqual([{ address: 0x2_fee02000n, data: 0x31 }])
    expect([guest.read('ICS'), guest.read('IECTL')]).toEqual([1, 0])
  })

  it('with SW and IF does both, the status first', () => {
    const { guest, sent } = armed()
    const seen: number[] = []
    guest.iommu.on('interrupt', () => seen.push(guest.memory.u32(AT.status)))
    guest.submit([(6n << 32n) | 0x35n, BigInt(AT.status)])
    expect([sent.length, seen]).toEqual([1, [6]])
  })

  it('with FN alone, or with nothing, only orders', () => {
    const { guest, sent } = armed()
    guest.submit([0x45n, 0n], [0x05n, 0n])
    expect([guest.head, guest.read('FSTS'), sent]).toEqual([2, 0, []])
  })

  it('sends no second event while IWC is set, and one again after it was cleared', () => {
    const { guest, sent } = armed()
    guest.submit([0x15n, 0n], [0x15n, 0n])
    expect(sent).toHaveLength(1)
    guest.write('ICS', 1)
    guest.submit([0x15n, 0n])
    expect(sent).toHaveLength(2)
  })

  it('waits in IP while masked; unmasking sends it, clearing IWC first takes it back', () => {
    const { guest, sent } = armed(true)
    guest.submit([0x15n, 0n])
    expect([sent.length, guest.read('IECTL')]).toEqual([0, 0xc0000000])
    guest.write('IECTL', 0)
    expect(sent).toHaveLength(1)
    guest.write('ICS', 1)
    guest.write('IECTL', 0x80000000)
    guest.submit([0x15n, 0n])
    guest.write('ICS', 1)
    guest.write('IECTL', 0)
    expect(sent).toHaveLength(1)
  })
})

describe('completion comes last', () => {
  it('the status is written and the head moves only after the notifier returned', () => {
    const guest = new Guest().start()
    guest.map(0x1000n, 0x5000n)
    guest.code(0x1000n)
    const during: number[][] = []
    guest.space.notify({
      invalidate: () => during.push([guest.memory.u32(AT.status), guest.head]),
    })
    guest.submit(DOMAIN_IOTLB(7), status(4n))
    expect(during).toEqual([[0, 0]])
    expect([guest.memory.u32(AT.status), guest.head]).toEqual([4, 2])
  })

  it('a notifier that throws stops the queue at its descriptor, and all others are told', () => {
    const guest = new Guest().start()
    guest.map(0x1000n, 0x5000n)
    guest.code(0x1000n)
    const stop = guest.space.notify({
      invalidate: () => {
        throw new Error('the host refused')
      },
    })
    const heard = guest.listen()
    expect(() => {
      guest.submit(GLOBAL_IOTLB, status(4n))
    }).toThrow('the host refused')
    expect([heard.length, guest.head, guest.memory.u32(AT.status)]).toEqual([1, 0, 0])
    stop[Symbol.dispose]()
    guest.write('IQT', 2 * 16)
    expect([heard.length, guest.head, guest.memory.u32(AT.status)]).toEqual([2, 2, 4])
  })

  it('a domain whose notifier threw is told again, although all was to be taken back', () => {
    const guest = new Guest().start()
    guest.map(0x1000n, 0x5000n)
    guest.code(0x1000n)
    let refusals = 1
    let told = 0
    guest.space.notify({
      invalidate: () => {
        told++
        if (refusals-- > 0) throw new Error('the host refused')
      },
    })
    expect(() => {
      guest.submit(DOMAIN_IOTLB(7), status(4n))
    }).toThrow('the host refused')
    guest.write('IQT', 2 * 16)
    expect([told, guest.head, guest.memory.u32(AT.status)]).toEqual([2, 2, 4])
  })

  it('a notifier that resets the unit ends the run, and the head stays 0', () => {
    const guest = new Guest().start()
    let left = 1
    guest.space.notify({
      invalidate: () => {
        if (left-- > 0) guest.iommu.reset()
      },
    })
    guest.submit(GLOBAL_IOTLB, status(4n))
    expect([guest.head, guest.memory.u32(AT.status), guest.read('GSTS')]).toEqual([0, 0, 0])
  })

  it('a tail that a notifier moves is done in the same run, in order', () => {
    const guest = new Guest().start()
    const order: number[] = []
    let more = true
    guest.space.notify({
      invalidate: () => {
        order.push(guest.head)
        if (more) {
          more = false
          guest.submit(GLOBAL_IOTLB, status(8n))
        }
      },
    })
    guest.submit(GLOBAL_IOTLB)
    expect(order).toEqual([0, 1])
    expect([guest.head, guest.memory.u32(AT.status)]).toEqual([3, 8])
  })
})

describe('256-bit descriptors (6.5.2, IQA.DW)', () => {
  it('are used in scalable mode; the queue has half as many', () => {
    const guest = new ScalableGuest().start()
    expect(guest.wait(9)).toBe(true)
    expect(guest.read('IQH')).toBe(32)
    guest.write('IQT', 128 * 32)
    expect([guest.read('FSTS'), cause(guest)]).toEqual([IQE, 1])
  })

  it('need an even tail', () => {
    const guest = new ScalableGuest().start()
    guest.write('IQT', 16)
    expect([guest.read('FSTS'), cause(guest)]).toEqual([IQE, 6])
  })

  it.each([2, 3])('have quadword %i reserved', (quad) => {
    const guest = new ScalableGuest().start()
    const quads = [0x12n, 0n, 0n, 0n]
    quads[quad] = 1n << 63n
    guest.put(...quads)
    guest.write('IQT', 32)
    expect([guest.read('FSTS'), cause(guest)]).toEqual([IQE, 4])
  })

  it.each([6, 7, 8])('carry type %i in scalable mode only (table 26)', (type) => {
    const guest = new ScalableGuest().start()
    const descriptor = BigInt(type) | (type === 6 ? 0x20n : 0n)
    guest.submit([descriptor, 0n])
    expect(guest.read('FSTS')).toBe(0)
    guest.write('RTADDR', BigInt(AT.root), 8)
    guest.command(GCMD.SRTP)
    expect(guest.wait()).toBe(true)
    guest.submit([descriptor, 0n])
    expect([guest.read('FSTS'), cause(guest)]).toEqual([IQE, 3])
  })

  it('are an error without ECAP.SMTS (11.4.9.3)', () => {
    const guest = new Guest().start({ queue: false })
    guest.write('IQA', BigInt(AT.queue) | (1n << 11n), 8)
    guest.command(GCMD.QIE)
    expect(guest.wait()).toBe(false)
    expect([guest.read('FSTS'), cause(guest)]).toEqual([IQE, 5])
  })

  it('are needed in scalable mode (11.4.9.9)', () => {
    const guest = new ScalableGuest().start()
    guest.command(0, GCMD.QIE)
    guest.write('IQA', BigInt(AT.queue), 8)
    guest.command(GCMD.QIE)
    guest.write('IQT', 16)
    expect([guest.read('FSTS'), cause(guest)]).toEqual([IQE, 5])
  })

  it('no descriptor is valid in a table mode that is not (table 26)', () => {
    const guest = new ScalableGuest().start()
    guest.write('RTADDR', BigInt(AT.root) | (2n << 10n), 8)
    guest.command(GCMD.SRTP)
    expect(guest.wait()).toBe(false)
    expect([guest.read('FSTS'), cause(guest)]).toEqual([IQE, 7])
  })

  it.each([
    ['a device-TLB descriptor', 0x03n],
    ['a PASID-device-TLB descriptor', 0x08n],
  ])('%s is unknown without ECAP.DT (6.5.2.5, 6.5.2.6)', (_, descriptor) => {
    const guest = new ScalableGuest({ deviceTlb: false }).start()
    guest.submit([descriptor, 0n])
    expect([guest.read('FSTS'), cause(guest)]).toEqual([IQE, 3])
  })

  it.each([
    ['PASID-IOTLB granularity 0', [0x06n, 0n]],
    ['PASID-IOTLB granularity 1', [0x16n, 0n]],
    ['PASID-IOTLB reserved bits', [0x26n | (1n << 52n), 0n]],
    ['PASID-cache granularity 2', [0x27n, 0n]],
    ['PASID-cache reserved bits', [0x37n, 1n]],
    ['PASID-device-TLB reserved bits', [0x08n, 2n]],
    ['page group response, without ECAP.PRS', [0x09n, 0n]],
  ] as const)('error: %s', (_, descriptor) => {
    const guest = new ScalableGuest().start()
    guest.submit(descriptor)
    expect(guest.read('FSTS')).toBe(IQE)
  })
})

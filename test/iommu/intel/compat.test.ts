/**
 * `compat: 'qemu'`: where QEMU 7.2 departs from the specification, it is followed; each test has
 * both ways side by side.
 */
import { describe, expect, it } from 'vitest'
import { AT, GCMD, Guest, REG, REQUESTER } from './guest'
import type { Heard } from './guest'
import type { IntelIommuOptions } from '../../../lib/iommu/intel/capabilities'

const QEMU: IntelIommuOptions = { compat: 'qemu' }
const both = <T>(ask: (options: IntelIommuOptions) => T): [spec: T, qemu: T] => [ask({}), ask(QEMU)]

const SID = BigInt(REQUESTER) << 32n

function held(options: IntelIommuOptions, ats: boolean): { guest: Guest; heard: Heard[] } {
  const guest = new Guest(options).start({ type: 1 })
  guest.iommu.setAts(REQUESTER, ats)
  guest.map(0x5000n, 0x9000n)
  guest.code(0x5000n)
  return { guest, heard: guest.listen() }
}

const ranges = (heard: Heard[]): bigint[][] => heard.map(({ first, last }) => [first, last])

describe("QEMU's way", () => {
  it('the PASID field of a legacy page fault is 0xffff, of a context fault 0', () => {
    const record = (options: IntelIommuOptions, present: number): bigint => {
      const guest = new Guest(options).start()
      guest.contextEntry(REQUESTER, { p: present })
      guest.code(0x1000n)
      return guest.iommu.read(REG.FRCD + 8, 8)
    }
    expect(both((options) => record(options, 1))).toEqual([
      0xc0000006_00000018n,
      0xc0ffff06_00000018n,
    ])
    expect(both((options) => record(options, 0))).toEqual([
      0xc0000002_00000018n,
      0xc0000002_00000018n,
    ])
  })

  it('reserved bits of a context entry are recorded in spite of FPD', () => {
    const recorded = (options: IntelIommuOptions): boolean => {
      const guest = new Guest(options).start()
      const at = AT.context + REQUESTER * 16
      guest.memory.setU64(at, guest.memory.u64(at) | 0x12n)
      guest.code(0x1000n)
      return guest.fault !== undefined
    }
    expect(both(recorded)).toEqual([false, true])
  })

  it('a context command for a domain is done as a global one', () => {
    const outcome = (options: IntelIommuOptions): [bigint, number] => {
      const guest = new Guest(options).start({ queue: false })
      guest.map(0x5000n, 0x9000n)
      guest.code(0x5000n)
      const heard = guest.listen()
      guest.write('CCMD', (1n << 63n) | (2n << 61n) | 8n, 8)
      return [(guest.iommu.read(REG.CCMD, 8) >> 59n) & 3n, Math.min(heard.length, 1)]
    }
    expect(both(outcome)).toEqual([
      [2n, 0],
      [1n, 1],
    ])
  })

  it('page-selective ranges start at the address, not at the mask', () => {
    const told = (options: IntelIommuOptions): bigint[][] => {
      const { guest, heard } = held(options, false)
      guest.submit([0x32n | (7n << 16n), 0x5000n | 2n])
      return ranges(heard)
    }
    expect(both(told)).toEqual([[[0x4000n, 0x7fffn]], [[0x5000n, 0x8fffn]]])
  })

  it('with ATS on nothing is told of contexts, root pointers or translation off', () => {
    const times = (options: IntelIommuOptions): number => {
      const { guest, heard } = held(options, true)
      guest.submit([0x11n, 0n])
      guest.command(GCMD.SRTP)
      guest.command(0, GCMD.TE)
      guest.iommu.reset()
      guest.iommu.setAts(REQUESTER, false)
      return heard.length
    }
    expect(both(times)).toEqual([5, 0])
  })

  it('with ATS off a device that became pass-through is not told', () => {
    const times = (options: IntelIommuOptions): number => {
      const { guest, heard } = held(options, false)
      guest.contextEntry(REQUESTER, { type: 2 })
      guest.submit([0x31n | SID, 0n])
      return heard.length
    }
    expect(both(times)).toEqual([1, 0])
  })

  it('one invalidation is told in two parts, around the interrupt window', () => {
    const told = (options: IntelIommuOptions): bigint[][] => {
      const { guest, heard } = held(options, true)
      guest.submit([0x03n | SID, 0x7ffffffffffff001n])
      return ranges(heard)
    }
    const last = 2n ** 64n - 1n
    expect(both(told)).toEqual([
      [[0n, last]],
      [
        [0xfef00000n, last],
        [0n, 0xfedfffffn],
      ],
    ])
  })

  it('the type of a context entry does not block a device TLB', () => {
    const code = (options: IntelIommuOptions): number => {
      const guest = new Guest(options).start({ type: 0 })
      guest.map(0x5000n, 0x9000n)
      guest.iommu.setAts(REQUESTER, true)
      return guest.code(0x5000n)
    }
    expect(both(code)).toEqual([0x0d, 0])
  })

  it('IQA reads as the queue that was switched on, with the size that was written', () => {
    const values = (options: IntelIommuOptions): bigint[] => {
      const guest = new Guest(options)
      guest.write('IQA', BigInt(AT.queue) | 1n, 8)
      const before = guest.iommu.read(REG.IQA, 8)
      guest.command(GCMD.QIE)
      guest.write('IQA', 0x40002n, 8)
      return [before, guest.iommu.read(REG.IQA, 8), guest.iommu.read(REG.IQA + 4, 4)]
    }
    expect(both(values)).toEqual([
      [0x10001n, 0x40002n, 0n],
      [1n, 0x10002n, 0n],
    ])
  })

  it('accesses below 4 bytes do nothing', () => {
    const outcome = (options: IntelIommuOptions): [bigint, number] => {
      const guest = new Guest(options)
      guest.iommu.write(REG.GCMD + 3, 0x40n, 1)
      return [guest.iommu.read(REG.VER, 1), guest.read('GSTS')]
    }
    expect(both(outcome)).toEqual([
      [0x10n, 0x40000000],
      [0n, 0],
    ])
  })

  it('upper message addresses do not exist', () => {
    const upper = (options: IntelIommuOptions): number[] => {
      const guest = new Guest(options)
      guest.write('FEUADDR', 5)
      guest.write('IEUADDR', 5)
      return [guest.read('FEUADDR'), guest.read('IEUADDR')]
    }
    expect(both(upper)).toEqual([
      [5, 5],
      [0, 0],
    ])
  })

  it('the queue is switched off only after a wait', () => {
    const off = (options: IntelIommuOptions): boolean => {
      const guest = new Guest(options).start()
      guest.submit([0x12n, 0n])
      guest.command(0, GCMD.QIE)
      return (guest.read('GSTS') & GCMD.QIE) === 0
    }
    expect(both(off)).toEqual([true, false])
  })

  it('descriptors: a wait for nothing is an error, PASID ones are ignored, IEC is not checked', () => {
    const done = (low: bigint, high = 0n) =>
      both((options) => {
        const guest = new Guest(options).start()
        guest.submit([low, high])
        return guest.read('FSTS') === 0
      })
    expect(done(0x05n)).toEqual([true, false])
    expect(done(0x45n)).toEqual([true, false])
    expect(done(0x06n)).toEqual([false, true])
    expect(done(0x07n, 5n)).toEqual([false, true])
    expect(done(0x08n)).toEqual([false, false])
    expect(done(0x04n, 1n)).toEqual([false, true])
    expect(done(0x211n)).toEqual([false, false])
  })

  it('the reason why the queue stopped has no register', () => {
    const cause = (options: IntelIommuOptions): number => {
      const guest = new Guest(options).start()
      guest.submit([0n, 0n])
      return guest.read('IQERCD')
    }
    expect(both(cause)).toEqual([3, 0])
  })

  it('a fault event that is pending stays so until FSTS is written', () => {
    const control = (options: IntelIommuOptions): number[] => {
      const guest = new Guest(options).start()
      guest.code(0x1000n)
      guest.clearFault()
      const cleared = guest.read('FECTL')
      guest.write('FSTS', 0)
      return [cleared, guest.read('FECTL')]
    }
    expect(both(control)).toEqual([
      [0x80000000, 0x80000000],
      [0xc0000000, 0x80000000],
    ])
  })

  it('a large leaf that touches the interrupt window is refused as a whole', () => {
    const code = (options: IntelIommuOptions): number => {
      const guest = new Guest(options).start()
      guest.map(0x200000n, 0xfee00000n, 3, 2)
      return guest.code(0x300000n)
    }
    expect(both(code)).toEqual([0, 0x0e])
  })

  it('a transient-mapping bit is legal in leaves of a unit with device TLBs', () => {
    const code = (options: IntelIommuOptions): number => {
      const guest = new Guest(options).start()
      guest.map(0x5000n, 0x9000n | (1n << 62n))
      return guest.code(0x5000n)
    }
    expect(both(code)).toEqual([0x0c, 0])
  })

  it('pass-through has no width', () => {
    const code = (options: IntelIommuOptions): number =>
      new Guest(options).start({ type: 2 }).code(1n << 60n)
    expect(both(code)).toEqual([4, 0])
  })
})

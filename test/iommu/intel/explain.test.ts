/** `explain`: every step of a walk in words, and nothing changed by it. */
import { describe, expect, it } from 'vitest'
import { iova } from '../../../lib/address'
import { FAULT_REASONS } from '../../../lib/iommu/intel/faults'
import { AT, Guest, REQUESTER, ScalableGuest } from './guest'

const explain = (guest: Guest, at: bigint) => guest.iommu.explain('00:03.0', iova(at))

describe('explain', () => {
  it('goes from the root entry to the leaf, with address and raw value of each', () => {
    const guest = new Guest().start({ type: 1, domain: 7 })
    const leaf = guest.map(0x12345000n, 0x5000n, 1)
    const steps = explain(guest, 0x12345678n)
    expect(steps.map(({ what }) => what)).toEqual([
      'root entry',
      'context entry',
      'second-stage level 4',
      'second-stage level 3',
      'second-stage level 2',
      'second-stage level 1',
      'translation',
    ])
    expect(steps[0]).toEqual({
      what: 'root entry',
      at: BigInt(AT.root),
      value: BigInt(AT.context) | 1n,
      means: 'P=0x1 CTP=0x2',
    })
    expect(steps[1].means).toBe(
      `P=0x1 TT=0x1 SSPTPTR=0x${(guest.tableRoot / 4096).toString(16)} AW=0x2 DID=0x7`,
    )
    expect(steps[5]).toMatchObject({ at: BigInt(leaf), value: 0x5001n, means: 'R=0x1 ADDR=0x5' })
    expect(steps[6].means).toBe(
      '00:03.0 at 0x12345678: read of 0x1000 bytes from iova 0x12345000 to gpa 0x5000',
    )
  })

  it('ends with the refusal: its code, its name, and why', () => {
    const guest = new Guest().start()
    guest.map(0x1000n, 0x5000n | (1n << 62n))
    const steps = explain(guest, 0x1000n)
    expect(steps.at(-2)?.means).toContain('TM=0x1')
    expect(steps.at(-1)?.means).toBe(
      '00:03.0 at 0x1000: fault 0xc, paging-reserved: a paging entry sets reserved bits',
    )
  })

  it('says what is not memory, and which bits are reserved', () => {
    const guest = new Guest().start()
    guest.memory.setU64(AT.root, 0x7f_0000_0001n)
    expect(explain(guest, 0x1000n).at(-2)).toEqual({
      what: 'context entry',
      at: 0x7f_0000_0180n,
      means: 'not in guest memory',
    })
    guest.memory.setU64(AT.root, 0x800n)
    expect(explain(guest, 0x1000n).at(-2)?.means).toBe('reserved bits')
    guest.memory.setU64(AT.root, 0n)
    expect(explain(guest, 0x1000n).at(-2)?.means).toBe('all zero')
  })

  it('says when the fault would not be recorded', () => {
    const guest = new Guest().start()
    guest.contextEntry(REQUESTER, { fpd: 1 })
    expect(explain(guest, 0x1000n).at(-1)?.means).toContain('not recorded, since FPD is set')
  })

  it('says that translation is off, and that the interrupt window is no memory', () => {
    const guest = new Guest()
    expect(explain(guest, 0n).map(({ means }) => means)).toEqual([
      '00:03.0 at 0x0: readwrite of 0xfee00000 bytes from iova 0x0 to gpa 0x0 (translation is off)',
    ])
    expect(explain(guest, 0xfee00000n)[0].means).toContain('no fault, interrupt-window')
  })

  it('shows pass-through as the range that it is', () => {
    const guest = new Guest().start({ type: 2 })
    expect(explain(guest, 0n).at(-1)?.means).toBe(
      '00:03.0 at 0x0: readwrite of 0xfee00000 bytes from iova 0x0 to gpa 0x0',
    )
  })

  it('goes through both stages of a nested walk', () => {
    const guest = new ScalableGuest().start({ type: 3 })
    guest.mapTables()
    guest.mapFirst(0x5000n, 0x80000000n)
    guest.map(0x80000000n, 0x700000n)
    const what = explain(guest, 0x5000n).map((step) => step.what)
    expect(what.slice(0, 4)).toEqual([
      'scalable-mode root entry',
      'scalable-mode context entry',
      'PASID directory entry',
      'PASID table entry',
    ])
    expect(what.filter((name) => name.startsWith('first-stage'))).toHaveLength(4)
    expect(what.filter((name) => name === 'second-stage level 2')).toHaveLength(5)
  })

  it('changes and records nothing: no fault, no accessed bit, nothing that an invalidation finds', () => {
    const guest = new ScalableGuest().start({ type: 1 })
    const leaf = guest.mapFirst(0x5000n, 0x9000n)
    const heard = guest.listen()
    explain(guest, 0x5000n)
    explain(guest, 0x6000n)
    expect(guest.memory.u64(leaf)).toBe(0x9007n)
    expect(guest.fault).toBeUndefined()
    guest.submit([0x22n | (7n << 16n), 0n])
    expect(heard).toEqual([])
  })

  it('has words for every fault', () => {
    for (const { words } of FAULT_REASONS) expect(words.length).toBeGreaterThan(10)
  })
})

/** Recording: registers, FSTS and the fault event (VT-d 5.10, 7.2 and 7.3). */
import { describe, expect, it } from 'vitest'
import { iova } from '../../../lib/address'
import type { Interrupt } from '../../../lib/iommu/intel/event-message'
import type { RecordedFault } from '../../../lib/iommu/intel/intel-iommu'
import { AT, Guest, REG, REQUESTER } from './guest'

const PFO = 0x01
const PPF = 0x02
const IQE = 0x10
const OTHERS = [0x0020, 0x0028, 0x0030, 0x0038]

/** Devices that all fault, since nothing is mapped for them. */
function faulting(faultRecords = 1): Guest {
  const guest = new Guest({ faultRecords }).start()
  for (const source of OTHERS) guest.contextEntry(source)
  return guest
}

function fail(guest: Guest, source = REQUESTER, at = 0x1000n): void {
  const result = guest.iommu.addressSpace(source).translate(iova(at), 'read')
  expect(result.ok).toBe(false)
}

function interrupts(guest: Guest): Interrupt[] {
  const sent: Interrupt[] = []
  guest.iommu.on('interrupt', (interrupt) => sent.push(interrupt))
  return sent
}

/** MSI at 0x1_fee01000 with data 0x4021, unmasked unless asked. */
function arm(guest: Guest, masked = false): Interrupt[] {
  guest.write('FEDATA', 0x4021)
  guest.write('FEADDR', 0xfee01000)
  guest.write('FEUADDR', 1)
  guest.write('FECTL', masked ? 0x80000000 : 0)
  return interrupts(guest)
}

const MESSAGE = { address: 0x1_fee01000n, data: 0x4021 }

describe('a fault recording register (7.2.1, 11.4.7.5)', () => {
  it('holds reason, source, direction and page, and sets PPF', () => {
    const guest = faulting()
    guest.code(0x12345678n, 'write')
    expect(guest.fault).toEqual({
      source: REQUESTER,
      reason: 0x05,
      read: false,
      address: 0x12345000n,
    })
    expect(guest.read('FSTS')).toBe(PPF)
  })

  it('says that a request came from a device TLB', () => {
    const guest = new Guest().start({ type: 1 })
    guest.iommu.setAts(REQUESTER, true)
    fail(guest)
    expect((guest.iommu.read(REG.FRCD + 8, 8) >> 60n) & 3n).toBe(1n)
  })

  it('holds bits 63:12 of the address', () => {
    const guest = faulting()
    fail(guest, REQUESTER, 0xffff_ffff_ffff_ffffn)
    expect(guest.fault?.address).toBe(0xffff_ffff_ffff_f000n)
  })

  it('is free again when software writes 1 to F, and PPF follows', () => {
    const guest = faulting()
    fail(guest)
    guest.clearFault()
    expect([guest.fault, guest.read('FSTS')]).toEqual([undefined, 0])
    fail(guest, REQUESTER, 0x2000n)
    expect(guest.fault?.address).toBe(0x2000n)
  })

  it('cannot have PPF cleared by a write to FSTS', () => {
    const guest = faulting()
    fail(guest)
    guest.write('FSTS', 0xffffffff)
    expect(guest.read('FSTS')).toBe(PPF)
  })

  it('is not written again for the same source while F is set: no overflow either', () => {
    const guest = faulting()
    fail(guest)
    fail(guest, REQUESTER, 0x9000n)
    expect([guest.fault?.address, guest.read('FSTS')]).toEqual([0x1000n, PPF])
  })

  it('overflows for another source: PFO, and nothing more until software clears it', () => {
    const guest = faulting()
    fail(guest)
    fail(guest, OTHERS[0])
    expect(guest.read('FSTS')).toBe(PPF | PFO)
    guest.clearFault()
    fail(guest, OTHERS[0])
    expect([guest.fault, guest.read('FSTS')]).toEqual([undefined, PFO])
    guest.write('FSTS', PFO)
    fail(guest, OTHERS[0])
    expect(guest.fault?.source).toBe(OTHERS[0])
  })
})

describe('several fault recording registers (CAP.NFR)', () => {
  const source = (guest: Guest, i: number): number =>
    Number(guest.iommu.read(REG.FRCD + 16 * i + 8, 8) & 0xffffn)

  it('are filled in a circle, and FRI is the first one', () => {
    const guest = faulting(3)
    fail(guest)
    fail(guest, OTHERS[0])
    fail(guest, OTHERS[1])
    expect([0, 1, 2].map((i) => source(guest, i))).toEqual([REQUESTER, OTHERS[0], OTHERS[1]])
    expect(guest.read('FSTS')).toBe(PPF)
    fail(guest, OTHERS[2])
    expect(guest.read('FSTS')).toBe(PPF | PFO)
  })

  it('start where the last one ended: FRI says where', () => {
    const guest = faulting(3)
    fail(guest)
    guest.clearFault()
    fail(guest, OTHERS[0])
    expect(guest.read('FSTS')).toBe(PPF | (1 << 8))
    expect(source(guest, 1)).toBe(OTHERS[0])
  })

  it('keep PPF until the last F is cleared', () => {
    const guest = faulting(2)
    fail(guest)
    fail(guest, OTHERS[0])
    guest.clearFault()
    expect(guest.read('FSTS') & PPF).toBe(PPF)
    guest.iommu.write(REG.FRCD + 16 + 12, 0x80000000n, 4)
    expect(guest.read('FSTS') & PPF).toBe(0)
  })
})

describe('the fault event (7.3, 11.4.7.2)', () => {
  it('is a message to the whole 64-bit address, and IP is clear after it', () => {
    const guest = faulting()
    const sent = arm(guest)
    fail(guest)
    expect(sent).toEqual([MESSAGE])
    expect(guest.read('FECTL')).toBe(0)
  })

  it('waits in IP while masked, and goes when software unmasks', () => {
    const guest = faulting()
    const sent = arm(guest, true)
    fail(guest)
    expect([sent.length, guest.read('FECTL')]).toEqual([0, 0xc0000000])
    guest.write('FECTL', 0)
    expect([sent.length, guest.read('FECTL')]).toEqual([1, 0])
  })

  it('does not come again for a second cause while one is pending', () => {
    const guest = faulting(2)
    const sent = arm(guest)
    fail(guest)
    fail(guest, OTHERS[0])
    fail(guest, OTHERS[1])
    expect(sent).toHaveLength(1)
    expect(guest.read('FSTS')).toBe(PPF | PFO)
  })

  it('takes IP back when software has serviced every cause', () => {
    const guest = faulting()
    const sent = arm(guest, true)
    fail(guest)
    guest.clearFault()
    expect(guest.read('FECTL')).toBe(0x80000000)
    guest.write('FECTL', 0)
    expect(sent).toEqual([])
  })

  it('comes for an error of the invalidation queue too', () => {
    const guest = faulting()
    const sent = arm(guest)
    guest.submit([0n, 0n])
    expect(sent).toEqual([MESSAGE])
    expect(guest.read('FSTS')).toBe(IQE)
  })
})

describe("the 'fault' event", () => {
  it('tells what was recorded, and nothing that was not', () => {
    const guest = faulting()
    const heard: RecordedFault[] = []
    guest.iommu.on('fault', (fault) => heard.push(fault))
    guest.code(0x12345678n, 'write')
    guest.code(0x2000n)
    expect(heard).toMatchObject([
      { requester: '00:03.0', iova: 0x12345000n, wanted: 'write', reason: { code: 5 } },
    ])
  })
})

describe('what is not a fault', () => {
  it('one who only looks ahead has none recorded', () => {
    const guest = faulting()
    expect(guest.translate(0x1000n, 'none').ok).toBe(false)
    expect(guest.fault).toBeUndefined()
  })

  it('an access to the interrupt window has none recorded (3.15)', () => {
    const guest = faulting()
    expect(guest.translate(0xfee00000n)).toMatchObject({ reason: { name: 'interrupt-window' } })
    expect(guest.fault).toBeUndefined()
  })

  it('a request for both is recorded by what was refused', () => {
    const guest = faulting()
    guest.map(0x1000n, 0x5000n, 2)
    guest.code(0x1000n, 'readwrite')
    expect(guest.fault).toMatchObject({ reason: 6, read: true })
    guest.clearFault()
    guest.map(0x1000n, 0x5000n, 1)
    guest.code(0x1000n, 'readwrite')
    expect(guest.fault).toMatchObject({ reason: 5, read: false })
  })

  it('nothing is recorded while translation is off', () => {
    const guest = new Guest()
    expect(guest.translate(BigInt(AT.root)).ok).toBe(true)
    expect(guest.read('FSTS')).toBe(0)
  })
})

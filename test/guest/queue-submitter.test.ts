import { afterAll, beforeEach, describe, expect, it } from 'vitest'
import { MiB, PAGE_SIZE } from '../../lib/address'
import { QueueSubmitter } from '../../lib/guest/queue-submitter'
import type { MmioDevice } from '../../lib/iommu/iommu'
import { GuestMemory } from '../../lib/memory/guest-memory'

const memory = GuestMemory.allocate(1 * MiB)
afterAll(() => {
  memory.close()
})
beforeEach(() => {
  memory.view(0, 1 * MiB).fill(0)
})

const QUEUE = 2
const STATUS = 3

/** Notes the descriptors of each tail write, and does the waits unless it is told to stop. */
class Unit implements MmioDevice {
  readonly submissions: [string, string][][] = []
  stopped = false
  #head = 0

  read(offset: number): bigint {
    return offset === 0x34 ? 0x10n : BigInt(this.#head << 4)
  }

  write(offset: number, value: bigint, size: number): void {
    expect([offset, size]).toEqual([0x88, 4])
    if (this.stopped) return
    const found: [string, string][] = []
    for (; this.#head !== Number(value >> 4n); this.#head = (this.#head + 1) % 256) {
      const at = QUEUE * PAGE_SIZE + 16 * this.#head
      const [low, high] = [memory.u64(at), memory.u64(at + 8)]
      found.push([low.toString(16), high.toString(16)])
      if ((low & 0xfn) === 5n) memory.setU32(Number(high), Number(low >> 32n))
    }
    this.submissions.push(found)
  }
}

function submitter(): { unit: Unit; queue: QueueSubmitter } {
  const unit = new Unit()
  const place = { queuePage: QUEUE, statusPage: STATUS }
  return { unit, queue: new QueueSubmitter(memory, unit, place, { reads: true, writes: true }) }
}

describe('QueueSubmitter', () => {
  it('writes the words that Linux writes (seen from 6.12 and 6.1 guests)', () => {
    const { unit, queue } = submitter()
    queue.iotlbPages(6, 0xffeb9, 0, true)
    queue.iotlbDomain(6)
    queue.iotlbGlobal()
    queue.deviceTlb(0x0100, 0xffeb9, 0)
    queue.deviceTlbAll(0x0100)
    queue.contextGlobal()
    queue.contextDevice(6, 0x0100)
    queue.submit()
    expect(unit.submissions).toEqual([
      [
        ['600f2', 'ffeb9040'],
        ['600e2', '0'],
        ['d2', '0'],
        ['10000000003', 'ffeb9000'],
        ['10000000003', '7ffffffffffff001'],
        ['11', '0'],
        ['10000060031', '0'],
        ['200000025', (STATUS * PAGE_SIZE + 4 * 7).toString(16)],
      ],
    ])
    expect(queue.invalidations).toBe(7)
    expect(queue.submissions).toBe(1)
  })

  it('encodes the size of a device-TLB invalidation in trailing ones (6.5.2.5)', () => {
    const { unit, queue } = submitter()
    queue.deviceTlb(1, 0x100000010, 1)
    queue.deviceTlb(1, 0x10, 2)
    queue.deviceTlb(1, 0x10, 3)
    queue.deviceTlb(1, 0x40000, 18)
    queue.submit()
    const pages = unit.submissions[0].slice(0, 4).map(([, high]) => high)
    expect(pages).toEqual(['100000010001', '11001', '13001', '5ffff001'])
  })

  it('encodes the size of an IOTLB invalidation in AM (6.5.2.3)', () => {
    const { unit, queue } = submitter()
    queue.iotlbPages(1, 0x10, 4, false)
    queue.submit()
    expect(unit.submissions[0][0]).toEqual(['100f2', '10004'])
  })

  it('goes round the queue, a status word for each slot', () => {
    const { unit, queue } = submitter()
    for (let i = 0; i < 200; i++) {
      queue.iotlbGlobal()
      queue.submit()
    }
    expect(unit.submissions).toHaveLength(200)
    expect(new Set(unit.submissions.map((found) => found.length))).toEqual(new Set([2]))
  })

  it('says that the unit stopped, and where', () => {
    const { unit, queue } = submitter()
    queue.iotlbGlobal()
    queue.submit()
    unit.stopped = true
    queue.iotlbGlobal()
    expect(() => {
      queue.submit()
    }).toThrow(/stopped at invalidation descriptor 2 \(FSTS 0x10\)/)
  })

  it('does not take the status of an earlier round for its own', () => {
    const { unit, queue } = submitter()
    for (let i = 0; i < 256; i++) {
      queue.iotlbGlobal()
      queue.submit()
    }
    unit.stopped = true
    queue.iotlbGlobal()
    expect(() => {
      queue.submit()
    }).toThrow(/stopped/)
  })

  it('takes no more descriptors than there are slots', () => {
    const { queue } = submitter()
    for (let i = 0; i < 255; i++) queue.iotlbGlobal()
    expect(() => {
      queue.iotlbGlobal()
    }).toThrow(expect.objectContaining({ code: 'ERR_EXHAUSTED' }))
  })
})

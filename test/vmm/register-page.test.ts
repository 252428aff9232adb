/** The unit's registers as memory of the guest: what it writes there is what an exit would bring. */
import { afterEach, describe, expect, it } from 'vitest'
import type { GuestMemory } from '../../lib/memory/guest-memory'
import { RegisterPage } from '../../lib/vmm/register-page'
import { AT, GCMD, Guest, REG } from '../iommu/intel/guest'
import { Random } from '../oracle/random'

const BASE = 0xfed90000
const TES = 0x80000000
const QIES = 0x04000000
const SEED = Number(process.env['SEED'] ?? 20261123)
const GLOBAL_IOTLB = [0x12n, 0n] as const
const status = (data: number) => [(BigInt(data) << 32n) | 0x25n, BigInt(AT.status)] as const

/** A guest whose register writes go to the page while it has it, and are exits while not. */
class SharingGuest extends Guest {
  memoryOfPage: GuestMemory | undefined
  maps = 0
  /** Who has the page was told that it is served, and had it then. */
  followed: boolean | undefined
  /** Milliseconds that the clock is ahead. */
  time = 0
  /** The clock stands still, so that nothing ends for lack of tails. */
  frozen: number | undefined
  exits = 0
  readonly errors: unknown[] = []
  readonly page = new RegisterPage({
    unit: this.iommu,
    base: BASE,
    map: (page) => {
      this.maps++
      this.memoryOfPage = page
      return {
        follow: () => (this.followed = this.memoryOfPage !== undefined),
        [Symbol.dispose]: () => (this.memoryOfPage = undefined),
      }
    },
    onError: (error) => this.errors.push(error),
    now: () => this.frozen ?? performance.now() + this.time,
  })

  override write(register: keyof typeof REG, value: bigint | number, size = 4): void {
    const at = REG[register]
    if (this.memoryOfPage === undefined) {
      this.exits++
      if (size === 4) this.page.writeWord(at, Number(value))
      else this.page.write(at, BigInt(value), size)
    } else {
      this.memoryOfPage.setU32(BASE + at, Number(BigInt(value) & 0xffffffffn))
      if (size === 8) this.memoryOfPage.setU32(BASE + at + 4, Number(BigInt(value) >> 32n))
    }
  }

  override read(register: keyof typeof REG, size = 4): number {
    const { memoryOfPage } = this
    if (memoryOfPage === undefined) return super.read(register, size)
    return size === 4
      ? memoryOfPage.u32(BASE + REG[register])
      : Number(memoryOfPage.u64(BASE + REG[register]))
  }

  override submit(...descriptors: readonly (readonly [bigint, bigint])[]): void {
    for (const [low, high] of descriptors) {
      this.memory.setU64(AT.queue + this.tail * 16, low)
      this.memory.setU64(AT.queue + this.tail * 16 + 8, high)
      this.tail = (this.tail + 1) % 256
    }
    this.write('IQT', this.tail * 16)
  }

  /** As Linux: submits, then looks at the status until it is there. */
  async flush(data: number): Promise<void> {
    this.memory.setU32(AT.status, 0)
    this.submit(GLOBAL_IOTLB, status(data))
    await until(() => this.memory.u32(AT.status) === data)
  }

  async busy(): Promise<this> {
    for (let i = 1; i <= 8; i++) await this.flush(i)
    expect(this.page.shared).toBe(true)
    return this
  }

  async busyForEver(): Promise<this> {
    await this.busy()
    this.frozen = performance.now()
    return this
  }
}

const started: SharingGuest[] = []

function guest(): SharingGuest {
  const one = new SharingGuest().start()
  started.push(one)
  return one
}

afterEach(() => {
  for (const one of started.splice(0)) one.page.close()
})

async function until(condition: () => boolean): Promise<void> {
  const deadline = performance.now() + 5000
  while (!condition()) {
    if (performance.now() > deadline) throw new Error('it did not come')
    await new Promise((resolve) => setImmediate(resolve))
  }
}

describe('a guest that is busy with the queue', () => {
  it('gets the page with the eighth tail, and all registers stand in it', async () => {
    const one = guest()
    const registers = Object.keys(REG) as (keyof typeof REG)[]
    const [command, ...others] = ['GCMD', ...registers.filter((name) => name !== 'GCMD')] as const
    for (let i = 1; i <= 7; i++) await one.flush(i)
    expect(one.page.shared).toBe(false)
    await one.flush(8)
    expect([one.page.shared, one.maps]).toEqual([true, 1])
    for (const name of others) {
      expect(one.memoryOfPage?.u32(BASE + REG[name]), name).toBe(one.iommu.readWord(REG[name]))
    }
    expect(one.read(command as 'GCMD')).toBe(0x7fffff)
  })

  it('has its tails served without an exit, and sees the head move', async () => {
    const one = await guest().busy()
    const before = one.exits
    const heard = one.listen()
    for (let i = 100; i < 400; i++) await one.flush(i)
    expect(one.exits).toBe(before)
    expect([one.page.served, heard.length]).toEqual([300, 300])
    expect(one.head).toBe(one.tail)
    expect(one.head).toBe(one.iommu.readWord(REG.IQH) / 16)
    expect(one.followed).toBe(true)
  })

  it('gives the page back when no tail comes any more', async () => {
    const one = await guest().busy()
    await until(() => !one.page.shared)
    expect(one.memoryOfPage).toBeUndefined()
    await one.flush(77)
    for (let i = 1; i <= 8; i++) await one.flush(i)
    expect([one.page.shared, one.maps]).toEqual([true, 2])
  })
})

describe('what a page cannot stand for', () => {
  it('is never shared while software has a bit to clear', async () => {
    const one = guest()
    one.code(0x5000n)
    expect(one.read('FSTS')).toBe(2)
    for (let i = 1; i <= 20; i++) await one.flush(i)
    expect(one.page.shared).toBe(false)
    one.clearFault()
    expect(one.read('FSTS')).toBe(0)
    await one.busy()
  })

  it('is taken back with the first error of the queue, which the exits then tell', async () => {
    const one = await guest().busyForEver()
    one.submit([0n, 0n])
    await until(() => !one.page.shared)
    expect(one.read('FSTS')).toBe(0x10)
  })

  it.each([
    ['translation', GCMD.TE, TES],
    ['the queue', GCMD.QIE, QIES],
  ])('a command: %s is switched off, and exits stay for a while', async (_, bit, mask) => {
    const one = await guest().busyForEver()
    const before = one.iommu.readWord(REG.GSTS)
    expect(before & mask).not.toBe(0)
    one.command(0, bit)
    await until(() => (one.iommu.readWord(REG.GSTS) & mask) === 0)
    expect(one.page.shared).toBe(false)
  })

  it('a command of no bits is one too', async () => {
    const one = await guest().busyForEver()
    one.write('GCMD', 0)
    await until(() => !one.page.shared)
    expect(one.iommu.readWord(REG.GSTS) & (TES | QIES)).toBe(0)
  })

  it('exits stay for half a second after that', async () => {
    const one = await guest().busy()
    one.write('IEDATA', 0x31)
    await until(() => !one.page.shared)
    for (let i = 1; i <= 20; i++) await one.flush(i)
    expect(one.maps).toBe(1)
    one.time += 500
    await one.busy()
  })

  it('other registers come to the unit before the tail, and commands after it', async () => {
    const one = await guest().busy()
    const order: number[] = []
    const { iommu } = one
    const write = iommu.writeWord.bind(iommu)
    iommu.writeWord = (offset, value) => {
      order.push(offset)
      write(offset, value)
    }
    one.command(0, GCMD.TE)
    one.submit(GLOBAL_IOTLB, status(5))
    one.write('IEADDR', 0xfee00000)
    one.write('FEDATA', 0x31)
    one.page.takeBack()
    expect(order).toEqual([REG.FEDATA, REG.IEADDR, REG.IQT, REG.GCMD])
    expect(iommu.readWord(REG.FEDATA)).toBe(0x31)
    expect(one.memory.u32(AT.status)).toBe(5)
    expect(iommu.readWord(REG.GSTS) & TES).toBe(0)
  })
})

describe('in the midst of it', () => {
  it('an interrupt may take the page back, and the tail is worked off to its end', async () => {
    const one = guest()
    one.iommu.on('interrupt', () => {
      one.page.takeBack()
    })
    one.write('IECTL', 0)
    await one.busy()
    // A wait that asks for an interrupt, and one after it (6.5.2.9).
    one.submit([0x15n, 0n], status(9))
    await until(() => one.memory.u32(AT.status) === 9)
    expect(one.page.shared).toBe(false)
    expect(one.read('ICS')).toBe(1)
  })

  it('an exit that was under way comes after what stands in the page', async () => {
    const one = await guest().busy()
    one.write('FEDATA', 1)
    one.page.writeWord(REG.FEDATA, 2)
    expect([one.page.shared, one.iommu.readWord(REG.FEDATA)]).toEqual([false, 2])
    expect(one.page.read(REG.FEDATA, 4)).toBe(2n)
  })

  it('a refusal of the host ends the sharing, and is told', async () => {
    const one = await guest().busyForEver()
    one.space.notify({
      invalidate: () => {
        throw new Error('refused')
      },
    })
    one.submit(GLOBAL_IOTLB, status(9))
    await until(() => !one.page.shared)
    expect(one.errors).toEqual([new Error('refused')])
    expect(one.memory.u32(AT.status)).not.toBe(9)
  })

  it('the page goes with the machine, and nothing is served any more', async () => {
    const one = await guest().busy()
    one.submit(GLOBAL_IOTLB, status(9))
    one.page.close()
    one.page.close()
    await new Promise((resolve) => setTimeout(resolve, 10))
    expect(one.memory.u32(AT.status)).toBe(8)
    expect(one.page.shared).toBe(false)
  })
})

it('a guest cannot tell: 2000 steps leave the unit as they leave one that is all exits', async () => {
  const random = new Random(SEED)
  const [shared, alone] = [guest(), new Guest().start()]
  const both = (step: (one: Guest) => void): void => {
    step(shared)
    step(alone)
  }
  for (let i = 1; i <= 2000; i++) {
    if (random.chance(0.98)) {
      await shared.flush(i)
      alone.submit(GLOBAL_IOTLB, status(i))
      continue
    }
    const name = random.pick(['FEDATA', 'FEADDR', 'IEDATA', 'IEADDR', 'IEUADDR', 'RTADDR'] as const)
    const off = random.chance(0.3)
    both((one) => {
      if (off) one.command(0, GCMD.TE)
      else one.write(name, (i << 12) | i)
    })
    // A driver waits for the status of a command, which changes when it was looked at.
    await until(() => !shared.page.shared)
    both((one) => {
      one.write('RTADDR', BigInt(AT.root), 8)
      one.command(GCMD.SRTP)
      one.command(GCMD.TE)
    })
    shared.time += 1000
  }
  shared.page.takeBack()
  for (let at = 0; at < 4096; at += 4) {
    expect(shared.iommu.readWord(at), `0x${at.toString(16)}`).toBe(alone.iommu.readWord(at))
  }
  expect(shared.maps).toBeGreaterThan(20)
  expect(shared.page.served).toBeGreaterThan(1000)
})

/** What Linux never does: a bare guest that writes anything anywhere. The machine goes on, and ends. */
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import type { Tap } from '../../lib/vhost/tap'
import { ECAM, PCI_WINDOW, REMAPPING_BASE } from '../../lib/vmm/layout'
import { Machine } from '../../lib/vmm/machine'
import { quietTap } from '../support/quiet-tap'
import { dieOnce, program } from './program'
import type { Access, Delay } from './program'

const PORT = ECAM.base + 0x8000
const CARD = ECAM.base + 0x100000
const COMMAND = 4
const BAR = 0x10
const BUS_NUMBERS = 0x18
/** Registers of the unit, and bits of its command (VT-d 5.10 11.4). */
const [GCMD, RTADDR, IQT, IQA] = [0x18, 0x20, 0x88, 0x90].map((at) => REMAPPING_BASE + at)
const [SRTP, QIE, TE] = [0x40000000, 0x04000000, 0x80000000]
const QUEUE = 0x400000
const DESCRIPTORS = 256
/** An invalidation of everything that is in the IOTLB (6.5.2.3). */
const ALL_OF_IOTLB = 0x12
const TAILS = 2000
const SEEDS = 2
const STORES = 400

let tap: Tap

beforeEach(() => {
  tap = quietTap()
})

afterEach(() => {
  tap.close()
})

/** Runs a bare program to its power-off. */
async function run(code: Uint8Array): Promise<Machine> {
  const machine = new Machine({ image: { code }, tap, memoryMiB: 256 })
  const failures: unknown[] = []
  machine.net.pci.onFailure((cause) => failures.push(cause))
  try {
    machine.start()
    expect(await machine.ended).toEqual({ how: 'power-off' })
    // What the host refused inside a guest's write; a guest cannot make it refuse anything.
    expect(failures.filter((cause) => !(cause instanceof Error))).toEqual([])
  } finally {
    machine.close()
  }
  return machine
}

/** A bus number for the card, its BAR, memory space and bus mastering. */
const SETUP: readonly Access[] = [
  { at: PORT + BUS_NUMBERS, size: 4, value: 0x010100 },
  { at: CARD + BAR, size: 8, value: PCI_WINDOW.base },
  { at: CARD + COMMAND, size: 2, value: 6 },
]

/** The same numbers for a seed, at any time (xorshift). */
function numbers(seed: number): () => number {
  let state = seed * 2654435761 + 1
  return () => {
    state ^= state << 13
    state ^= state >>> 17
    state ^= state << 5
    return state >>> 0
  }
}

/** Some hundredths of a second, in which its memory is looked at. */
const A_WHILE: Delay = { turns: 5_000_000 }

/** The unit with its queue and translation on, and invalidations one by one, as fast as they go. */
const BUSY: readonly (Access | Delay)[] = [
  ...Array.from({ length: DESCRIPTORS }, (_, i) => [
    { at: QUEUE + 16 * i, size: 8 as const, value: ALL_OF_IOTLB },
    { at: QUEUE + 16 * i + 8, size: 8 as const, value: 0 },
  ]).flat(),
  { at: IQA, size: 8, value: QUEUE },
  { at: GCMD, size: 4, value: QIE },
  { at: RTADDR, size: 8, value: 0x500000 },
  { at: GCMD, size: 4, value: QIE | SRTP },
  { at: GCMD, size: 4, value: (QIE | TE) >>> 0 },
  ...Array.from({ length: TAILS }, (_, i) => ({
    at: IQT,
    size: 4 as const,
    value: 16 * ((i + 1) % DESCRIPTORS),
  })),
  A_WHILE,
]

const SIZES = [1, 2, 4, 8] as const

/** Stores and loads around a window, of values that are often almost right. */
function anything(seed: number, windows: readonly (readonly [number, number])[]): Access[] {
  const next = numbers(seed)
  return Array.from({ length: STORES }, () => {
    const [base, bytes] = windows[next() % windows.length]
    const size = SIZES[next() % SIZES.length]
    const at = base + (next() % bytes)
    if (next() % 4 === 0) return { at, size }
    const values = [next(), 0, -1, 1 << (next() % 31), 0x100000, (next() & ~0xfff) | 0x803]
    return { at, size, value: values[next() % values.length] }
  })
}

describe('a bare guest', () => {
  it('powers off by the register that ACPI names', async () => {
    const machine = await run(program([]))
    expect(machine.stats()).toMatchObject({ boots: 1, tripleFaults: 0 })
  })

  it('is started again after a triple fault, which is counted as that', async () => {
    const machine = await run(dieOnce(0x20_0000))
    expect(machine.stats()).toMatchObject({ boots: 2, tripleFaults: 1 })
  })

  it.each(Array.from({ length: SEEDS }, (_, seed) => seed + 1))(
    'writes anything into the registers of the remapping unit (seed %i)',
    async (seed) => {
      await run(program(anything(seed, [[REMAPPING_BASE, 0x300]])))
    },
  )

  it.each(Array.from({ length: SEEDS }, (_, seed) => seed + 1))(
    'writes anything into them while they are its memory (seed %i)',
    async (seed) => {
      const machine = await run(
        program([...BUSY, ...anything(seed, [[REMAPPING_BASE, 0x300]]), A_WHILE]),
      )
      expect(machine.stats().served).toBeGreaterThan(0)
      expect(machine.stats().exits).toBeLessThan(TAILS)
    },
  )

  it.each(Array.from({ length: SEEDS }, (_, seed) => seed + 1))(
    'writes anything into configuration space and the card (seed %i)',
    async (seed) => {
      const windows = [
        [PORT, 0x140],
        [CARD, 0x140],
        [PCI_WINDOW.base, 0x6000],
        [ECAM.base, ECAM.bytes - 8],
      ] as const
      await run(program([...SETUP, ...anything(seed, windows)]))
    },
  )
})

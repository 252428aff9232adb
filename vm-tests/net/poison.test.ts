/**
 * The isolation under load: buffers are taken back while the kernel sends from them, and poisoned
 * as soon as the wait descriptor says that their invalidation is complete. What leaves the tap is
 * whole frames, or nothing. `POISON_FRAMES` is how many are offered in each mode.
 */
import { expect, test } from 'vitest'
import { compared, frame, frameNumber, identical, ours } from '../support/frames'
import { IntelGuest, PlainGuest, Rig, TX } from '../support/rig'

const FRAMES = Number(process.env['POISON_FRAMES'] ?? 640)
const SEED = Number(process.env['SEED'] ?? 1)
const BURST = 16
const BYTES = 200
const POISON = 0xa5
/** How long to wait for a burst. */
const ROUNDS = 1000

/** mulberry32. */
function random(seed: number): (below: number) => number {
  let state = seed
  return (below) => {
    state = (state + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state)
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed
    return ((mixed ^ (mixed >>> 14)) >>> 0) % below
  }
}

interface Mode {
  readonly mode: 'strict' | 'lazy'
  readonly deviceTlb: boolean
}

interface Outcome {
  readonly seen: readonly Uint8Array[]
  readonly expected: readonly Uint8Array[]
  readonly takenBack: number
}

async function burst(
  rig: Rig<IntelGuest>,
  first: number,
  pick: (below: number) => number,
): Promise<Outcome> {
  const iovas: bigint[] = []
  for (let i = 0; i < BURST; i++) {
    iovas.push(rig.map(i, 'read'))
    rig.write(i, frame(first + i, BYTES))
  }
  for (const iova of iovas) rig.offer(TX, iova, BYTES + 12)
  // The kernel is at work on them, and others come and go beside.
  for (let beside = pick(4); beside > 0; beside--) rig.guest.unmap(rig.map(64 + beside, 'read'))
  const back = Array.from({ length: pick(BURST) }, () => pick(BURST))
  const pages = new Set(back)
  for (const page of pages) rig.guest.unmap(iovas[page])
  rig.guest.driver.flush()
  for (const page of pages) rig.bytes(page).fill(POISON)
  // Every chain completes: sent, or dropped by the fault policy.
  for (let round = 0; rig.completed[TX] < first + BURST && round < ROUNDS; round++) {
    await rig.settle()
  }
  const seen = ours(await rig.packets.sync())
  for (let i = 0; i < BURST; i++) if (!pages.has(i)) rig.guest.unmap(iovas[i])
  rig.guest.driver.flush()
  return {
    seen,
    expected: seen.map((bytes) => frame(frameNumber(bytes), BYTES)),
    takenBack: pages.size,
  }
}

const MODES: readonly Mode[] = [
  { mode: 'strict', deviceTlb: true },
  { mode: 'strict', deviceTlb: false },
  { mode: 'lazy', deviceTlb: true },
  { mode: 'lazy', deviceTlb: false },
]

test.each(MODES)(
  'no poisoned byte leaves the tap: $mode, ATS $deviceTlb',
  async (options) => {
    const pick = random(SEED)
    await using rig = await Rig.open((memory) => new IntelGuest(memory, options), {
      fault: 'drop',
    })
    let [whole, takenBack] = [0, 0]
    for (let first = 0; first < FRAMES; first += BURST) {
      const outcome = await burst(rig, first, pick)
      expect(compared(outcome.seen, outcome.expected)).toEqual(identical(outcome.seen.length))
      whole += outcome.seen.length
      takenBack += outcome.takenBack
    }
    expect(takenBack).toBeGreaterThan(FRAMES / 8)
    // Whatever was not taken back in time has left; whatever was dropped was taken back.
    expect(whole).toBeGreaterThanOrEqual(FRAMES - takenBack)
    expect(whole + rig.nic.stats().dropped).toBe(FRAMES)
  },
  60_000 + FRAMES * 20,
)

test('poison does leave where nobody invalidates: what the tests above look for can happen', async () => {
  await using rig = await Rig.open(() => new PlainGuest())
  const iova = rig.map(0, 'read')
  const length = rig.write(0, frame(1, BYTES))
  rig.offer(TX, iova, length)
  await rig.settle()
  expect(ours(await rig.packets.sync())).toHaveLength(1)

  const page = Number(iova >> 12n)
  rig.guest.addressSpace.unmapPages(page, page)
  const poison = frame(2, BYTES).fill(POISON, 18)
  rig.offer(TX, iova, rig.write(0, poison))
  await rig.settle()
  expect(ours(await rig.packets.sync())).toEqual([poison])
})

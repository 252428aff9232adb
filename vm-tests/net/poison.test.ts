/**
 * The isolation under load: buffers are taken back while the kernel sends from them, and poisoned
 * as soon as the wait descriptor says that their invalidation is complete. What leaves the tap is
 * every frame, once and whole, and no byte of the poison.
 *
 * The buffers of a burst are granted before the kernel sees them (`on-kick`), so that it is sending
 * with them while some are taken back; the rest of the burst it sees only then. A descriptor whose
 * buffer is gone is a fault: the guest lets it name a copy elsewhere, and the queue goes on. Where nothing is ever taken
 * back (static, passthrough, off) there is nothing to poison behind the kernel's back: there the
 * poison lies around the frames, while another device of the same unit maps and unmaps.
 *
 * `POISON_FRAMES` is how many are sent in each mode, `SEED` which buffers are taken back and when.
 */
import { setImmediate as turn } from 'node:timers/promises'
import { expect, test } from 'vitest'
import { PAGE_SIZE, iovaOfPage } from '../../lib/address'
import type { Gpa } from '../../lib/address'
import type { DmaPool } from '../../lib/guest/dma'
import { IntelIommuDriver } from '../../lib/guest/intel-iommu-driver'
import type { GuestMemory } from '../../lib/memory/guest-memory'
import { compared, frame, identical, ours } from '../support/frames'
import { HEADER, IntelGuest, PlainGuest, Rig, TX, physicalGuest } from '../support/rig'
import type { Guest } from '../support/rig'

const FRAMES = Number(process.env['POISON_FRAMES'] ?? 512)
const SEED = Number(process.env['SEED'] ?? 1)
const BURST = 256
/** Fewer than this are taken back of a burst. */
const TAKEN_BACK = 64
const BYTES = 100
const POISON = 0xa5
/** Pages with the copies, and pages that come and go beside. */
const COPIES = 256
const BESIDE = 512
/** How many turns of the event loop a burst may take. */
const TURNS = 100_000
const TIME_LIMIT = 60_000 + FRAMES * 20

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

async function completed(rig: Rig<Guest>, count: number): Promise<void> {
  for (let turns = 0; rig.completed[TX] < count && turns < TURNS; turns++) {
    await turn()
    rig.collect()
  }
  expect(rig.completed[TX]).toBeGreaterThanOrEqual(count)
}

/** Until all that was offered is completed; then what left the tap. */
async function drained(rig: Rig<Guest>, offered: number): Promise<readonly Uint8Array[]> {
  await completed(rig, offered)
  return ours(await rig.packets.sync())
}

function expectWhole(seen: readonly Uint8Array[], first: number, count: number): void {
  const expected = Array.from({ length: count }, (_, i) => frame(first + i, BYTES))
  expect(compared(seen, expected)).toEqual(identical(count))
}

/** Buffers that are mapped for a burst, and copies that stay mapped; by index. */
interface Buffers {
  readonly pool: DmaPool
  readonly copies: readonly bigint[]
  /** Buffers that are taken back, by iova, and where their copies are. */
  readonly gone: Map<bigint, bigint>
}

function buffersOf(rig: Rig<IntelGuest>): Buffers {
  const { driver } = rig.guest
  const poolAt = (page: number): DmaPool => driver.pool(rig.gpa(page) / PAGE_SIZE, BURST)
  const copies = poolAt(COPIES)
  const iovas = Array.from({ length: BURST }, (_, i) => iovaOfPage(copies.map(i, 1)))
  return { pool: poolAt(0), copies: iovas, gone: new Map() }
}

/** Maps and offers a burst, takes some of it back, poisons that. @returns how much was taken back */
async function burst(
  rig: Rig<IntelGuest>,
  first: number,
  count: number,
  pick: (below: number) => number,
  { pool, copies, gone }: Buffers,
): Promise<number> {
  const iovas = new Array<bigint>(count)
  // From the top down, as iovas are given: what is contiguous is granted in one piece.
  for (let i = count - 1; i >= 0; i--) {
    iovas[i] = iovaOfPage(pool.map(i, 1))
    rig.write(i, frame(first + i, BYTES))
  }
  // Those that the kernel comes to last are taken back first.
  const picked = [count - 1, ...Array.from({ length: pick(TAKEN_BACK) }, () => pick(count))]
  const back = new Set(picked.sort((a, b) => b - a))
  for (const i of back) {
    rig.write(COPIES + i, frame(first + i, BYTES))
    gone.set(iovas[i], copies[i])
  }
  // Nearly all the kernel sees now, and is at work on: while it sends the last quarter, or when it
  // has sent all that it sees, they are taken back.
  const early = Math.max(0, count - 1 - pick(4))
  rig.offerAll(TX, iovas.slice(0, early), HEADER + BYTES)
  rig.guest.unmap(rig.map(BESIDE + pick(4), 'read'))
  await completed(rig, first + early - pick(count / 4))
  for (const i of back) {
    pool.unmap(i, 1)
    if (rig.guest.driver.mode === 'strict') rig.bytes(i).fill(POISON)
  }
  rig.guest.driver.flush()
  for (const i of back) rig.bytes(i).fill(POISON)
  // The others it sees when their buffers may be gone; the last one's always is.
  rig.offerAll(TX, iovas.slice(early), HEADER + BYTES)
  expectWhole(await drained(rig, first + count), first, count)
  gone.clear()
  for (const [from, pages] of runs(count, back)) pool.unmap(from, pages)
  rig.guest.driver.flush()
  return back.size
}

/** What is left of `count` without some, as first and length. */
function runs(count: number, without: ReadonlySet<number>): [number, number][] {
  const found: [number, number][] = []
  let from = 0
  for (let i = 0; i <= count; i++) {
    if (i < count && !without.has(i)) continue
    if (i > from) found.push([from, i - from])
    from = i + 1
  }
  return found
}

test.each([
  { mode: 'strict', deviceTlb: true },
  { mode: 'strict', deviceTlb: false },
  { mode: 'lazy', deviceTlb: true },
  { mode: 'lazy', deviceTlb: false },
] as const)(
  'no poisoned byte leaves the tap, and every frame does: $mode, ATS $deviceTlb',
  async ({ mode, deviceTlb }) => {
    const pick = random(SEED)
    await using rig = await Rig.open((memory) => new IntelGuest(memory, { mode, deviceTlb }), {
      ringSize: BURST,
      lookAhead: 'on-kick',
    })
    const buffers = buffersOf(rig)
    let faults = 0
    rig.nic.onFault(({ iova }) => {
      const copy = buffers.gone.get(iova)
      if (copy === undefined) return
      faults++
      rig.redirect(TX, iova, copy)
      rig.nic.kick(TX)
    })
    let takenBack = 0
    for (let first = 0; first < FRAMES; first += BURST) {
      takenBack += await burst(rig, first, Math.min(BURST, FRAMES - first), pick, buffers)
    }
    console.log(
      `poison: ${mode}, ATS ${deviceTlb ? 'on' : 'off'}: ${FRAMES} frames whole, ` +
        `${takenBack} taken back, ${faults} of them before they were sent, 0 bytes of poison`,
    )
    // Some were sent before they were taken back, some had to be sent from their copies.
    expect(takenBack).toBeGreaterThan(FRAMES / 16)
    expect(faults).toBeGreaterThanOrEqual(Math.ceil(FRAMES / BURST))
    expect(faults).toBeLessThanOrEqual(takenBack)
  },
  TIME_LIMIT,
)

/** Another device of the unit, whose buffers come and go. */
function neighbour(guest: Guest, memory: GuestMemory): IntelIommuDriver | undefined {
  if (!(guest instanceof IntelGuest)) return undefined
  const driver = new IntelIommuDriver(guest.iommu, memory, { requester: '00:04.0', mode: 'strict' })
  driver.enable()
  return driver
}

test.each([
  { mode: 'static', deviceTlb: true },
  { mode: 'static', deviceTlb: false },
  { mode: 'passthrough', deviceTlb: false },
  { mode: 'off', deviceTlb: false },
] as const)(
  'no byte around a frame leaves the tap: $mode, ATS $deviceTlb',
  async ({ mode, deviceTlb }) => {
    const pick = random(SEED)
    const open = (memory: GuestMemory): Guest =>
      mode === 'off' ? physicalGuest : new IntelGuest(memory, { mode, deviceTlb })
    await using rig = await Rig.open(open, { ringSize: BURST, lookAhead: 'on-kick' })
    const other = neighbour(rig.guest, rig.memory)
    for (let page = 0; page <= BURST; page++) rig.bytes(page).fill(POISON)
    for (let first = 0; first < FRAMES; first += BURST) {
      const count = Math.min(BURST, FRAMES - first)
      const iovas = Array.from({ length: count }, (_, i) => {
        // The last byte of a frame is the last of its page, as often as not.
        const at = pick(2) === 0 ? PAGE_SIZE - HEADER - BYTES : pick(PAGE_SIZE - HEADER - BYTES)
        rig
          .bytes(i)
          .fill(POISON)
          .fill(0, at, at + HEADER)
        rig.bytes(i).set(frame(first + i, BYTES), at + HEADER)
        return rig.map(i, 'read') + BigInt(at)
      })
      rig.offerAll(TX, iovas, HEADER + BYTES)
      for (let beside = pick(8); beside > 0; beside--) {
        const gpa = BigInt(rig.gpa(BESIDE + beside)) as Gpa
        if (other !== undefined) other.unmap(other.map(gpa, PAGE_SIZE, 'readwrite'))
      }
      expectWhole(await drained(rig, first + count), first, count)
    }
    other?.disable()
    console.log(
      `poison: ${mode}, ATS ${deviceTlb ? 'on' : 'off'}: ${FRAMES} frames whole, ` +
        `nothing is ever taken back, 0 bytes of poison`,
    )
  },
  TIME_LIMIT,
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

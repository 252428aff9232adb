/**
 * The isolation under load: buffers are taken back while the kernel sends from them, and poisoned
 * as soon as the wait descriptor says that their invalidation is complete. What leaves the tap is
 * every frame, once and whole, and no byte of the poison.
 *
 * All buffers of a burst are granted before the kernel sees them (`on-kick`), so that it is sending
 * with them while some are taken back. A descriptor whose buffer is gone is a fault; the guest then
 * lets it name a copy elsewhere, and the queue goes on to the next. Where nothing is ever taken
 * back (static, passthrough, off) there is nothing to poison behind the kernel's back: there the
 * poison lies around the frames, while another device of the same unit maps and unmaps.
 *
 * `POISON_FRAMES` is how many are sent in each mode, `SEED` which buffers are taken back and when.
 */
import { setImmediate as turn } from 'node:timers/promises'
import { expect, test } from 'vitest'
import { PAGE_SIZE } from '../../lib/address'
import type { Gpa } from '../../lib/address'
import { IntelIommuDriver } from '../../lib/guest/intel-iommu-driver'
import type { GuestMemory } from '../../lib/memory/guest-memory'
import { compared, frame, identical, ours } from '../support/frames'
import { HEADER, IntelGuest, PlainGuest, Rig, TX, physicalGuest } from '../support/rig'
import type { Guest } from '../support/rig'

const FRAMES = Number(process.env['POISON_FRAMES'] ?? 512)
const SEED = Number(process.env['SEED'] ?? 1)
const BURST = 128
const BYTES = 200
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

/** Until all that was offered is completed; then what left the tap. */
async function drained(rig: Rig<Guest>, offered: number): Promise<readonly Uint8Array[]> {
  for (let turns = 0; rig.completed[TX] < offered && turns < TURNS; turns++) {
    await turn()
    rig.collect()
  }
  expect(rig.completed[TX]).toBe(offered)
  return ours(await rig.packets.sync())
}

function expectWhole(seen: readonly Uint8Array[], first: number, count: number): void {
  const expected = Array.from({ length: count }, (_, i) => frame(first + i, BYTES))
  expect(compared(seen, expected)).toEqual(identical(count))
}

/** Buffers that are taken back, each with the copy that its descriptor will name. */
type Copies = Map<bigint, bigint>

/** Maps and offers a burst, takes some of it back, poisons that. @returns what was taken back */
async function burst(
  rig: Rig<IntelGuest>,
  first: number,
  count: number,
  pick: (below: number) => number,
  copies: Copies,
): Promise<number> {
  const iovas: bigint[] = []
  for (let i = 0; i < count; i++) {
    iovas.push(rig.map(i, 'read'))
    rig.write(i, frame(first + i, BYTES))
  }
  const back = new Set(Array.from({ length: pick(count) }, () => pick(count)))
  for (const i of back) {
    rig.write(COPIES + i, frame(first + i, BYTES))
    copies.set(iovas[i], rig.map(COPIES + i, 'read'))
  }
  rig.offerAll(TX, iovas, HEADER + BYTES)
  // The kernel is at work on them; for some time, or none.
  for (let turns = pick(4); turns > 0; turns--) await turn()
  for (let beside = pick(4); beside > 0; beside--) {
    rig.guest.unmap(rig.map(BESIDE + beside, 'read'))
  }
  for (const i of back) rig.guest.unmap(iovas[i])
  rig.guest.driver.flush()
  for (const i of back) rig.bytes(i).fill(POISON)
  expectWhole(await drained(rig, first + count), first, count)
  for (const copy of copies.values()) rig.guest.unmap(copy)
  copies.clear()
  for (let i = 0; i < count; i++) if (!back.has(i)) rig.guest.unmap(iovas[i])
  rig.guest.driver.flush()
  return back.size
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
    const copies: Copies = new Map()
    let faults = 0
    rig.nic.onFault(({ iova }) => {
      const copy = copies.get(iova)
      if (copy === undefined) return
      faults++
      rig.redirect(TX, iova, copy)
      rig.nic.kick(TX)
    })
    let takenBack = 0
    for (let first = 0; first < FRAMES; first += BURST) {
      takenBack += await burst(rig, first, Math.min(BURST, FRAMES - first), pick, copies)
    }
    console.log(
      `poison: ${mode}, ATS ${deviceTlb ? 'on' : 'off'}: ${FRAMES} frames whole, ` +
        `${takenBack} taken back, ${faults} of them before they were sent, 0 bytes of poison`,
    )
    // Some were sent before they were taken back, some had to be sent from their copies.
    expect(takenBack).toBeGreaterThan(FRAMES / 8)
    expect(faults).toBeGreaterThan(0)
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

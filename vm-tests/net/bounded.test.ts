/**
 * A guest that names one unmapped address after the other: what the host keeps of it is bounded,
 * whatever the policy, and other queues go on. UNMAPPED=1000000 asks for as many.
 */
import { readFileSync } from 'node:fs'
import { setImmediate as turn } from 'node:timers/promises'
import { expect, test } from 'vitest'
import { MiB } from '../../lib/address'
import type { FaultPolicy } from '../../lib/iotlb/miss-handler'
import { frame } from '../support/frames'
import { PlainGuest, RX, Rig, TX } from '../support/rig'

/** More than the kernel is left to note: below that, nothing would have to be bounded. */
const COUNT = Number(process.env['UNMAPPED'] ?? 1100)
const HOUR = 3_600_000
const BAD = 0x6000_0000_0000n
/** A ring that is stopped leaves nothing to add up, and starting it costs two dozen calls. */
const COST = { stall: 1, drop: 10, stop: 100 } as const

interface Memory {
  readonly slab: number
  readonly rss: number
}

function memory(): Memory {
  const slab = Number(/SUnreclaim:\s*(\d+)/.exec(readFileSync('/proc/meminfo', 'utf8'))?.[1])
  return { slab: slab * 1024, rss: process.memoryUsage.rss() }
}

async function receives(rig: Rig<PlainGuest>, number: number): Promise<void> {
  const before = rig.completed[RX]
  rig.offer(RX, rig.map(number % 8, 'write'), 4096)
  await rig.packets.send(frame(number, 100, 'host'))
  await rig.until(() => rig.completed[RX] === before + 1)
}

test.each<FaultPolicy>(['stall', 'drop', 'stop'])('%s', { timeout: HOUR }, async (fault) => {
  await using rig = await Rig.open(() => new PlainGuest(), { fault })
  const count = Math.ceil(COUNT / COST[fault])
  let faults = 0
  rig.nic.onFault(() => faults++)
  await receives(rig, 0)
  const before = memory()
  let half = before
  for (let i = 0; i < count; i++) {
    const iova = BAD + (BigInt(i) << 12n)
    // A ring that stands keeps its chain: the guest writes another address into it.
    if (fault !== 'drop' && i > 0) rig.redirect(TX, iova - 4096n, iova)
    else rig.offerSilently(TX, iova, 100)
    if (fault === 'stop' && !rig.nic.started) rig.nic.start()
    rig.nic.kick(TX)
    for (let turns = 0; faults <= i && turns < 100_000; turns++) await turn()
    if (fault === 'drop' && i % 16 === 15) await rig.settle()
    if (fault === 'stop') while (rig.nic.started) await turn()
    if (i === count >>> 1) half = memory()
  }
  const after = memory()
  if (fault !== 'stop') await receives(rig, 1)
  const { purges, dropped, unanswered } = rig.nic.stats()
  const grown = (from: Memory): string =>
    `slab ${((after.slab - from.slab) / MiB).toFixed(1)} MiB, ` +
    `rss ${((after.rss - from.rss) / MiB).toFixed(1)} MiB`
  console.log(
    `policy ${fault}: ${count} addresses, ${faults} faults, ${purges} purges, ${dropped} dropped, ` +
      `${unanswered} remembered; ${grown(before)} more, ${grown(half)} of it in the second half`,
  )
  expect(faults).toBeGreaterThanOrEqual(count)
  expect(unanswered).toBeLessThanOrEqual(256)
  if (fault === 'stall') expect(purges).toBeGreaterThanOrEqual(Math.floor(count / 1025))
  if (fault === 'drop') expect(dropped).toBe(count)
  // A note is some 100 bytes and there are 1024 at most; the rest is what everything else does.
  expect(after.slab - before.slab).toBeLessThan(8 * MiB)
  expect(after.rss - half.rss).toBeLessThan(32 * MiB)
})

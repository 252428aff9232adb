/** Everything that can go wrong between the kernel and the loop: traffic goes on, or says why not. */
import { expect, test } from 'vitest'
import { SystemError } from '../../lib/errors'
import { FAULT_KINDS, faulty } from '../../lib/trace/fault-injector'
import type { FaultKind, FaultyChannel } from '../../lib/trace/fault-injector'
import { frame, ours } from '../support/frames'
import { PlainGuest, RX, Rig, TX } from '../support/rig'

const SEED = Number(process.env['SEED'] ?? 2016)
/** Frames each way, at most 500: pages of their own. */
const ROUNDS = Number(process.env['ROUNDS'] ?? 2)
const TIMEOUT = 60_000 + ROUNDS * 1000
/** Often enough to strike in a few rounds; what is lost is found by the watchdog. */
const CHANCE = 0.35
/** Rounds that are added at most until one has struck. */
const MORE = 20

/** A guest whose invalidation was refused tries again, as hardware's driver does on a timeout. */
function unmapped(rig: Rig<PlainGuest>, iova: bigint, refusals: Error[]): void {
  for (let attempt = 0; attempt < 100; attempt++) {
    try {
      rig.guest.unmap(iova)
      return
    } catch (error) {
      refusals.push(error as Error)
    }
  }
  throw new Error('the invalidation never succeeded')
}

test.each(FAULT_KINDS)(
  '%s: every frame goes out and comes in',
  { timeout: TIMEOUT },
  async (kind) => {
    const chances: Partial<Record<FaultKind, number>> = {}
    const channels: FaultyChannel[] = []
    await using rig = await Rig.open(() => new PlainGuest(), {
      watchdog: 20,
      channel: (inner) => {
        const channel = faulty(inner, { seed: SEED, chances })
        channels.push(channel)
        return channel
      },
    })
    const refusals: Error[] = []
    rig.nic.onFailure((error) => refusals.push(error))
    chances[kind] = CHANCE
    const [channel] = channels
    let rounds = 0
    for (; rounds < ROUNDS || (channel.counts[kind] === 0 && rounds < MORE); rounds++) {
      const i = rounds
      // Pages apart, so that no answer covers two, and one of each queue waits at the same time.
      const out = rig.map(4 * i, 'read')
      const into = rig.map(4 * i + 2, 'write')
      rig.offerSilently(RX, into, 4096)
      rig.offerSilently(TX, out, rig.write(4 * i, frame(i, 100)))
      await rig.packets.send(frame(i, 200, 'host'))
      for (const queue of [RX, TX]) rig.nic.kick(queue)
      await rig.until(() => rig.completed.every((count) => count === i + 1))
      expect(rig.bytes(4 * i + 2).subarray(12, 212)).toEqual(frame(i, 200, 'host'))
      for (const iova of [out, into]) unmapped(rig, iova, refusals)
    }
    channel.calm()
    const sent = Array.from({ length: rounds }, (_, i) => frame(i, 100))
    expect(ours(await rig.packets.sync())).toEqual(sent)
    expect(refusals.filter((error) => !(error instanceof SystemError))).toEqual([])
    const codes = new Set(refusals.map((error) => (error as { code?: string }).code))
    expect([...codes]).toEqual(
      kind.includes(' ') && refusals.length > 0 ? [kind.split(' ')[1]] : [],
    )
    expect(channel.counts[kind]).toBeGreaterThan(0)
    const { healed } = rig.nic.stats()
    console.log(
      `${kind}: ${channel.counts[kind]} injected, traffic went on, ` +
        `${refusals.length} typed errors, ${healed} stalls healed`,
    )
  },
)

/**
 * Misses answered in a Worker: frames as right as ever, while the main thread computes too, and
 * whatever happens to the Worker.
 */
import { readFileSync, readdirSync, readlinkSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Worker } from 'node:worker_threads'
import { expect, test } from 'vitest'
import { NetDriver } from '../../lib/guest/net-driver'
import { compared, frame, frameNumber, identical, ours } from '../support/frames'
import { FakeAddressSpace } from '../../lib/testing/fake-address-space'
import { IntelGuest, PlainGuest, RX, Rig, TX } from '../support/rig'
import { Station } from '../support/station'

const intel = (memory: ConstructorParameters<typeof IntelGuest>[0]): IntelGuest =>
  new IntelGuest(memory)

test.each(['strict', 'lazy', 'static', 'passthrough'] as const)(
  'frames both ways, %s',
  async (mapping) => {
    await using station = await Station.open({ mapping, device: { serve: 'worker' } })
    const sent = Array.from({ length: 300 }, (_, i) => frame(i, 60 + i))
    const received = Array.from({ length: 300 }, (_, i) => frame(i, 60 + i, 'host'))
    for (const each of sent) {
      while (!station.driver.send(each)) await sleep(1)
    }
    await station.packets.send(...received)
    const out = ours(await station.packets.receive(300))
    expect(compared(out, sent)).toEqual(identical(300))
    const got = ours(await station.receive(300))
    expect(compared(got, received)).toEqual(identical(300))
  },
)

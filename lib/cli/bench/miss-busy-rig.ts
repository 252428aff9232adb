/**
 * A device whose misses a Worker answers, and a driver that never leaves its turn of the event
 * loop: what a script that computes is to its network card.
 *
 * More pages are mapped than the device has entries, so that each is asked for again by the time
 * it is used again, and nobody has to take it back.
 */
import { exact } from '../../iotlb/reply-policy'
import { GuestMemory } from '../../memory/guest-memory'
import { moduleParameter } from '../../vhost/module-parameters'
import { VhostNet } from '../../vhost/net'
import { Tap } from '../../vhost/tap'
import { FEATURES, MEMORY_BYTES, MissGuest, RING, TX } from './miss-guest'

const LATE_MS = 10_000

export class BusyRig implements Disposable {
  readonly #open: Disposable[] = []
  readonly #nic: VhostNet
  readonly #guest: MissGuest
  #next = 0

  constructor() {
    try {
      const memory = this.#kept(GuestMemory.allocate(MEMORY_BYTES))
      const live = moduleParameter('vhost/max_iotlb_entries') + RING
      this.#guest = new MissGuest(memory, live)
      const { addressSpace, ring } = this.#guest
      const backend = this.#kept(Tap.open('busy%d'))
      const policy = { reply: exact, lookAhead: 'off', serve: 'worker' } as const
      this.#nic = this.#kept(VhostNet.open({ memory, addressSpace, backend, ...policy }))
      this.#nic.setFeatures(FEATURES)
      this.#nic.setQueue(TX, ring)
      this.#nic.start()
    } catch (error) {
      this[Symbol.dispose]()
      throw error
    }
  }

  /** Sends from a page that the device has to ask for. @returns microseconds until it is sent */
  round(): number {
    const { pages, queue } = this.#guest
    this.#guest.offer(pages[this.#next])
    this.#next = (this.#next + 1) % pages.length
    const started = performance.now()
    this.#nic.kick(TX)
    while (!queue.collect()) {
      if (performance.now() > started + LATE_MS) throw new Error('the frame was not sent')
    }
    return (performance.now() - started) * 1000
  }

  [Symbol.dispose](): void {
    for (const each of this.#open.reverse()) each[Symbol.dispose]()
  }

  #kept<T extends Disposable>(made: T): T {
    this.#open.push(made)
    return made
  }
}

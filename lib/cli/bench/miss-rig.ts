/**
 * One TX ring, pages that are mapped one by one, and a clock at the channel: rounds of a question
 * and its answer, one at a time. The same round is `miss-loop.c`.
 *
 * The parts of the library below `VhostNet` are put together by hand here, so that the channel can
 * be decorated with the clock. Nothing but callbacks runs in a round, so that the event loop is
 * waiting when the question comes.
 */
import { READWRITE } from '../../address'
import type { IotlbChannel } from '../../iotlb/channel'
import { MissHandler } from '../../iotlb/miss-handler'
import type { ReplyPolicy } from '../../iotlb/reply-policy'
import { GuestMemory } from '../../memory/guest-memory'
import { KernelChannel } from '../../vhost/kernel-channel'
import { Tap } from '../../vhost/tap'
import { VhostDevice } from '../../vhost/vhost-device'
import { Vring } from '../../vhost/vring'
import { FEATURES, MEMORY_BYTES, MissGuest, RING_PAGES, TX } from './miss-guest'

const LATE_MS = 10_000
/** How often to look for a frame to be sent before the event loop has its turn. */
const LOOKS = 2000

export interface MissRigOptions {
  /** Mappings of the guest; the device holds as many of them as it can. */
  readonly live: number
  readonly reply: ReplyPolicy
  /** As `VhostNetOptions`; with it a round begins where the last one was answered. */
  readonly busyPollMicroseconds?: number
}

export class MissRig implements Disposable {
  readonly handler: MissHandler
  readonly #open: Disposable[] = []
  /** The frame goes out of one of its buffers after the other. */
  readonly #guest: MissGuest
  readonly #ring: Vring
  readonly #spins: boolean
  #next = 0
  #started = 0
  #waiting = false
  #times: number[] = []
  #left = 0
  #ended: ((error?: Error) => void) | undefined

  constructor({ live, reply, busyPollMicroseconds = 0 }: MissRigOptions) {
    this.#spins = busyPollMicroseconds > 0
    try {
      const memory = this.#kept(GuestMemory.allocate(MEMORY_BYTES))
      const guest = new MissGuest(memory, live)
      this.#guest = guest
      const device = this.#kept(VhostDevice.open())
      const pin = memory.pin(this, device.descriptor)
      device.setFeatures(FEATURES)
      device.setMemory(undefined)
      const channel = new KernelChannel({
        descriptor: device.descriptor,
        version: device.messageVersion,
        busyPollMicroseconds,
      })
      this.handler = new MissHandler({
        channel: this.#timed(channel),
        addressSpace: guest.addressSpace,
        memory,
        reply,
        lookAhead: 'off',
      })
      if (this.#spins) channel.onReadable(this.#finish)
      const tap = Tap.open('miss%d')
      this.#ring = new Vring(TX)
      this.handler.preload(guest.ringPage, guest.ringPage + RING_PAGES - 1, READWRITE)
      device.setRing(TX, guest.ring, 0)
      device.setEvents(TX, this.#ring.events)
      device.setBackend(TX, tap.queues[0])
      for (const page of guest.pages) this.handler.prefetch(page)
      this.#kept({
        [Symbol.dispose]: () => {
          device.setBackend(TX, undefined)
          this.handler.close()
          channel.close()
          device.close()
          pin[Symbol.dispose]()
          this.#ring.close()
          tap.close()
        },
      })
    } catch (error) {
      this[Symbol.dispose]()
      throw error
    }
  }

  /** @returns microseconds of each round, from the kick to the return of the answering write */
  async run(rounds: number): Promise<readonly number[]> {
    this.#times = []
    this.#left = rounds
    const ended = new Promise<void>((resolve, reject) => {
      this.#ended = (error) => {
        if (error === undefined) resolve()
        else reject(error)
      }
    })
    setImmediate(this.#round)
    await ended
    return this.#times
  }

  [Symbol.dispose](): void {
    for (const each of this.#open.reverse()) each[Symbol.dispose]()
  }

  /** Takes one page back, sends from it. */
  readonly #round = (): void => {
    const { pages } = this.#guest
    const page = pages[this.#next++ % pages.length]
    this.handler.invalidatePages(page, page, 'device-tlb')
    this.#guest.offer(page)
    this.#waiting = true
    this.#started = performance.now()
    this.#ring.kick()
  }

  /** After the answer: the next round when the frame is sent. */
  readonly #finish = (): void => {
    if (this.#waiting || this.#left === 0) return
    for (let look = 0; look < LOOKS; look++) {
      if (!this.#guest.queue.collect()) continue
      if (--this.#left === 0) this.#ended?.()
      else if (this.#spins) this.#round()
      else setImmediate(this.#round)
      return
    }
    if (performance.now() > this.#started + LATE_MS) this.#ended?.(new Error('no frame was sent'))
    else setImmediate(this.#finish)
  }

  /** Notes when the first answer after a kick is in the kernel. */
  #timed(channel: KernelChannel): IotlbChannel {
    return {
      limit: channel.limit,
      drain: () => channel.drain(),
      update: (range, hva, access) => {
        channel.update(range, hva, access)
      },
      invalidate: (range) => {
        channel.invalidate(range)
      },
      updatePages: (firstPage, lastPage, hvaPage, access) => {
        channel.updatePages(firstPage, lastPage, hvaPage, access)
        if (!this.#waiting) return
        this.#times.push((performance.now() - this.#started) * 1000)
        this.#waiting = false
        if (!this.#spins) setImmediate(this.#finish)
      },
      invalidatePages: (firstPage, lastPage) => {
        channel.invalidatePages(firstPage, lastPage)
      },
      onReadable: (listener) => channel.onReadable(listener),
    }
  }

  #kept<T extends Disposable>(made: T): T {
    this.#open.push(made)
    return made
  }
}

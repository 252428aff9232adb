/**
 * The miss handler itself, not a model of it, with the guest and the vhost worker let in wherever
 * they can come in beside it: before and after each walk and each message.
 *
 * Every run is a list of choices; all lists to a length are tried, one after the other.
 */
import assert from 'node:assert/strict'
import { describe, expect, it } from 'vitest'
import { READ, READWRITE } from '../../lib/address'
import type { AccessBits } from '../../lib/address'
import { MissHandler } from '../../lib/iotlb/miss-handler'
import { exact, merged } from '../../lib/iotlb/reply-policy'
import type { ReplyPolicy } from '../../lib/iotlb/reply-policy'
import { FakeAddressSpace } from '../../lib/testing/fake-address-space'
import { FakeVhost } from '../../lib/testing/fake-channel'
import type { FakeAccess } from '../../lib/testing/fake-queue'
import { LookedInto, Refusing, hostMemory, hvaOf } from '../iotlb/support'

/** `MODEL=full` tries four times as many. */
const LENGTH = process.env['MODEL'] === 'full' ? 8 : 7

interface Mapping {
  readonly gpaPage: number
  readonly access: AccessBits
  /** One translation of both pages, or one for each. */
  readonly joint: boolean
}

const FIRST: Mapping = { gpaPage: 10, access: READWRITE, joint: true }
/** What the guest may change its tables to; undefined unmaps. */
const CHANGES: readonly (Mapping | undefined)[] = [
  undefined,
  { gpaPage: 20, access: READ, joint: false },
]

interface Policy {
  readonly reply: ReplyPolicy
  readonly split?: boolean
  /** The handler looks into a ring with what the device accesses. */
  readonly ahead?: boolean
  /** A ring to be kept in a table of this many entries. */
  readonly limit?: number
}

/** Where a ring is that is preloaded, in tables and memory. */
const RING_PAGE = 50

/** One history: choices are taken from a list, then always 0; it tells how many there were of each. */
class Run {
  readonly arities: number[] = []
  readonly vhost: FakeVhost
  readonly space = new FakeAddressSpace()
  readonly handler: MissHandler
  #changes = 2
  #accesses = 2
  #now: Mapping | undefined
  /** What each page may be used with, and what may be used once the invalidation is complete. */
  #allowed: (Mapping | undefined)[][] = [[], []]
  #since: (Mapping | undefined)[] | undefined
  readonly #made: { access: FakeAccess; page: number; checked: boolean }[] = []
  readonly #ahead: LookedInto | undefined
  #begun = false

  constructor(
    private readonly choices: readonly number[],
    private readonly length: number,
    private readonly policy: Policy,
  ) {
    const { reply, split = false, ahead = false, limit } = policy
    this.vhost = new FakeVhost({ worker: 'manual', limit: limit ?? 16 })
    const channel = new Refusing(this.vhost)
    channel.refuse = () => {
      this.#beside()
      return undefined
    }
    channel.sent = () => {
      this.#beside()
    }
    const walk = this.space.translatePage.bind(this.space)
    this.space.translatePage = (page, wanted, out) => {
      this.#beside()
      const granted = walk(page, wanted, out)
      this.#beside()
      return granted
    }
    const memory = hostMemory({ gpaPage: 0, pages: 64 })
    this.handler = new MissHandler({ channel, addressSpace: this.space, memory, reply, split })
    if (ahead) this.#ahead = new LookedInto(this.handler, 4)
    this.#map(FIRST)
    if (limit === undefined) return
    this.space.mapPages(RING_PAGE, RING_PAGE, RING_PAGE, READWRITE)
    assert(this.handler.preload(RING_PAGE, RING_PAGE, READWRITE))
  }

  /** The one thread: turns of the loop, and invalidations, in any order. */
  go(): void {
    this.#begun = true
    this.#access(0, 'write')
    for (let step = 0; step < 3; step++) {
      this.vhost.work()
      this.#check()
      if (this.#choose(2) === 0) this.vhost.turn()
      else this.#invalidate(step % 2)
    }
    this.#rest()
  }

  #choose(arity: number): number {
    if (this.arities.length >= this.length) return 0
    const choice = this.choices[this.arities.length] ?? 0
    this.arities.push(arity)
    return choice
  }

  /** What others do at the same time. */
  #beside(): void {
    if (!this.#begun) return
    const what = this.#choose(4)
    if (what === 1) {
      this.vhost.work()
      this.#check()
    } else if (what === 2 && this.#changes > 0) {
      this.#map(CHANGES[--this.#changes])
    } else if (what === 3 && this.#accesses > 0) {
      this.#accesses--
      this.#access(1, this.#accesses === 0 ? 'write' : 'read')
    }
  }

  #map(mapping: Mapping | undefined): void {
    this.space.unmapPages(0, 1)
    if (mapping?.joint === true) this.space.mapPages(0, 1, mapping.gpaPage, mapping.access)
    if (mapping?.joint === false) {
      for (const page of [0, 1]) {
        this.space.mapPages(page, page, mapping.gpaPage + page, mapping.access)
      }
    }
    this.#now = mapping
    for (const allowed of this.#allowed) allowed.push(mapping)
    this.#since?.push(mapping)
  }

  #access(page: number, way: 'read' | 'write'): void {
    this.#ahead?.offer(BigInt(page) << 12n, 1, way === 'write')
    const access = this.vhost.access(BigInt(page) << 12n, way, { queue: page })
    this.#made.push({ access, page, checked: false })
  }

  #invalidate(page: number): void {
    this.#since = [this.#now]
    this.#beside()
    this.space.invalidatePages(page, page)
    this.#allowed[page] = this.#since
    this.#since = undefined
  }

  /** No access went where the tables had been told not to lead any more. */
  #check(): void {
    for (const made of this.#made) {
      const { access, page, checked } = made
      if (checked || access.state !== 'done') continue
      made.checked = true
      const right = this.#allowed[page].some(
        (one) =>
          one !== undefined &&
          hvaOf(one.gpaPage + page) === access.hva &&
          (one.access & access.access) !== 0,
      )
      if (!right) throw new Error(`page ${page} was used after its invalidation was complete`)
    }
  }

  /** When all is quiet, who still sleeps was refused, and the tables would refuse it now. */
  #rest(): void {
    for (let turns = 0; this.vhost.work() > 0 || this.vhost.unread > 0; turns++) {
      if (turns > 50) throw new Error('it does not come to rest')
      this.#check()
      this.vhost.turn()
    }
    this.#check()
    assert.deepEqual(this.handler.shadow.snapshot(), this.vhost.entries)
    if (this.policy.limit !== undefined) {
      assert(this.handler.covers(RING_PAGE, RING_PAGE, READWRITE), 'the ring was evicted')
    }
    const listed = this.handler.unanswered().map(({ iova }) => Number(iova >> 12n))
    for (const { access, page } of this.#made) {
      if (access.state === 'waiting') assert(listed.includes(page), `page ${page} sleeps`)
      if (access.state === 'denied') this.#repair(access, page)
    }
  }

  /** K2: what stopped without a miss goes on once it is repaired and kicked, or is a fault. */
  #repair(access: FakeAccess, page: number): void {
    const outcome = this.handler.repair(page, access.access)
    const granted = this.#now !== undefined && (this.#now.access & access.access) !== 0
    assert.equal(outcome, granted ? 'repaired' : 'fault')
    this.vhost.kick(page)
    this.vhost.work()
    if (granted) assert.equal(access.state, 'done')
  }
}

/** Runs every list of choices. @returns how many there were */
function all(length: number, policy: Policy): number {
  let choices: number[] = []
  for (let runs = 1; ; runs++) {
    const run = new Run(choices, length, policy)
    try {
      run.go()
    } catch (error) {
      throw new Error(`with the choices ${choices.join(' ')}`, { cause: error })
    }
    choices = run.arities.map((_, at) => choices[at] ?? 0)
    while (
      choices.length > 0 &&
      choices[choices.length - 1] === run.arities[choices.length - 1] - 1
    ) {
      choices.pop()
    }
    if (choices.length === 0) return runs
    choices[choices.length - 1]++
  }
}

describe('the miss handler, with guest and worker let in everywhere', () => {
  const policies: readonly (readonly [string, Policy])[] = [
    ['exact', { reply: exact }],
    ['exact and split', { reply: exact, split: true }],
    ['merged', { reply: merged(8192) }],
    ['merged and split', { reply: merged(8192), split: true }],
    ['exact, looking ahead', { reply: exact, ahead: true }],
    ['merged and split, looking ahead', { reply: merged(8192), split: true, ahead: true }],
    ['exact, with a ring kept in a table of two', { reply: exact, limit: 2 }],
    ['looking ahead, with a ring kept in a table of two', { reply: exact, ahead: true, limit: 2 }],
  ]
  it.each(policies)(
    '%s: no stale access, nobody sleeps for ever',
    (_, policy) => {
      expect(all(LENGTH, policy)).toBeGreaterThan(5000)
    },
    120_000,
  )
})

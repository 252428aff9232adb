/**
 * Misses answered in a Worker, so that a main thread that computes does not stall its device.
 *
 * To the pair of queues it is a miss handler (`MissLoop`). There are two of them under it, one in
 * each thread, over one device table: the Worker's answers misses, this side's does all that its
 * callers ask, and what the address space's invalidations ask, in the caller's own turn. Why no
 * answer can come after its invalidation is argued in `iotlb/shared-table.ts`.
 *
 * What depends on this file: the twin's root and switches are published in the same turn as the
 * invalidation that follows each change of them; SERVING is taken away in the turn that empties
 * the table at a stop, so that nothing is granted after it.
 *
 * A Worker that ends unasked (an error, `terminate()`) may have died in its turn: this side then
 * takes everything back and serves on its own event loop, and the queues are kicked, because what
 * the Worker had read and not answered is asked again only then (K1).
 */
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { Worker } from 'node:worker_threads'
import type { AccessBits } from '../address'
import { LAST_PAGE, pageOf } from '../address'
import { InvalidState } from '../errors'
import { MessageLog, TOLD } from '../iotlb/message-log'
import { MissHandler } from '../iotlb/miss-handler'
import type { MissHandlerOptions, RingOutlook } from '../iotlb/miss-handler'
import { exact, policyName } from '../iotlb/reply-policy'
import type { ReplyPolicyName } from '../iotlb/reply-policy'
import type { Shadow } from '../iotlb/shadow'
import { SharedTable } from '../iotlb/shared-table'
import { count, namedCounters } from '../iotlb/stats'
import type { MissStats } from '../iotlb/stats'
import { hasEnded } from '../iotlb/thread-identity'
import { Turnstile } from '../iotlb/turnstile'
import type {
  AddressSpace,
  InvalidationSource,
  Notifier,
  SharedTranslation,
} from '../memory/address-space'
import type { GuestMemory } from '../memory/guest-memory'
import type { DmaView } from '../virtio/dma-view'
import type { RingAddresses } from '../virtio/ring-layout'
import type { KernelChannel } from './kernel-channel'
import { STAGE, WORD, missWords } from './miss-thread'
import type { FromMissThread, MissThreadStart, MissWords, ToMissThread } from './miss-thread'
import type { MessageVersion } from './uapi'

/** What a pair of queues needs of whoever answers its misses. */
export type MissLoop = Pick<
  MissHandler,
  | 'asked'
  | 'close'
  | 'covers'
  | 'flush'
  | 'forgetMisses'
  | 'lookInto'
  | 'preload'
  | 'renew'
  | 'repair'
  | 'reset'
  | 'retry'
  | 'shadow'
  | 'stats'
  | 'waiting'
  | 'waits'
>

export interface MissWorkerOptions extends Omit<MissHandlerOptions, 'channel' | 'memory'> {
  readonly channel: KernelChannel
  readonly memory: GuestMemory
  /** The number of the channel's descriptor, and how its messages look. */
  readonly fd: number
  readonly version: MessageVersion
  readonly busyPollMicroseconds: number | undefined
  /** The Worker ended unasked, and its misses are answered here from now on. */
  readonly onTakeOver: () => void
}

/** Milliseconds until a Worker that does not start, or does not end, is given up. */
const START_TIMEOUT = 60_000
const END_TIMEOUT = 5_000
const LOOK_AFTER = 20

export class MissWorker implements MissLoop, Notifier {
  readonly #options: MissWorkerOptions
  readonly #translation: SharedTranslation
  readonly #words: MissWords
  readonly #table: SharedTable
  readonly #handler: MissHandler
  readonly #worker: Worker
  #rings = 0
  #closed = false
  #ended = false

  /**
   * Starts the Worker, and waits for it: some tens of milliseconds.
   * @throws InvalidState ERR_UNSUPPORTED for an address space that can't be shared, a reply policy
   *   that is not of this library, or where the Worker does not start
   */
  constructor(options: MissWorkerOptions) {
    this.#options = options
    const reply = sharedPolicy(options)
    this.#translation = sharedSpace(options.addressSpace)
    this.#translation.publish()
    this.#words = missWords()
    const { control, log } = this.#words
    this.#table = new SharedTable({
      channel: options.channel,
      turnstile: new Turnstile({ words: control, otherIsGone: () => this.#isGone() }),
      log: new MessageLog(log),
      answers: false,
    })
    this.#worker = this.#start(reply)
    this.#handler = new MissHandler({
      ...options,
      channel: this.#table,
      addressSpace: this.#notified(options.addressSpace),
    })
    this.#table.attach(this.#handler)
    this.#worker.on('message', this.#take)
    this.#worker.on('error', (error) => {
      process.emitWarning(error)
    })
    this.#worker.on('exit', () => {
      this.#takeOver()
    })
  }

  get shadow(): Shadow {
    return this.#table.look(() => this.#handler.shadow)
  }

  get unknownMessages(): number {
    return this.#words.control[WORD.unknownMessages]
  }

  /** As the miss handler's. From the first one on, misses are answered. */
  preload(firstPage: number, lastPage: number, wanted: AccessBits): boolean {
    const granted = this.#table.turn(() => {
      this.#words.control[WORD.serving] = 1
      return this.#handler.preload(firstPage, lastPage, wanted)
    })
    if (wanted !== 0) this.#post({ kind: 'whole', firstPage, lastPage, wanted })
    return granted
  }

  /** The Worker looks into the ring when it answers a miss, this side at a kick. */
  lookInto(view: DmaView, ring: RingAddresses, availIndex: number): RingOutlook {
    const outlook = this.#handler.lookInto(view, ring, availIndex)
    const id = this.#rings++
    this.#post({ kind: 'ring', id, ring, availIndex })
    const turns = this.#options.lookAhead === 'on-kick'
    return {
      kicked: () => {
        if (!turns) return
        this.#table.turn(() => {
          outlook.kicked()
        })
      },
      offering: (index) => {
        if (!turns) return
        this.#table.turn(() => {
          outlook.offering(index)
        })
      },
      [Symbol.dispose]: () => {
        outlook[Symbol.dispose]()
        this.#post({ kind: 'unring', id })
      },
    }
  }

  covers(firstPage: number, lastPage: number, wanted: AccessBits): boolean {
    return this.#table.look(() => this.#handler.covers(firstPage, lastPage, wanted))
  }

  renew(page: number, wanted: AccessBits): boolean {
    return this.#table.turn(() => this.#handler.renew(page, wanted))
  }

  /** How many misses were read so far, and how many wait for a mapping now. */
  get asked(): number {
    return this.#handler.asked + this.#words.counters[count.misses]
  }

  get waiting(): number {
    return this.#handler.waiting + this.#words.control[WORD.unanswered]
  }

  /** Which pages the Worker's misses wait for is known there: here any page may be one. */
  waits(page: number): boolean {
    return this.#words.control[WORD.unanswered] > 0 || this.#handler.waits(page)
  }

  repair(page: number, wanted: AccessBits): 'repaired' | 'granted' | 'fault' {
    return this.#table.turn(() => this.#handler.repair(page, wanted))
  }

  flush(): void {
    this.#table.turn(() => {
      this.#handler.flush()
    })
  }

  /** Also in the Worker, some time later. @returns how many were answered here */
  retry(firstPage = 0, lastPage = LAST_PAGE): number {
    const answered = this.#table.turn(() => {
      this.#table.tell(TOLD.retry, firstPage, lastPage)
      return this.#handler.retry(firstPage, lastPage)
    })
    this.#post({ kind: 'look' })
    return answered
  }

  /** From here on nothing is granted, until the next `preload`. */
  reset(): void {
    const { control } = this.#words
    this.#table.look(() => {
      if (control[WORD.serving] !== 0) {
        control[WORD.serving] = 0
        this.#handler.flush()
      }
      this.#handler.reset()
      this.#table.emptied()
    })
  }

  forgetMisses(): void {
    this.#table.look(() => {
      this.#handler.forgetMisses()
      this.#words.control[WORD.unanswered] = 0
      this.#table.tell(TOLD.forget)
    })
  }

  invalidate(...[range, source]: Parameters<Notifier['invalidate']>): void {
    this.invalidatePages(pageOf(range.first), pageOf(range.last), source)
  }

  /** The address space's notification. @throws SystemError as the miss handler's */
  invalidatePages(firstPage: number, lastPage: number, source: InvalidationSource): void {
    const table = this.#table
    let waiting = false
    try {
      table.enter()
    } catch (error) {
      table.look(() => {
        this.#translation.publish()
      })
      throw error
    }
    try {
      this.#translation.publish()
      this.#handler.invalidatePages(firstPage, lastPage, source)
      waiting = this.#words.control[WORD.unanswered] !== 0
      if (waiting) table.tell(TOLD.retry, firstPage, lastPage)
    } finally {
      table.leave()
    }
    if (waiting) this.#post({ kind: 'look' })
  }

  /** What both threads counted. */
  stats(): MissStats {
    const own = this.#closed ? this.#handler.stats() : this.#table.look(() => this.#handler.stats())
    const { control, counters } = this.#words
    const sum: Record<string, number> = { ...own }
    for (const [name, value] of Object.entries(namedCounters(counters))) sum[name] += value
    return {
      ...(sum as unknown as MissStats),
      unanswered: this.waiting,
      forgotten: own.forgotten + control[WORD.forgotten],
    }
  }

  /** Whether the Worker keeps the event loop alive. */
  reference(referenced: boolean): void {
    if (referenced) this.#worker.ref()
    else this.#worker.unref()
  }

  /**
   * When it returns, the Worker has let go of descriptor and memory, or was told to end at once.
   */
  close(): void {
    if (this.#closed) return
    this.#closed = true
    this.#handler.close()
    this.#translation[Symbol.dispose]()
    this.#post({ kind: 'quit' })
    if (this.#waitWhile(STAGE.ready, END_TIMEOUT) === STAGE.ready) void this.#worker.terminate()
    this.#worker.unref()
  }

  #start(reply: ReplyPolicyName): Worker {
    const { fd, version, channel, memory, busyPollMicroseconds } = this.#options
    const { lookAhead, fault, paranoid, split } = this.#options
    const { module, export: name, data } = this.#translation
    const workerData: MissThreadStart = {
      words: this.#words,
      fd,
      version,
      limit: channel.limit,
      busyPollMicroseconds,
      memory: memory.share(),
      translation: { module, export: name, data },
      policy: { reply, lookAhead, fault, paranoid, split },
    }
    try {
      const worker = new Worker(threadEntry(), { workerData, execArgv: [], name: 'miss-worker' })
      worker.unref()
      if (this.#waitWhile(STAGE.starting, START_TIMEOUT) === STAGE.ready) return worker
      worker.on('error', () => undefined)
      void worker.terminate()
      const { failure } = this.#words
      const length = failure.indexOf(0)
      const why = Buffer.from(failure.slice(0, length < 0 ? undefined : length)).toString()
      throw unsupported(`the Worker did not start: ${why === '' ? 'it says nothing' : why}`)
    } catch (error) {
      this.#translation[Symbol.dispose]()
      throw error
    }
  }

  /** Blocks this thread while the Worker is at a stage. @returns the stage it is at */
  #waitWhile(stage: number, timeout: number): number {
    const { control } = this.#words
    const end = performance.now() + timeout
    for (;;) {
      const now = Atomics.load(control, WORD.stage)
      if (now !== stage || performance.now() >= end || this.#isGone()) return now
      Atomics.wait(control, WORD.stage, stage, LOOK_AFTER)
    }
  }

  #isGone(): boolean {
    const { control } = this.#words
    if (this.#ended) return true
    const thread = control[WORD.thread]
    return thread !== 0 && hasEnded({ thread, born: control[WORD.born] })
  }

  /** The address space, with this object in the handler's place among the notifiers. */
  #notified(space: AddressSpace): AddressSpace {
    return {
      get state() {
        return space.state
      },
      get generation() {
        return space.generation
      },
      translate: (at, wanted) => space.translate(at, wanted),
      translatePage: (page, wanted, out) => space.translatePage(page, wanted, out),
      notify: () => space.notify(this),
    }
  }

  readonly #take = (message: FromMissThread): void => {
    Atomics.sub(this.#words.control, WORD.posted, 1)
    if (this.#closed) return
    if (message.kind === 'refused') {
      this.#translation.record(message.refusal)
      return
    }
    const { onFault, onStop, onDrop, onObsolete } = this.#options
    if (message.kind === 'obsolete') {
      onObsolete?.()
      return
    }
    const listener = { fault: onFault, stop: onStop, drop: onDrop }[message.what]
    listener?.(message.miss)
  }

  #takeOver(): void {
    this.#ended = true
    if (this.#closed) return
    process.emitWarning('the miss worker has ended; the event loop answers misses from now on')
    this.#words.control[WORD.unanswered] = 0
    this.#table.takeOver()
    if (this.#words.control[WORD.serving] === 0) return
    this.flush()
    this.#options.onTakeOver()
  }

  #post(message: ToMissThread): void {
    if (this.#ended) return
    this.#worker.postMessage(message)
    Atomics.add(this.#words.control, WORD.sent, 1)
  }
}

/** The compiled file, also where this one is not compiled. */
function threadEntry(): string {
  const folder = __filename.endsWith('.ts') ? join(__dirname, '../../dist/vhost') : __dirname
  const entry = join(folder, 'miss-worker-thread.js')
  if (!existsSync(entry)) throw unsupported(`there is no ${entry}: build the library`)
  return entry
}

function sharedPolicy({ reply }: MissWorkerOptions): ReplyPolicyName {
  const name = policyName(reply ?? exact)
  if (name !== undefined) return name
  throw unsupported(
    'a reply policy of your own is a function of this thread: use exact or merged()',
  )
}

function sharedSpace(space: AddressSpace): SharedTranslation {
  if (space.share !== undefined) return space.share()
  throw unsupported('this address space can translate in its own thread only: it has no share()')
}

function unsupported(why: string): InvalidState {
  return new InvalidState('ERR_UNSUPPORTED', `serve: 'worker' is not possible here: ${why}`)
}

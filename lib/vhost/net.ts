/**
 * vhost-net as one network device: a pair of queues for each queue of a tap.
 *
 * It is what a virtio transport or a driver in this process talks to: features, queues, start,
 * stop, kick, call. Translations come from the address space that it is given; each pair has its
 * own table in the kernel and its own miss handler, and every invalidation reaches them all.
 * The MAC address, the control queue and the link status are no business of vhost: they belong to
 * whoever shows the device to a guest.
 */
import type { InspectOptions } from 'node:util'
import { InvalidState, asError } from '../errors'
import { plain, shown, summary } from '../inspect'
import { requesterName } from '../iommu/iommu'
import { diagnostics, observed } from '../iotlb/diagnostics'
import type { DiagnosticSource, FaultMessage } from '../iotlb/diagnostics'
import { MissHandler } from '../iotlb/miss-handler'
import type { ShadowEntry } from '../iotlb/shadow'
import type { UnansweredMiss } from '../iotlb/unanswered'
import type { GuestMemory } from '../memory/guest-memory'
import type { Descriptor } from '../native'
import { featureNames } from '../virtio/net'
import type { NetDevice } from '../virtio/net-device'
import type { RingAddresses } from '../virtio/ring-layout'
import { DirtyLog } from './dirty-log'
import { HEADER_BY_VHOST, checkAcknowledged, configure, offered } from './net-features'
import { NetPair } from './net-pair'
import { opened } from './net-options'
import type { Opened, VhostNetOptions } from './net-options'
import { sum } from './net-stats'
import type { VhostNetStats } from './net-stats'
import type { StallReport } from './stall'
import type { Tap } from './tap'
import type { VhostDevice } from './vhost-device'
import type { RingEvents } from './vhost-device'
import type { QueueState } from './vring'
import { systemClock } from './watchdog'
import type { Clock } from './watchdog'

export type { QueueState } from './vring'
export type { StallReason, StallReport } from './stall'
export type { Clock } from './watchdog'
export type { ChannelDecorator, HandlerMaker, VhostNetOptions } from './net-options'
export type { VhostNetStats } from './net-stats'

/** What `vhost-iotlb:stall` publishes. */
export type StallMessage = DiagnosticSource & StallReport

const WATCHDOG_MILLISECONDS = 1000

type Listener<T> = (value: T) => void

export class VhostNet implements NetDevice, Disposable {
  /** All that a driver may acknowledge: bits of virtio. */
  readonly features: bigint
  /** The source id of the device, where it is known. */
  readonly requester: number | undefined
  readonly #pairs: readonly NetPair[]
  readonly #devices: readonly VhostDevice[]
  readonly #taps: readonly Tap[]
  readonly #holds: readonly Disposable[]
  readonly #calls = new Map<number, Set<() => void>>()
  readonly #stalls = new Set<Listener<StallReport>>()
  readonly #faults = new Set<Listener<UnansweredMiss>>()
  readonly #memory: GuestMemory
  #log: DirtyLog | undefined
  readonly #failures = new Set<Listener<Error>>()
  readonly #clock: Clock
  readonly #period: number
  #watchdog: Disposable | undefined
  #acknowledged: bigint | undefined
  #started = false
  #closed = false

  private constructor(options: VhostNetOptions, opened: Opened) {
    this.#memory = options.memory
    this.#taps = opened.taps
    this.#holds = opened.holds
    this.#devices = opened.devices
    this.#clock = options.clock ?? systemClock
    this.#period = options.watchdog ?? WATCHDOG_MILLISECONDS
    this.requester = options.requester ?? options.addressSpace?.requester
    this.features = offered(options.addressSpace !== undefined, opened.devices, opened.taps)
    const pairs: NetPair[] = []
    try {
      for (const [i, device] of opened.devices.entries()) {
        pairs.push(new NetPair(this.#pairOptions(options, device, i, opened.sockets[i])))
      }
    } catch (error) {
      for (const pair of pairs) pair.close()
      throw error
    }
    this.#pairs = pairs
  }

  /**
   * @throws SystemError as `VhostDevice.open`; ENOTSUP where an address space is given and the
   *   kernel has no IOTLB
   * @throws RangeError for more pairs than the backend has queues, a period that is no time
   * @throws InvalidState ERR_IN_USE for a tap that another device has, ERR_UNSUPPORTED where the
   *   module was loaded with experimental_zcopytx=1, or where `serve: 'worker'` is not possible
   */
  static open(options: VhostNetOptions): VhostNet {
    return opened(options, (parts) => new VhostNet(options, parts))
  }

  /** Queues: two for each pair, the receiving one first. */
  get queues(): number {
    return this.#pairs.length * 2
  }

  get started(): boolean {
    return this.#started
  }

  /** What the driver acknowledged; undefined before `setFeatures`. */
  get acknowledged(): bigint | undefined {
    return this.#acknowledged
  }

  /**
   * What the driver acknowledged. Everything that the device has in its tables is dropped.
   * @throws RangeError for bits that are not offered, or that require one that is missing
   * @throws InvalidState ERR_ALREADY_STARTED; SystemError E2BIG for memory of too many regions
   */
  setFeatures(bits: bigint): void {
    this.#open()
    if (this.#started) throw alreadyStarted()
    checkAcknowledged(bits, this.features)
    this.#acknowledged = undefined
    for (const [i, pair] of this.#pairs.entries()) {
      const header = this.#tap(i).vnetHeader ? 0n : HEADER_BY_VHOST
      pair.setFeatures((bits & this.#devices[i].features) | header)
    }
    for (const tap of this.#taps) if (tap.vnetHeader) configure(tap, bits)
    this.#acknowledged = bits
  }

  /**
   * Where a queue is: iovas, or gpas where ACCESS_PLATFORM was not acknowledged. Even queues
   * receive, odd ones transmit. A started device takes it for a queue that was reset.
   * @throws RangeError for a size or an address that no ring has
   */
  setQueue(index: number, ring: RingAddresses, state?: QueueState): void {
    this.#open()
    this.#ring(index).configure({ ...ring }, state)
    if (this.#started) this.#pairs[index >> 1].startRing(index & 1)
  }

  /** The index of the next chain of a stopped queue. */
  queueState(index: number): QueueState {
    return { availIndex: this.#ring(index).base }
  }

  /** Stops one queue and forgets its place (VIRTIO_F_RING_RESET); `setQueue` starts it again. */
  resetQueue(index: number): void {
    this.#open()
    this.#ring(index)
    this.#pairs[index >> 1].resetRing(index & 1)
  }

  /**
   * All queues that have a place begin to work. It happens as a whole or not at all.
   * @throws InvalidState ERR_NOT_CONFIGURED, ERR_ALREADY_STARTED
   * @throws RangeError for a ring that is not in guest memory, where its addresses are gpas
   * @throws SystemError EFAULT for a used ring that is not mapped for reading and writing
   */
  start(): void {
    this.#open()
    if (this.#started) throw alreadyStarted()
    if (this.#acknowledged === undefined) {
      throw new InvalidState('ERR_NOT_CONFIGURED', 'no features: setFeatures()')
    }
    const mine = this.#pairs.filter(({ rings }) => rings.some(({ ring }) => ring !== undefined))
    if (mine.length === 0) throw new InvalidState('ERR_NOT_CONFIGURED', 'no queue: setQueue()')
    try {
      for (const pair of mine) pair.start()
      this.#started = true
      this.#watch()
    } catch (error) {
      for (const pair of mine) pair.stop()
      throw error
    }
  }

  /** When it returns, the kernel uses neither rings nor buffers. `start()` goes on from there. */
  stop(): void {
    this.#started = false
    this.#unwatch()
    for (const pair of this.#pairs) pair.stop()
  }

  /** The driver has published chains. Without an effect on a queue that is not started. */
  kick(index: number): void {
    const ring = this.#ring(index)
    if (!ring.running) return
    ring.outlook?.kicked()
    ring.kick()
  }

  /**
   * The driver is about to publish chains, up to this free-running index. With look-ahead `on-kick`
   * their buffers are granted before the kernel can see them.
   * @throws SystemError when the kernel refuses a grant
   */
  offering(index: number, availIndex: number): void {
    const ring = this.#ring(index)
    if (ring.running) ring.outlook?.offering(availIndex)
  }

  /**
   * The kernel notes each page of guest memory that it writes, buffers and used rings, until the
   * log is closed. It may be started and closed at any time, also while the device runs.
   * @throws InvalidState ERR_ALREADY_STARTED while there is one; SystemError ENOMEM
   */
  startDirtyLog(): DirtyLog {
    this.#open()
    if (this.#log !== undefined) {
      throw new InvalidState('ERR_ALREADY_STARTED', 'there is a log: close it first')
    }
    const end = Number(this.#memory.regions.at(-1)!.range.last) + 1
    const log = new DirtyLog(this.#devices, end, () => {
      this.#log = undefined
      for (const pair of this.#pairs) pair.setLog(undefined)
    })
    this.#log = log
    try {
      for (const pair of this.#pairs) pair.setLog(log)
    } catch (error) {
      log.close()
      throw error
    }
    return log
  }

  /**
   * The eventfds of a queue, borrowed: for a machine whose guest kicks, and is called, without this
   * process. While somebody else takes the calls, `onCall` and the count of calls may hear of none.
   */
  events(index: number): RingEvents {
    return this.#ring(index).events
  }

  /** Called when the kernel calls the driver for a queue. */
  onCall(index: number, listener: () => void): Disposable {
    this.#ring(index)
    const listeners = this.#calls.get(index) ?? new Set()
    this.#calls.set(index, listeners)
    return added(listeners, listener)
  }

  /** Called for a queue that stood still, after what could be mended was. */
  onStall(listener: Listener<StallReport>): Disposable {
    return added(this.#stalls, listener)
  }

  /**
   * Called with a queue that ticked its error eventfd or lost its backend, where nothing could be
   * mended.
   */
  onError(listener: Listener<number>): Disposable {
    return this.onStall(({ queue, noticed, reason, healed }) => {
      if (!healed && (noticed === 'error' || reason === 'backend-gone')) listener(queue)
    })
  }

  /** Called for each miss that the address space refuses. */
  onFault(listener: Listener<UnansweredMiss>): Disposable {
    return added(this.#faults, listener)
  }

  /**
   * Called with what the kernel refused while misses were answered. The loop goes on: a miss that
   * was left is answered later. Without a listener the error is thrown in a turn of its own.
   */
  onFailure(listener: Listener<Error>): Disposable {
    return added(this.#failures, listener)
  }

  /** Started, it keeps the event loop alive, unless this was called. */
  unref(): void {
    for (const pair of this.#pairs) pair.reference(false)
  }

  ref(): void {
    for (const pair of this.#pairs) pair.reference(true)
  }

  /** What the kernel holds, pair by pair, the oldest entry of each first. */
  entries(): readonly ShadowEntry[] {
    return this.#pairs.flatMap(({ handler }) => handler?.shadow.snapshot() ?? [])
  }

  stats(): VhostNetStats {
    return sum(this.#pairs)
  }

  /** Stops, and lets go of the tap and the memory. */
  close(): void {
    if (this.#closed) return
    this.#closed = true
    this.#started = false
    this.#unwatch()
    try {
      this.#log?.close()
      for (const pair of this.#pairs) pair.close()
    } finally {
      for (const hold of this.#holds) hold[Symbol.dispose]()
    }
  }

  [shown](depth: number, options: InspectOptions): string {
    const fields = {
      state: this.#closed ? 'closed' : this.#started ? 'started' : 'stopped',
      requester: this.requester === undefined ? undefined : plain(requesterName(this.requester)),
      taps: this.#taps.map(({ name }) => name),
      queues: this.queues,
      features: featureNames(this.#acknowledged ?? 0n),
      stats: counted(this.stats()),
    }
    return summary('VhostNet', fields, depth, options)
  }

  [Symbol.dispose](): void {
    this.close()
  }

  #pairOptions(
    options: VhostNetOptions,
    device: VhostDevice,
    index: number,
    socket: Descriptor,
  ): ConstructorParameters<typeof NetPair>[0] {
    const { memory, addressSpace, reply, lookAhead, split, fault, paranoid, channel, handler } =
      options
    const source = { requester: this.requester, pair: index }
    return {
      device,
      firstQueue: index * 2,
      socket,
      memory,
      onCall: (queue) => {
        for (const listener of this.#calls.get(queue) ?? []) listener()
      },
      onStall: (report) => {
        const message: StallMessage = { ...source, ...report }
        if (diagnostics.stall.hasSubscribers) diagnostics.stall.publish(message)
        for (const listener of this.#stalls) listener(report)
      },
      onFault: (miss) => {
        const message: FaultMessage = { ...source, ...miss }
        if (diagnostics.fault.hasSubscribers) diagnostics.fault.publish(message)
        for (const listener of this.#faults) listener(miss)
      },
      onStop: () => {
        queueMicrotask(() => {
          if (!this.#closed) this.stop()
        })
      },
      addressSpace,
      decorate: (kernel) => {
        const watched = observed(kernel, source)
        return channel?.(watched, index) ?? watched
      },
      handle: (made) => handler?.(made, index) ?? new MissHandler(made),
      clock: this.#clock,
      backend: () => this.#tap(index).state,
      onFailure: this.#fail,
      policy: { reply, lookAhead, split, fault, paranoid },
      serve: options.serve ?? 'loop',
      busyPollMicroseconds: options.busyPollMicroseconds,
    }
  }

  readonly #fail = (error: unknown): void => {
    const reason = asError(error)
    for (const listener of this.#failures) listener(reason)
    if (this.#failures.size > 0) return
    queueMicrotask(() => {
      throw reason
    })
  }

  #watch(): void {
    if (this.#period === 0) return
    this.#watchdog = this.#clock.every(this.#period, () => {
      for (const pair of this.#pairs) pair.doctor.look()
    })
  }

  #unwatch(): void {
    this.#watchdog?.[Symbol.dispose]()
    this.#watchdog = undefined
  }

  #tap(pair: number): Tap {
    return this.#taps.length === 1 ? this.#taps[0] : this.#taps[pair]
  }

  #ring(index: number): NetPair['rings'][number] {
    if (Number.isInteger(index) && index >= 0 && index < this.queues) {
      return this.#pairs[index >> 1].rings[index & 1]
    }
    throw new RangeError(`queues are 0 to ${this.queues - 1}: ${index}`)
  }

  #open(): void {
    if (this.#closed) throw new InvalidState('ERR_CLOSED', 'this device is closed')
  }
}

/** What has been counted; most counters are 0 on most devices. */
function counted(stats: VhostNetStats): Record<string, number> {
  return Object.fromEntries(Object.entries(stats).filter(([, count]) => count !== 0))
}

function added<T>(set: Set<T>, member: T): Disposable {
  set.add(member)
  return { [Symbol.dispose]: () => void set.delete(member) }
}

function alreadyStarted(): InvalidState {
  return new InvalidState('ERR_ALREADY_STARTED', 'the device is started: stop() it first')
}

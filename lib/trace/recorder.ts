/**
 * Writes down what a miss handler is told, asks and answers, and what happens around it.
 *
 * Everything is a decorator: of the channel, of the address space, of the tables' memory, of the
 * IOMMU's registers, of the network device (`recorded-device.ts`). The handler itself is not
 * instrumented; `RecordedHandler` is one whose calls are seen as they come in. What is written is
 * enough to run the handler again (`replayer.ts`). One recorder has one clock and one sink, for as
 * many devices as there are.
 */
import { accessBits, pageOf } from '../address'
import type { Access, AccessBits, Hva, Iova, Range } from '../address'
import type { MmioDevice, Requester } from '../iommu/iommu'
import type { TableMemory } from '../iommu/table-memory'
import type { IotlbChannel, Miss } from '../iotlb/channel'
import { MissHandler } from '../iotlb/miss-handler'
import type { MissHandlerOptions } from '../iotlb/miss-handler'
import type { HostMemory, HostRegion } from '../iotlb/reply'
import { exact } from '../iotlb/reply-policy'
import type { GrowingReply, ReplyPolicy } from '../iotlb/reply-policy'
import type {
  AddressSpace,
  Fault,
  InvalidationSource,
  Notifier,
  PageTranslation,
  Translation,
} from '../memory/address-space'
import { SOURCES, traceClock } from './event'
import type { TraceClock, TraceSink } from './event'
import { RecordedDevice } from './recorded-device'
import type { RecordableDevice, RecordedDeviceOptions } from './recorded-device'

export const FLAG = { paranoid: 1, split: 2 } as const
/** Where the address space does not say whose it is. */
const NOBODY = 0x10000
const UNKNOWN_ERRNO = 5

export interface RecordingOptions {
  readonly clock?: TraceClock
}

/** What an IOMMU's driver needs of it. */
type Registers = MmioDevice & {
  addressSpace(requester: Requester): AddressSpace
  setAts?(requester: Requester, enabled: boolean): void
}

export class Recorder {
  readonly clock: TraceClock
  readonly #sink: TraceSink
  /** One for each IOMMU, because the drivers of its devices share what they know of it. */
  readonly #iommus = new WeakMap<Registers, Registers>()
  #walking = 0
  #devices = 0

  constructor(sink: TraceSink, { clock = traceClock() }: RecordingOptions = {}) {
    this.#sink = sink
    this.clock = clock
  }

  /** One network device, of as many pairs of queues as it has. */
  port(): RecordedPort {
    const ids: number[] = []
    return new RecordedPort(this, this.#sink, (pair) => (ids[pair] ??= this.#devices++))
  }

  /** Stands between guests' drivers and their IOMMU: writes down register writes. */
  iommu(iommu: Registers): Registers {
    const known = this.#iommus.get(iommu) ?? this.#recordedRegisters(iommu)
    this.#iommus.set(iommu, known)
    return known
  }

  #recordedRegisters(iommu: Registers): Registers {
    const { clock } = this
    const sink = this.#sink
    return {
      addressSpace: (requester) => iommu.addressSpace(requester),
      setAts: (requester, enabled) => iommu.setAts?.(requester, enabled),
      read: (offset, size) => iommu.read(offset, size),
      write: (offset, value, size) => {
        sink({ kind: 'register', at: clock(), offset, size, value: BigInt.asUintN(64, value) })
        iommu.write(offset, value, size)
      },
    }
  }

  /**
   * Guest memory as an IOMMU sees it: writes down each entry that it reads in a walk for a device.
   * A region of it ends with the entry, so that the walker asks again for the next one. What is
   * read outside of those (the invalidation queue, a walk of the library's own) is written down
   * where it is another value than before: a unit may keep what it worked out of an entry that is
   * the same.
   */
  tables(memory: TableMemory): TableMemory {
    const known = new Map<number, bigint>()
    return {
      find: (at) => {
        const region = memory.find(at)
        if (region === undefined) return undefined
        const gpa = at - (at % 8)
        const word = (gpa - region.start) / 4
        const [low, high] = [region.u32[word], region.u32[word + 1]]
        const value = (BigInt(high) << 32n) | BigInt(low)
        if (this.#walking === 0 && known.get(gpa) === value) return region
        known.set(gpa, value)
        this.#sink({ kind: 'entry', at: this.clock(), gpa, value })
        if (this.#walking === 0) return region
        return { start: gpa, end: gpa + 8, u32: region.u32.subarray(word) }
      },
    }
  }

  /** @internal Runs a walk; the entries that it reads are written down. */
  walk(run: () => boolean): boolean {
    this.#walking++
    try {
      return run()
    } finally {
      this.#walking--
    }
  }
}

/** What is recorded of one network device: give `options` to `VhostNet.open`, then wrap it. */
export class RecordedPort {
  constructor(
    private readonly recorder: Recorder,
    private readonly sink: TraceSink,
    private readonly idOf: (pair: number) => number,
  ) {}

  /** Makes the miss handler of a pair. */
  readonly handler = (options: MissHandlerOptions, pair = 0): MissHandler => {
    return recordedHandler(options, this.recorder, this.sink, this.idOf(pair))
  }

  /** To be spread into the options of `VhostNet.open`. */
  readonly options = { handler: this.handler } as const

  /** Rings, kicks, calls, chains, and frames where they are wanted. */
  device(nic: RecordableDevice, options: RecordedDeviceOptions): RecordableDevice {
    return new RecordedDevice(
      nic,
      { ...options, sink: this.sink, clock: this.recorder.clock },
      this.idOf,
    )
  }
}

/**
 * A channel whose messages are written down: what is read as `drain` and `miss`, what is written as
 * `update` and `invalidate`, each when it has been done.
 */
export function recorded(
  channel: IotlbChannel,
  sink: TraceSink,
  { device = 0, clock = traceClock() }: RecordingOptions & { readonly device?: number } = {},
): IotlbChannel {
  return new RecordedChannel(channel, sink, device, clock)
}

class RecordedChannel implements IotlbChannel {
  constructor(
    private readonly channel: IotlbChannel,
    private readonly sink: TraceSink,
    private readonly device: number,
    private readonly clock: TraceClock,
  ) {}

  get limit(): number {
    return this.channel.limit
  }

  drain(): readonly Miss[] {
    const { device, sink, clock } = this
    let misses: readonly Miss[] = []
    this.#tried(
      () => {
        misses = this.channel.drain()
      },
      (error) => {
        sink({ kind: 'drain', at: clock(), device, count: misses.length, error })
      },
    )
    for (const { page, offset, access } of misses) {
      sink({ kind: 'miss', at: clock(), device, page, offset, access })
    }
    return misses
  }

  update(range: Range<Iova>, hva: Hva, access: Access): void {
    const { device, sink, clock } = this
    const pages = { firstPage: pageOf(range.first), lastPage: pageOf(range.last) }
    const rest = { hvaPage: pageOf(hva), access: accessBits(access) }
    this.#tried(
      () => {
        this.channel.update(range, hva, access)
      },
      (error) => {
        sink({ kind: 'update', at: clock(), device, ...pages, ...rest, error })
      },
    )
  }

  invalidate(range: Range<Iova>): void {
    const pages = { firstPage: pageOf(range.first), lastPage: pageOf(range.last) }
    this.#invalidated(pages, () => {
      this.channel.invalidate(range)
    })
  }

  updatePages(firstPage: number, lastPage: number, hvaPage: number, access: AccessBits): void {
    const { device, sink, clock } = this
    this.#tried(
      () => {
        this.channel.updatePages(firstPage, lastPage, hvaPage, access)
      },
      (error) => {
        sink({ kind: 'update', at: clock(), device, firstPage, lastPage, hvaPage, access, error })
      },
    )
  }

  invalidatePages(firstPage: number, lastPage: number): void {
    this.#invalidated({ firstPage, lastPage }, () => {
      this.channel.invalidatePages(firstPage, lastPage)
    })
  }

  onReadable(listener: () => void): Disposable {
    return this.channel.onReadable(listener)
  }

  #invalidated(
    pages: { readonly firstPage: number; readonly lastPage: number },
    write: () => void,
  ): void {
    const { device, sink, clock } = this
    this.#tried(write, (error) => {
      sink({ kind: 'invalidate', at: clock(), device, ...pages, error })
    })
  }

  #tried(write: () => void, done: (error: number) => void): void {
    try {
      write()
    } catch (error) {
      done(errnoOf(error))
      throw error
    }
    done(0)
  }
}

function errnoOf(error: unknown): number {
  const errno = error instanceof Error && 'errno' in error ? error.errno : undefined
  return typeof errno === 'number' ? Math.abs(errno) : UNKNOWN_ERRNO
}

function recordedHandler(
  options: MissHandlerOptions,
  recorder: Recorder,
  sink: TraceSink,
  device: number,
): MissHandler {
  const { clock } = recorder
  const { channel, addressSpace, memory, reply = exact, paranoid, split } = options
  sink({
    ...{ kind: 'handler', at: clock(), device, requester: addressSpace.requester ?? NOBODY },
    ...{ limit: channel.limit },
    flags: (paranoid === true ? FLAG.paranoid : 0) | (split === true ? FLAG.split : 0),
  })
  return new RecordedHandler(
    {
      ...options,
      channel: recorded(channel, sink, { device, clock }),
      addressSpace: new RecordedSpace(addressSpace, recorder, sink, device),
      memory: recordedMemory(memory, sink, clock),
      reply: recordedPolicy(reply, sink, device, clock),
    },
    sink,
    device,
    clock,
  )
}

/** Calls that come from outside; those that the handler makes of itself follow from them. */
class RecordedHandler extends MissHandler {
  #inside = false

  constructor(
    options: MissHandlerOptions,
    private readonly sink: TraceSink,
    private readonly device: number,
    private readonly clock: TraceClock,
  ) {
    super(options)
  }

  override handle(): void {
    this.sink({ kind: 'handle', at: this.clock(), device: this.device })
    super.handle()
  }

  override invalidatePages(firstPage: number, lastPage: number, source: InvalidationSource): void {
    const pages = { firstPage, lastPage, source: SOURCES.indexOf(source) }
    this.sink({ kind: 'invalidation', at: this.clock(), device: this.device, ...pages })
    const before = this.#inside
    this.#inside = true
    try {
      super.invalidatePages(firstPage, lastPage, source)
    } finally {
      this.#inside = before
    }
  }

  override preload(firstPage: number, lastPage: number, access: AccessBits): boolean {
    const { device } = this
    this.sink({ kind: 'preload', at: this.clock(), device, firstPage, lastPage, access })
    return super.preload(firstPage, lastPage, access)
  }

  override prefetch(page: number): number {
    this.sink({ kind: 'prefetch', at: this.clock(), device: this.device, page })
    return super.prefetch(page)
  }

  override repair(page: number, access: AccessBits): ReturnType<MissHandler['repair']> {
    this.sink({ kind: 'repair', at: this.clock(), device: this.device, page, access })
    return super.repair(page, access)
  }

  override renew(page: number, access: AccessBits): boolean {
    this.sink({ kind: 'renew', at: this.clock(), device: this.device, page, access })
    return super.renew(page, access)
  }

  override retry(firstPage = 0, lastPage = 2 ** 52 - 1): number {
    const { device } = this
    if (!this.#inside) this.sink({ kind: 'retry', at: this.clock(), device, firstPage, lastPage })
    return super.retry(firstPage, lastPage)
  }

  override flush(): void {
    this.sink({ kind: 'flush', at: this.clock(), device: this.device })
    super.flush()
  }

  override reset(): void {
    this.sink({ kind: 'reset', at: this.clock(), device: this.device })
    super.reset()
  }

  override forgetMisses(): void {
    this.sink({ kind: 'forget', at: this.clock(), device: this.device })
    super.forgetMisses()
  }

  override close(): void {
    this.sink({ kind: 'close', at: this.clock(), device: this.device })
    super.close()
  }
}

class RecordedSpace implements AddressSpace {
  readonly requester?: number

  constructor(
    private readonly space: AddressSpace,
    private readonly recorder: Recorder,
    private readonly sink: TraceSink,
    private readonly device: number,
  ) {
    if (space.requester !== undefined) this.requester = space.requester
  }

  get state(): AddressSpace['state'] {
    return this.space.state
  }

  get generation(): number {
    return this.space.generation
  }

  translate(at: Iova, wanted: Access): Translation | Fault {
    return this.space.translate(at, wanted)
  }

  translatePage(page: number, wanted: AccessBits, out: PageTranslation): boolean {
    const granted = this.recorder.walk(() => this.space.translatePage(page, wanted, out))
    const { firstPage, lastPage, gpaPage, access, reason } = out
    this.sink({
      ...{ kind: 'walk', at: this.recorder.clock(), device: this.device, page, wanted },
      ...{ ok: granted ? 1 : 0, firstPage, lastPage, gpaPage, access, code: reason },
    })
    return granted
  }

  notify(notifier: Notifier): Disposable {
    return this.space.notify(notifier)
  }
}

function recordedMemory(memory: HostMemory, sink: TraceSink, clock: TraceClock): HostMemory {
  const known = new Set<HostRegion>()
  return {
    find: (gpa) => {
      const region = memory.find(gpa)
      if (region !== undefined && !known.has(region)) {
        known.add(region)
        const { start, end, hvaPage } = region
        const pages = { gpaPage: start / 4096, pages: (end - start) / 4096 }
        sink({ kind: 'region', at: clock(), ...pages, hvaPage })
      }
      return region
    },
  }
}

/** What a policy asks of its reply: with that, a replay needs no policy. */
function recordedPolicy(
  policy: ReplyPolicy,
  sink: TraceSink,
  device: number,
  clock: TraceClock,
): ReplyPolicy {
  return (reply) => {
    const growing: GrowingReply = {
      get pages() {
        return reply.pages
      },
      growUp: (most) => {
        sink({ kind: 'grow', at: clock(), device, up: 1, most })
        return reply.growUp(most)
      },
      growDown: (most) => {
        sink({ kind: 'grow', at: clock(), device, up: 0, most })
        return reply.growDown(most)
      },
    }
    policy(growing)
  }
}

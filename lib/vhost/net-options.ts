/**
 * What a network device is asked to be, and the opening of what it is made of: descriptors and
 * taps, all of them or none.
 */
import { InvalidState } from '../errors'
import type { IotlbChannel } from '../iotlb/channel'
import type { LookAheadMode } from '../iotlb/look-ahead'
import type { FaultPolicy, MissHandler, MissHandlerOptions } from '../iotlb/miss-handler'
import type { ReplyPolicy } from '../iotlb/reply-policy'
import type { AddressSpace } from '../memory/address-space'
import type { GuestMemory } from '../memory/guest-memory'
import type { Descriptor } from '../native'
import { moduleParameter } from './module-parameters'
import { checkServing } from './net-pair-options'
import type { Tap } from './tap'
import { VhostDevice } from './vhost-device'
import type { Clock } from './watchdog'

/** Called once for each pair, with its index, when the device is opened. */
export type ChannelDecorator = (channel: IotlbChannel, pair: number) => IotlbChannel

/** Called once for each pair, with its index, when the device is opened. */
export type HandlerMaker = (options: MissHandlerOptions, pair: number) => MissHandler

export interface VhostNetOptions {
  readonly memory: GuestMemory
  /** Without it ACCESS_PLATFORM is not offered, and all addresses are gpas. */
  readonly addressSpace?: AddressSpace
  /** One queue of the tap for each pair; or taps of one queue each. */
  readonly backend: Tap | readonly Tap[]
  /** Pairs, at most as many as the backend has queues; all of them by default. */
  readonly queues?: number
  /** Default /dev/vhost-net. */
  readonly path?: string
  /**
   * Open vhost descriptors that nobody owns yet, one for each pair; they are taken over. What `fs`
   * opened in a Worker is Node's own there, to be closed once more when the Worker ends: start that
   * one with `trackUnmanagedFds: false`.
   */
  readonly fd?: number | readonly number[]
  /** Up to 128 KiB merged by default. */
  readonly reply?: ReplyPolicy
  /** `'on-miss'` by default. */
  readonly lookAhead?: LookAheadMode
  /** Grants again what an invalidation dropped beside its range; by default it does. */
  readonly split?: boolean
  readonly fault?: FaultPolicy
  readonly paranoid?: boolean
  /**
   * Which thread answers misses. `'loop'` (default): this one, on its event loop. `'worker'`: a
   * Worker for each pair, also while this thread computes; it takes an address space that can be
   * shared (`AddressSpace.share`), such as those of `IntelIommu`, and a reply policy of this
   * library. Callbacks and recorded faults come in this thread, when its event loop turns. The
   * Worker looks ahead when it answers a miss; `on-kick` looks ahead in this thread as well.
   */
  readonly serve?: 'loop' | 'worker'
  /**
   * 0 (default) to 1000: how long whoever answers misses looks for further ones, before its event
   * loop goes on.
   */
  readonly busyPollMicroseconds?: number
  /** The source id behind the address space, where that does not say it itself. */
  readonly requester?: number
  /** What stands between the kernel and the miss handler of each pair: `recorded`, `faulty`. */
  readonly channel?: ChannelDecorator
  /** Makes the miss handler of each pair: one that is recorded. */
  readonly handler?: HandlerMaker
  /**
   * Milliseconds between looks at rings that owe work and do not move: 1000 by default, 0 is off.
   */
  readonly watchdog?: number
  readonly clock?: Clock
}

export interface Opened {
  readonly taps: readonly Tap[]
  readonly holds: readonly Disposable[]
  readonly devices: readonly VhostDevice[]
  readonly sockets: readonly Descriptor[]
}

/**
 * Opens the parts and makes the device of them; where that fails, all of it is closed again.
 * @throws as `VhostNet.open`
 */
export function opened<T>(options: VhostNetOptions, make: (parts: Opened) => T): T {
  const taps = 'length' in options.backend ? options.backend : [options.backend]
  const available = taps.flatMap(({ queues }) => queues)
  const count = options.queues ?? available.length
  if (!Number.isInteger(count) || count < 1 || count > available.length) {
    throw new RangeError(`1 to ${available.length} pairs for this backend: ${count}`)
  }
  const { watchdog = 0 } = options
  if (!(watchdog >= 0)) throw new RangeError(`a watchdog looks every so often: ${watchdog} ms`)
  checkServing(options)
  if (options.addressSpace !== undefined) refuseZeroCopy()
  const undo: Disposable[] = []
  try {
    const holder = {}
    const holds = taps.map((tap) => kept(undo, tap.hold(holder)))
    const fds = typeof options.fd === 'number' ? [options.fd] : (options.fd ?? [])
    const devices = Array.from({ length: count }, (_, i) =>
      kept(undo, VhostDevice.open(deviceOptions(options.path, fds.at(i)))),
    )
    return make({ taps, holds, devices, sockets: available })
  } catch (error) {
    for (const done of undo.reverse()) done[Symbol.dispose]()
    throw error
  }
}

function kept<T extends Disposable>(undo: Disposable[], made: T): T {
  undo.push(made)
  return made
}

function deviceOptions(
  path: string | undefined,
  fd: number | undefined,
): Parameters<typeof VhostDevice.open>[0] {
  return { ...(path === undefined ? {} : { path }), ...(fd === undefined ? {} : { fd }) }
}

/** An invalidation does not wait for frames that are sent without a copy (K11). */
function refuseZeroCopy(): void {
  if (moduleParameter('vhost_net/experimental_zcopytx') === 0) return
  throw new InvalidState(
    'ERR_UNSUPPORTED',
    'vhost_net was loaded with experimental_zcopytx=1, where an invalidation does not wait for ' +
      'frames in flight: load it with experimental_zcopytx=0',
  )
}

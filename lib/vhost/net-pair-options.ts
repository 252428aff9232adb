/**
 * What a pair of rings is made of, and what its miss handler and its view of memory get of that.
 */
import { KiB } from '../address'
import { InvalidState } from '../errors'
import type { IotlbChannel } from '../iotlb/channel'
import type { MissHandler, MissHandlerOptions, MissPolicy } from '../iotlb/miss-handler'
import { merged } from '../iotlb/reply-policy'
import type { UnansweredMiss } from '../iotlb/unanswered'
import type { AddressSpace, PageTranslation } from '../memory/address-space'
import type { GuestMemory } from '../memory/guest-memory'
import type { Descriptor } from '../native'
import type { DoctorOptions } from './doctor'

/** A burst of 32 buffers of a page; more would only be dropped with it. */
const MERGED_BYTES = 128 * KiB
/** As `native.poll`. */
const MOST_BUSY_US = 1000

export interface NetPairOptions extends DoctorOptions {
  readonly socket: Descriptor
  readonly memory: GuestMemory
  readonly addressSpace: AddressSpace | undefined
  readonly policy: MissPolicy
  /** What the miss handler gets in place of the kernel's channel, or that itself. */
  readonly decorate: (channel: IotlbChannel) => IotlbChannel
  readonly handle: (options: MissHandlerOptions) => MissHandler
  /** Which thread answers misses. */
  readonly serve: 'loop' | 'worker'
  readonly busyPollMicroseconds: number | undefined
  readonly onCall: (queue: number) => void
  readonly onFault: (miss: UnansweredMiss) => void
  /** The fault policy asks for a stop. */
  readonly onStop: (miss?: UnansweredMiss) => void
}

export function handlerOptions(
  options: NetPairOptions,
  channel: IotlbChannel,
  onDrop: (miss: UnansweredMiss) => void,
  onFault: (miss: UnansweredMiss) => void,
): MissHandlerOptions {
  const { memory, policy, onStop, onFailure } = options
  return {
    channel,
    addressSpace: options.addressSpace!,
    memory,
    onFault,
    onStop,
    onDrop,
    onError: onFailure,
    ...policy,
    reply: policy.reply ?? merged(MERGED_BYTES),
    split: policy.split ?? true,
  }
}

/** Asks the tables without a recorded fault: it is not the device that asks. */
export function looking(space: AddressSpace): AddressSpace {
  const translatePage = (page: number, wanted: number, out: PageTranslation): boolean =>
    space.translatePage(page, 0, out) && (out.access & wanted) === wanted
  return {
    get state() {
      return space.state
    },
    get generation() {
      return space.generation
    },
    translate: (at) => space.translate(at, 'none'),
    translatePage,
    notify: (notifier) => space.notify(notifier),
  }
}

/** How misses are to be answered, as `VhostNetOptions` has it. */
export interface Serving {
  readonly serve?: 'loop' | 'worker'
  readonly busyPollMicroseconds?: number
  readonly channel?: unknown
  readonly handler?: unknown
}

/**
 * @throws TypeError, RangeError
 * @throws InvalidState ERR_UNSUPPORTED for functions of this thread that a Worker would have to
 *   call
 */
export function checkServing(options: Serving): void {
  const { serve = 'loop', busyPollMicroseconds: us = 0 } = options
  if (!['loop', 'worker'].includes(serve)) {
    throw new TypeError(`misses are served by 'loop' or 'worker': ${serve}`)
  }
  if (!Number.isInteger(us) || us < 0 || us > MOST_BUSY_US) {
    throw new RangeError(`busyPollMicroseconds is an integer from 0 to ${MOST_BUSY_US}: ${us}`)
  }
  if (serve === 'loop') return
  if (options.channel === undefined && options.handler === undefined) return
  throw new InvalidState(
    'ERR_UNSUPPORTED',
    `'channel' and 'handler' are functions of this thread: not with serve: 'worker'`,
  )
}

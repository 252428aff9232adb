/** What a pair of rings is made of, and what its miss handler and its view of memory get of that. */
import { KiB } from '../address'
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

export interface NetPairOptions extends DoctorOptions {
  readonly socket: Descriptor
  readonly memory: GuestMemory
  readonly addressSpace: AddressSpace | undefined
  readonly policy: MissPolicy
  /** What the miss handler gets in place of the kernel's channel, or that itself. */
  readonly decorate: (channel: IotlbChannel) => IotlbChannel
  readonly handle: (options: MissHandlerOptions) => MissHandler
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

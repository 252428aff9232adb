/** What a miss handler is made of, and what is left to choose. */
import type { AddressSpace } from '../memory/address-space'
import type { IotlbChannel } from './channel'
import type { LookAheadMode } from './look-ahead'
import type { HostMemory } from './reply'
import type { ReplyPolicy } from './reply-policy'
import type { FaultOptions, FaultPolicy } from './unanswered'

/** What is left to choose. */
export interface MissPolicy {
  /** `exact` unless given. */
  readonly reply?: ReplyPolicy | undefined
  /** `'on-miss'` unless given. */
  readonly lookAhead?: LookAheadMode | undefined
  /** `'stall'` unless given. */
  readonly fault?: FaultPolicy | undefined
  /** Sends every INVALIDATE, also where the shadow knows that the device holds nothing. */
  readonly paranoid?: boolean | undefined
  /** Writes again what an INVALIDATE dropped beside its range, where the tables still grant it. */
  readonly split?: boolean | undefined
}

export interface MissHandlerOptions extends MissPolicy, FaultOptions {
  readonly channel: IotlbChannel
  readonly addressSpace: AddressSpace
  /** `GuestMemory`, or what finds host pages as it does. */
  readonly memory: HostMemory
  /** Takes the errors that come up while misses are answered; without it `handle()` throws. */
  readonly onError?: (error: Error) => void
  /** Where to count (`newCounters()`), for one who reads it from another thread. */
  readonly counters?: Float64Array
}

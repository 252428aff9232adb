/**
 * What the two ends of a miss worker share: words of shared memory, and messages.
 *
 * Whatever a rule depends on is in the words and changes in a turn (`iotlb/shared-table.ts`).
 * What the thread is told (a ring to look into, a range to answer whole) is counted, so that it
 * takes all of it before it answers the next miss. What it tells (a fault to record, a callback to
 * make) may come late without harm.
 */
import { MessageLog } from '../iotlb/message-log'
import type { LookAheadMode } from '../iotlb/look-ahead'
import type { ReplyPolicyName } from '../iotlb/reply-policy'
import { sharedCounters } from '../iotlb/stats'
import { TURNSTILE_WORDS } from '../iotlb/turnstile'
import type { FaultPolicy, UnansweredMiss } from '../iotlb/unanswered'
import type { SharedTranslation } from '../memory/address-space'
import type { SharedMemory } from '../memory/guest-memory'
import type { RingAddresses } from '../virtio/ring-layout'
import type { MessageVersion } from './uapi'

/** Which control word is which, after those of the turnstile. */
export const WORD = {
  /** One of `STAGE`. */
  stage: TURNSTILE_WORDS,
  /** 1 while a queue may run: misses are answered. */
  serving: TURNSTILE_WORDS + 1,
  /** Misses that wait for a mapping, and how many were pushed out of their list. */
  unanswered: TURNSTILE_WORDS + 2,
  forgotten: TURNSTILE_WORDS + 3,
  /** Messages of the thread that were not taken yet: their number is bounded. */
  posted: TURNSTILE_WORDS + 4,
  /** Which thread of the system it is (`currentThread`). */
  thread: TURNSTILE_WORDS + 5,
  born: TURNSTILE_WORDS + 6,
  unknownMessages: TURNSTILE_WORDS + 7,
  /** Messages to the thread that were ever sent. */
  sent: TURNSTILE_WORDS + 8,
} as const
const CONTROL_WORDS = TURNSTILE_WORDS + 9

export const STAGE = { starting: 0, ready: 1, failed: 2, ended: 3 } as const

/** Records of the log: what one side may write while the other sleeps, before all is flushed. */
const RECORDS = 8192
const FAILURE_BYTES = 512
/** Messages that wait for a thread that is busy, at most. A guest can cause any number. */
export const MOST_POSTED = 256

export interface MissWords {
  readonly control: Int32Array
  /** What the thread's handler counts. */
  readonly counters: Float64Array
  readonly log: Float64Array
  /** Why it did not start, in UTF-8. */
  readonly failure: Uint8Array
}

export function missWords(records = RECORDS): MissWords {
  return {
    control: new Int32Array(new SharedArrayBuffer(4 * CONTROL_WORDS)),
    counters: sharedCounters(),
    log: new Float64Array(new SharedArrayBuffer(8 * MessageLog.words(records))),
    failure: new Uint8Array(new SharedArrayBuffer(FAILURE_BYTES)),
  }
}

/** `workerData` of the thread. */
export interface MissThreadStart {
  readonly words: MissWords
  /** The vhost descriptor's number, to be duplicated. */
  readonly fd: number
  readonly version: MessageVersion
  readonly limit: number
  readonly busyPollMicroseconds: number | undefined
  readonly memory: SharedMemory
  readonly translation: Pick<SharedTranslation, 'module' | 'export' | 'data'>
  readonly policy: {
    readonly reply: ReplyPolicyName
    readonly lookAhead: LookAheadMode | undefined
    readonly fault: FaultPolicy | undefined
    readonly paranoid: boolean | undefined
    readonly split: boolean | undefined
  }
}

export type ToMissThread =
  /** A range to be answered whole. */
  | {
      readonly kind: 'whole'
      readonly firstPage: number
      readonly lastPage: number
      readonly wanted: 1 | 2 | 3
    }
  /** A ring that runs, to look into. */
  | {
      readonly kind: 'ring'
      readonly id: number
      readonly ring: RingAddresses
      readonly availIndex: number
    }
  | { readonly kind: 'unring'; readonly id: number }
  /** There is something to do in the log. */
  | { readonly kind: 'look' }
  | { readonly kind: 'quit' }

export type FromMissThread =
  | { readonly kind: 'obsolete' }
  | { readonly kind: 'refused'; readonly refusal: unknown }
  | {
      readonly kind: 'unanswered'
      readonly what: 'fault' | 'stop' | 'drop'
      readonly miss: UnansweredMiss
    }

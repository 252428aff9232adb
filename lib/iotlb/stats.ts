/**
 * What the miss loop counts: one typed array, always on, read as a snapshot.
 *
 * There is no hit rate here: hits happen inside the device, and only the layer that sees its
 * accesses can say how many there were.
 */

const NAMES = [
  'misses',
  'coalesced',
  'updates',
  'invalidates',
  'invalidations',
  'filtered',
  'translations',
  'faults',
  'obsolete',
  'refused',
  'repairs',
  'refreshed',
  'resent',
  'ahead',
] as const

type CounterName = (typeof NAMES)[number]

/** Where each counter lies in the array: `counters[count.misses]++`. */
export const count = Object.freeze(
  Object.fromEntries(NAMES.map((name, index) => [name, index])),
) as Readonly<Record<CounterName, number>>

export function newCounters(): Float64Array {
  return new Float64Array(NAMES.length)
}

/** Counters that one thread counts in and another one reads. */
export function sharedCounters(): Float64Array {
  return new Float64Array(new SharedArrayBuffer(Float64Array.BYTES_PER_ELEMENT * NAMES.length))
}

export interface MissStats {
  /** MISS messages read. */
  readonly misses: number
  /** Misses that needed no UPDATE of their own, because one in the same turn covers them. */
  readonly coalesced: number
  /** UPDATE messages written. */
  readonly updates: number
  /** INVALIDATE messages written. */
  readonly invalidates: number
  /** Invalidations that the address space asked for. */
  readonly invalidations: number
  /** Those of them that needed no INVALIDATE, because the device holds nothing there. */
  readonly filtered: number
  /** Walks of the guest's tables, for misses and for their neighbours. */
  readonly translations: number
  /** Misses handed to the fault policy. */
  readonly faults: number
  /** Misses that the tables refuse, but whose chains were completed before they were read. */
  readonly obsolete: number
  /** Messages that the device refused to take. */
  readonly refused: number
  /** Entries replaced because they granted less than the tables do by now. */
  readonly repairs: number
  /** Ring entries written again because they were next to be evicted. */
  readonly refreshed: number
  /** Entries written again for what an INVALIDATE dropped beside its range. */
  readonly resent: number
  /** Entries granted before the device asked. */
  readonly ahead: number
  /** Unanswered misses that were dropped from the bounded list. */
  readonly forgotten: number
  /** Entries that the device evicted to make room. */
  readonly evictions: number
  /** What the device holds now. */
  readonly entries: number
  readonly pages: number
  /** Misses that wait for a mapping now. */
  readonly unanswered: number
}

export function namedCounters(counters: Float64Array): Record<CounterName, number> {
  return Object.fromEntries(NAMES.map((name, index) => [name, counters[index]])) as Record<
    CounterName,
    number
  >
}

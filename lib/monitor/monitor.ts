/**
 * Watches devices: their counters, what they hold, how long invalidations take, as plain samples.
 *
 * A sample is JSON, so that whoever shows it (`top`, Prometheus, a program of the user's) can be in
 * another process. It measures by subscribing to `vhost-iotlb:invalidate`; without a monitor nobody
 * reads a clock for that. Rates are the difference of two samples: `rates()`.
 */
import { subscribe, unsubscribe } from 'node:diagnostics_channel'
import type { InspectOptions } from 'node:util'
import { PAGE_SIZE, pageOf } from '../address'
import { shown, summary } from '../inspect'
import { requesterName } from '../iommu/iommu'
import { diagnostics } from '../iotlb/diagnostics'
import type { InvalidateMessage } from '../iotlb/diagnostics'
import type { ShadowEntry } from '../iotlb/shadow'
import type { VhostNetStats } from '../vhost/net'

/** What can be watched: `VhostNet` is one. */
export interface Watched {
  readonly requester: number | undefined
  stats(): VhostNetStats
  entries(): readonly ShadowEntry[]
}

/** Upper ends of the latency classes in microseconds; the last class has none. */
export const LATENCY_CLASSES = [
  1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000,
] as const

export interface Latency {
  readonly count: number
  readonly microseconds: number
  readonly longest: number
  /** How many were in each class, and beyond the last. */
  readonly classes: readonly number[]
}

export interface DeviceSample {
  /** `00:03.0`, or `device 0` where the requester is not known. */
  readonly name: string
  readonly stats: VhostNetStats
  readonly bytesMapped: number
  /** First page, last page, access bits, of what the device holds; in the order of pages. */
  readonly entries: readonly (readonly [number, number, number])[]
  readonly invalidation: Latency
}

export interface MonitorSample {
  readonly pid: number
  /** Milliseconds of one clock that never goes backwards. */
  readonly at: number
  readonly devices: readonly DeviceSample[]
}

class LatencyCount {
  readonly #classes = new Array<number>(LATENCY_CLASSES.length + 1).fill(0)
  #count = 0
  #sum = 0
  #longest = 0

  add(microseconds: number): void {
    const found = LATENCY_CLASSES.findIndex((end) => microseconds <= end)
    this.#classes[found < 0 ? LATENCY_CLASSES.length : found]++
    this.#count++
    this.#sum += microseconds
    this.#longest = Math.max(this.#longest, microseconds)
  }

  sample(): Latency {
    const [count, microseconds, longest] = [this.#count, this.#sum, this.#longest]
    return { count, microseconds, longest, classes: [...this.#classes] }
  }
}

const ACCESS_BITS = { none: 0, read: 1, write: 2, readwrite: 3 } as const

export class Monitor implements Disposable {
  readonly #devices: readonly Watched[]
  readonly #latencies: readonly LatencyCount[]

  /** @param devices of this thread */
  constructor(devices: readonly Watched[]) {
    this.#devices = devices
    this.#latencies = devices.map(() => new LatencyCount())
    subscribe(diagnostics.invalidate.name, this.#onInvalidate)
  }

  sample(): MonitorSample {
    const devices = this.#devices.map((device, i) => ({
      name: device.requester === undefined ? `device ${i}` : requesterName(device.requester),
      ...sampleOf(device),
      invalidation: this.#latencies[i].sample(),
    }))
    return { pid: process.pid, at: performance.now(), devices }
  }

  [shown](depth: number, options: InspectOptions): string {
    const fields = {
      devices: this.sample().devices.map(({ name, stats }) => ({ name, ...stats })),
    }
    return summary('Monitor', fields, depth, options)
  }

  close(): void {
    unsubscribe(diagnostics.invalidate.name, this.#onInvalidate)
  }

  [Symbol.dispose](): void {
    this.close()
  }

  /** Devices of one requester can't be told apart here: the first one counts for both. */
  readonly #onInvalidate = (message: unknown): void => {
    const { requester, microseconds } = message as InvalidateMessage
    const i = this.#devices.findIndex((device) => device.requester === requester)
    if (i >= 0) this.#latencies[i].add(microseconds)
  }
}

function sampleOf(device: Watched): Pick<DeviceSample, 'stats' | 'bytesMapped' | 'entries'> {
  const stats = device.stats()
  const entries = device
    .entries()
    .map(
      ({ iova, access }) => [pageOf(iova.first), pageOf(iova.last), ACCESS_BITS[access]] as const,
    )
  entries.sort(([a], [b]) => a - b)
  return { stats, bytesMapped: stats.pages * PAGE_SIZE, entries }
}

/** What a device did a second, between two samples. */
export interface DeviceRates {
  readonly name: string
  readonly chains: number
  readonly misses: number
  readonly updates: number
  readonly invalidates: number
  /** Chains that needed no miss in this time, 0 to 1; undefined where there were none. */
  readonly hitRate: number | undefined
  /** The mean in this time, in microseconds; undefined where nothing was invalidated. */
  readonly invalidationMicroseconds: number | undefined
  /** A time that 99 of 100 did not exceed, rounded up to its class. */
  readonly slowInvalidationMicroseconds: number | undefined
}

export function rates(before: MonitorSample, now: MonitorSample): readonly DeviceRates[] {
  const seconds = Math.max((now.at - before.at) / 1000, 1e-3)
  return now.devices.map((device, i) => {
    const old = before.devices.at(i)
    const change = (name: 'chains' | 'misses' | 'updates' | 'invalidates'): number =>
      Math.max(0, device.stats[name] - (old?.stats[name] ?? 0))
    const chains = change('chains')
    const misses = change('misses')
    return {
      name: device.name,
      chains: chains / seconds,
      misses: misses / seconds,
      updates: change('updates') / seconds,
      invalidates: change('invalidates') / seconds,
      hitRate: chains === 0 ? undefined : Math.max(0, 1 - misses / chains),
      ...latencyBetween(old?.invalidation, device.invalidation),
    }
  })
}

function latencyBetween(
  before: Latency | undefined,
  now: Latency,
): Pick<DeviceRates, 'invalidationMicroseconds' | 'slowInvalidationMicroseconds'> {
  const count = now.count - (before?.count ?? 0)
  if (count <= 0) {
    return { invalidationMicroseconds: undefined, slowInvalidationMicroseconds: undefined }
  }
  const sum = now.microseconds - (before?.microseconds ?? 0)
  let left = count * 0.99
  let slow = now.longest
  for (const [i, end] of LATENCY_CLASSES.entries()) {
    left -= now.classes[i] - (before?.classes[i] ?? 0)
    if (left <= 0) {
      slow = end
      break
    }
  }
  return { invalidationMicroseconds: sum / count, slowInvalidationMicroseconds: slow }
}

/**
 * A sample in the text format of Prometheus, through its client library `prom-client`.
 *
 * That is an optional peer: a program that serves no metrics does not install it. The library keeps
 * no state here; a registry is filled from each sample, so that counters are those of the device.
 */
import { createRequire } from 'node:module'
import type { Metric, Registry } from 'prom-client'
import type { VhostNetStats } from '../vhost/net'
import { LATENCY_CLASSES } from './monitor'
import type { DeviceSample, MonitorSample } from './monitor'

type Prometheus = typeof import('prom-client')

type StatName = Exclude<keyof VhostNetStats, 'stallsByReason'>

/** Counters of a device, and what Prometheus is told of each. */
const COUNTERS: Readonly<Partial<Record<StatName, string>>> = {
  misses: 'MISS messages read',
  coalesced: 'Misses that needed no UPDATE of their own',
  updates: 'UPDATE messages written',
  invalidates: 'INVALIDATE messages written',
  invalidations: 'Invalidations that the address space asked for',
  filtered: 'Invalidations that needed no INVALIDATE',
  translations: 'Walks of the tables',
  faults: 'Misses that the tables refused',
  refused: 'Messages that the kernel refused',
  repairs: 'Entries replaced because they granted too little',
  evictions: 'Entries that the kernel evicted',
  ahead: 'Entries granted before the kernel asked',
  kicks: 'Kicks given to the kernel',
  calls: 'Calls that came from the kernel',
  chains: 'Chains that the kernel completed',
  stalls: 'Times that a queue stopped without a miss',
  dropped: 'Chains completed empty by the fault policy',
}
const GAUGES: Readonly<Partial<Record<StatName, string>>> = {
  entries: 'Entries that the kernel holds',
  unanswered: 'Misses that wait for a mapping',
}

/** @throws Error with a hint where `prom-client` is not installed */
export async function metricsText(
  sample: MonitorSample,
): Promise<{ readonly contentType: string; readonly text: string }> {
  const prometheus = load()
  const registry = new prometheus.Registry()
  for (const [name, help] of Object.entries(COUNTERS)) {
    const counter = new prometheus.Counter({
      ...{ name: `vhost_iotlb_${snake(name)}_total`, help, labelNames: ['device'] },
      registers: [registry],
    })
    for (const { name: device, stats } of sample.devices) {
      counter.inc({ device }, stats[name as StatName])
    }
  }
  for (const [name, help] of Object.entries(GAUGES)) {
    gauge(prometheus, registry, name, help, sample, ({ stats }) => stats[name as StatName])
  }
  const mapped = 'Bytes that the device can reach'
  gauge(prometheus, registry, 'mapped_bytes', mapped, sample, ({ bytesMapped }) => bytesMapped)
  registry.registerMetric(new LatencyHistogram(sample) as unknown as Metric)
  return { contentType: registry.contentType, text: await registry.metrics() }
}

/** A histogram that was counted elsewhere. */
class LatencyHistogram {
  readonly name = 'vhost_iotlb_invalidate_seconds'
  readonly help = 'How long an INVALIDATE took'
  readonly type = 'histogram'
  readonly aggregator = 'sum'

  constructor(private readonly sample: MonitorSample) {}

  get(): object {
    const { name, help, type, aggregator } = this
    const values = this.sample.devices.flatMap((device) => latencyValues(name, device))
    return { name, help, type, aggregator, values }
  }

  reset(): void {
    // It is made anew for each sample.
  }
}

function latencyValues(name: string, { name: device, invalidation }: DeviceSample): object[] {
  let sum = 0
  const buckets = LATENCY_CLASSES.map((end, i) => {
    sum += invalidation.classes[i]
    return { metricName: `${name}_bucket`, value: sum, labels: { device, le: end / 1e6 } }
  })
  const all = { metricName: `${name}_bucket`, value: invalidation.count }
  return [
    ...buckets,
    { ...all, labels: { device, le: '+Inf' } },
    { metricName: `${name}_sum`, value: invalidation.microseconds / 1e6, labels: { device } },
    { metricName: `${name}_count`, value: invalidation.count, labels: { device } },
  ]
}

function gauge(
  prometheus: Prometheus,
  registry: Registry,
  name: string,
  help: string,
  sample: MonitorSample,
  value: (device: DeviceSample) => number,
): void {
  const made = new prometheus.Gauge({
    ...{ name: `vhost_iotlb_${snake(name)}`, help, labelNames: ['device'] },
    registers: [registry],
  })
  for (const device of sample.devices) made.set({ device: device.name }, value(device))
}

function snake(name: string): string {
  return name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`)
}

function load(): Prometheus {
  try {
    // Looked for when it is needed: the package works without it.
    return createRequire(__filename)('prom-client') as Prometheus
  } catch (error) {
    throw new Error('metrics need the package prom-client: npm install prom-client', {
      cause: error,
    })
  }
}

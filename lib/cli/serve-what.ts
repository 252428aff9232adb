/** What the options of commands that can be watched ask for, served. */
import type { Watched } from '../monitor/monitor'
import { serveMetrics, serveStats } from '../monitor/serve'
import type { Served } from '../monitor/serve'

export interface WatchOptions {
  /** Shows a screen in place of lines. */
  readonly top?: boolean
  /** Serves `vhost-iotlb top`; a path, or true for the usual one. */
  readonly stats?: string | true
  /** Serves Prometheus; `host:port`, or true for the usual ones. */
  readonly metrics?: string | true
}

/** Begins to serve what was asked for; disposing ends it. */
export async function serveWhat(
  devices: readonly Watched[],
  { stats, metrics }: WatchOptions,
): Promise<AsyncDisposable & { readonly addresses: readonly string[] }> {
  const open: Served[] = []
  const close = async (): Promise<void> => {
    for (const served of open) await served.close()
  }
  try {
    if (stats !== undefined) {
      open.push(await serveStats(devices, stats === true ? {} : { path: stats }))
    }
    if (metrics !== undefined) {
      open.push(await serveMetrics(devices, metrics === true ? {} : hostAndPort(metrics)))
    }
  } catch (error) {
    await close()
    throw error
  }
  const addresses = open.map(({ address }) => `serving ${address}`)
  return { addresses, [Symbol.asyncDispose]: close }
}

/** @throws RangeError for what is no `host:port`, `:port` or `port` */
export function hostAndPort(text: string): { readonly host?: string; readonly port: number } {
  const found = /^(?:(.*):)?(\d+)$/.exec(text)
  const port = Number(found?.[2])
  if (found === null || port > 65535) throw new RangeError(`an address is [host:]port: ${text}`)
  const host = found.at(1)?.replace(/^\[(.*)\]$/, '$1') ?? ''
  return host === '' ? { port } : { host, port }
}

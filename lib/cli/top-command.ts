/** The command `top` and the options of commands that can be watched. */
import { InvalidArgumentError } from 'commander'
import type { Command } from 'commander'
import type { Watched } from '../monitor/monitor'
import { serveMetrics, serveStats } from '../monitor/serve'
import type { Served } from '../monitor/serve'
import { positive } from './numbers'
import { top } from './top'
import type { TopOptions } from './top'

export interface WatchOptions {
  /** Shows a screen in place of lines. */
  readonly top?: boolean
  /** Serves `vhost-iotlb top`; a path, or true for the usual one. */
  readonly stats?: string | true
  /** Serves Prometheus; `host:port`, or true for the usual ones. */
  readonly metrics?: string | true
}

export function addTopCommand(program: Command): void {
  program
    .command('top')
    .description('watch a process: rates, hit rate, latencies, and what its devices can reach')
    .argument('[process]', 'a process id or the path of a socket; by default the only one there is')
    .option('--interval <seconds>', 'between samples', seconds, 1)
    .option('--count <n>', 'how many samples to show; without it, until interrupted', positive)
    .option('--json', 'print each sample as one line of JSON', false)
    .addHelpText(
      'after',
      '\nThe process says what it does where it calls `serveStats(nic)`; `l2fwd --stats` does. On a' +
        '\nterminal it is a screen of 80 columns, elsewhere a line for each device.' +
        '\n\nExamples:\n  vhost-iotlb top\n  vhost-iotlb top 1234 --interval 5' +
        '\n  vhost-iotlb top --count 1 --json | jq .rates',
    )
    .action(async (from: string | undefined, options: TopOptions) => {
      process.exitCode = await top(from, options)
    })
}

/** Adds the options of `WatchOptions`. */
export function watchable(command: Command): Command {
  return command
    .option('--top', 'show a screen of rates, latencies and mappings', false)
    .option('--stats [socket]', 'serve counters to `vhost-iotlb top`')
    .option('--metrics [address]', 'serve Prometheus, at [host:]port (127.0.0.1:9464)')
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

function seconds(value: string): number {
  const number = Number(value)
  if (!(number >= 0.1 && number <= 3600)) throw new InvalidArgumentError('0.1 to 3600 seconds')
  return number
}

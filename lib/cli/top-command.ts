/** The command `top` and the options of commands that can be watched. */
import { InvalidArgumentError } from 'commander'
import type { Command } from 'commander'
import { positive } from './numbers'
import type { TopOptions } from './top'

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
      const { top } = await import('./top.js')
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

function seconds(value: string): number {
  const number = Number(value)
  if (!(number >= 0.1 && number <= 3600)) throw new InvalidArgumentError('0.1 to 3600 seconds')
  return number
}

/** The commands about traces, as the command line shows them: `trace`, `replay`, `pcapng`. */
import { closeSync, openSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { InvalidArgumentError, Option } from 'commander'
import type { Command } from 'commander'
import { messageOf } from '../errors'
import { LOOK_AHEADS } from './choices'
import type { DemoOptions } from './demo-command'
import { replyPolicy } from './named-policy'
import { wholeNumber } from './numbers'
import { kernel, mapping, where } from './options'
import type { ReplayOptions } from './replay-command'

const DISSECTOR = join(__dirname, '../../wireshark/vhost-iotlb.lua')

/** The option of commands that can be recorded. */
export function record(): Option {
  return new Option('--record <file>', 'write a trace of the run, for `vhost-iotlb replay`')
}

export function addTraceCommands(program: Command): void {
  program
    .command('trace')
    .description('record a run: messages, walks, registers, rings, frames, with one clock')
    .argument('<file>', 'where the trace goes')
    .addOption(where())
    .addOption(mapping('strict'))
    .addOption(kernel())
    .option('--json', 'print the result of the run as one object', false)
    .addHelpText(
      'after',
      '\nThe run is that of `demo`; `l2fwd --record` records another one. The format is described in' +
        '\ndocs/trace-format.md.' +
        '\n\nExamples:\n  vhost-iotlb trace run.trace\n  vhost-iotlb trace run.trace --mapping lazy' +
        '\n  vhost-iotlb l2fwd --mapping strict --duration 5 --record run.trace',
    )
    .action(async (file: string, options: DemoOptions) => {
      const { demo } = await import('./demo-command.js')
      process.exitCode = await demo({ ...options, record: file })
    })

  program
    .command('replay')
    .description('run a trace again: check it, show a moment of it, try other policies on it')
    .argument('<file>', 'a trace')
    .option('--stop <events>', 'show what is known after so many events', wholeNumber)
    .option('--policy <policy...>', 'simulate replies: exact, merged:BYTES', policy)
    .addOption(new Option('--look-ahead <when...>', 'simulate looking ahead').choices(LOOK_AHEADS))
    .option('--entries <n...>', 'simulate a device of so many entries', several)
    .option('--all', 'whole lists instead of their beginnings', false)
    .option('--json', 'print one object', false)
    .addHelpText(
      'after',
      '\nThe exit status is 1 where the handler now does something else than what was recorded.' +
        '\nWith a policy nothing is checked: it prints the misses that each one would have had.' +
        '\n\nExamples:\n  vhost-iotlb replay run.trace\n  vhost-iotlb replay run.trace --stop 1000 --all' +
        '\n  vhost-iotlb replay run.trace --policy exact merged:131072 --look-ahead off on-miss on-kick' +
        '\n  vhost-iotlb replay run.trace --entries 16 64 2048 --json',
    )
    .action(async (file: string, options: ReplayOptions) => {
      const { replayCommand } = await import('./replay-command.js')
      process.exitCode = replayCommand(file, options)
    })

  program
    .command('pcapng')
    .description('turn a trace into a capture of frames and IOTLB messages for Wireshark')
    .argument('<file>', 'a trace')
    .argument('<capture>', 'where the capture goes')
    .option('--json', 'print one object', false)
    .addHelpText(
      'after',
      '\nMessages are of link type USER0; the package has a dissector for them.' +
        '\n\nExamples:\n  vhost-iotlb pcapng run.trace run.pcapng' +
        `\n  tshark -X lua_script:${DISSECTOR} -r run.pcapng`,
    )
    .action(async (file: string, capture: string, { json }: { readonly json: boolean }) => {
      process.exitCode = await pcapng(file, capture, json)
    })
}

/** @returns the exit status */
async function pcapng(from: string, to: string, json: boolean): Promise<number> {
  const { readTrace } = await import('../trace/codec.js')
  const { exportPcapng } = await import('../trace/pcapng.js')
  const trace = readTrace(from)
  const file = openSync(to, 'w')
  try {
    const counts = exportPcapng(trace, (block) => writeSync(file, block))
    const words = `${counts.frames} frames and ${counts.messages} messages written to ${to}`
    console.log(json ? JSON.stringify({ ...counts, file: to, dissector: DISSECTOR }) : words)
    if (!json) console.log(`wireshark -X lua_script:${DISSECTOR} ${to}`)
  } finally {
    closeSync(file)
  }
  return 0
}

function several(value: string, before: readonly number[] | undefined): readonly number[] {
  const number = wholeNumber(value)
  if (number === 0) throw new InvalidArgumentError('a device has one entry at least')
  return [...(before ?? []), number]
}

function policy(value: string, before: readonly string[] | undefined): readonly string[] {
  try {
    replyPolicy(value)
  } catch (error) {
    throw new InvalidArgumentError(messageOf(error))
  }
  return [...(before ?? []), value]
}

#!/usr/bin/env node
/**
 * The command line: options in, exit status out. Each command's work is in its own file, which is
 * loaded when it runs: all of them together would be most of the time of a short one.
 */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { Command, Option } from 'commander'
import { messageOf } from '../errors'
import { ACCESSES, KERNELS, PAGE_SIZES } from './choices'
import type { DemoOptions } from './demo-command'
import type { L2fwdOptions } from './l2fwd-command'
import type { BenchOptions } from './bench-command'
import type { ExplainOptions } from './explain-command'
import type { ConformanceOptions } from './conformance-command'
import { addCompletionCommands } from './completion'
import { addTraceCommands, record } from './trace-command'
import { addTopCommand, watchable } from './top-command'
import { addGuestCommands } from './guest-commands'
import type { VmCommandOptions } from './vm'
import { address, dumpPart, positive, wholeNumber } from './numbers'
import { kernel, lookAhead, mapping, where } from './options'

const { version } = JSON.parse(readFileSync(join(__dirname, '../../package.json'), 'utf8')) as {
  version: string
}

const program = new Command('vhost-iotlb')
  .description("The kernel's vhost-net behind an emulated IOMMU")
  .version(version)
  .enablePositionalOptions()
  .showHelpAfterError()

program
  .command('demo')
  .description("echo requests through vhost-net, answered by the kernel's own network stack")
  .addOption(where())
  .addOption(mapping('strict'))
  .addOption(kernel())
  .addOption(record())
  .option('--json', 'print one object, and nothing else, on standard output', false)
  .addHelpText(
    'after',
    '\nThe host needs root and /dev/vhost-net; `auto` boots a nested VM where it has them not.' +
      '\n\nExamples:\n  vhost-iotlb demo\n  vhost-iotlb demo --where vm --kernel 6.1 --mapping lazy' +
      '\n  vhost-iotlb demo --json | jq .hitRate',
  )
  .action(async (options: DemoOptions) => {
    const { demo } = await import('./demo-command.js')
    process.exitCode = await demo(options)
  })

watchable(program.command('l2fwd'))
  .description('forward frames between two taps in one process, and count the misses')
  .addOption(where())
  .addOption(mapping('static'))
  .addOption(
    new Option('--page-size <size>', 'static mapping: the largest pages to use')
      .choices(PAGE_SIZES)
      .default('2M'),
  )
  .addOption(lookAhead())
  .option('--merge <bytes>', 'largest reply; 0 answers each miss with its own page', wholeNumber)
  .option('--queues <pairs>', 'pairs of queues of each port', positive, 1)
  .option('--duration <seconds>', 'how long; without it, until interrupted', positive)
  .option(
    '--generate <rate>',
    "frames a second into each tap by the kernel's pktgen; 0: all it can",
    wholeNumber,
  )
  .addOption(kernel())
  .addOption(record())
  .option('--json', 'print one object, and nothing else, on standard output', false)
  .addHelpText(
    'after',
    '\nExamples:\n  vhost-iotlb l2fwd --mapping static --page-size 1G --generate 0 --duration 10' +
      '\n  vhost-iotlb l2fwd --mapping strict --look-ahead on-kick --generate 5000 --duration 10' +
      '\n  vhost-iotlb l2fwd --mapping lazy --generate 5000 --top' +
      '\n  vhost-iotlb l2fwd --stats --metrics 0.0.0.0:9464',
  )
  .action(async (options: L2fwdOptions) => {
    const { l2fwd } = await import('./l2fwd-command.js')
    process.exitCode = await l2fwd(options)
  })

program
  .command('bench')
  .description('measure it all side by side, against other means and against the targets')
  .addOption(where())
  .addOption(kernel())
  .option('--quick', 'a minute and a half instead of ten; figures are rougher', false)
  .option('--only <sections>', 'these sections, such as modes,out,in,forward', (list: string) =>
    list.split(','),
  )
  .option('--keep', "write the results into the repository's vm-tests/bench", false)
  .option('--json', 'print one object, and nothing else, on standard output', false)
  .addOption(new Option('--part').hideHelp())
  .addOption(new Option('--programs <directory>').hideHelp())
  .addHelpText(
    'after',
    '\nExamples:\n  vhost-iotlb bench --quick\n  vhost-iotlb bench --json | jq .targets',
  )
  .action(async (options: BenchOptions) => {
    const { bench } = await import('./bench-command.js')
    process.exitCode = await bench(options)
  })

addTraceCommands(program)
addTopCommand(program)

program
  .command('conformance')
  .description(
    "what the kernel's vhost-net does, case by case; status 1 for what is documented nowhere",
  )
  .addOption(where())
  .addOption(
    new Option('--kernel <line>', "the nested VM's kernel, or both")
      .choices(KERNELS)
      .default('both'),
  )
  .option('--fuzz <n>', 'random sequences too, on the kernel and on the fake', wholeNumber, 0)
  .option('--seed <n>', 'which ones', wholeNumber, 1)
  .option('--json', 'print an array of kernels, and nothing else, on standard output', false)
  .addOption(new Option('--part').hideHelp())
  .addHelpText(
    'after',
    '\nExamples:\n  vhost-iotlb conformance\n  vhost-iotlb conformance --kernel 6.1 --json' +
      '\n  vhost-iotlb conformance --fuzz 1000 --seed 7',
  )
  .action(async (options: ConformanceOptions) => {
    const { conformance } = await import('./conformance-command.js')
    process.exitCode = await conformance(options)
  })

program
  .command('doctor')
  .description('what this host has and lacks; exit status 0 if vhost-net is usable')
  .option('--json', 'print the findings as an array', false)
  .addHelpText('after', '\nExample:\n  vhost-iotlb doctor && echo usable')
  .action(async (options: { readonly json: boolean }) => {
    const { examine, report, usable } = await import('./doctor.js')
    const findings = examine()
    console.log(options.json ? JSON.stringify(findings, null, 2) : report(findings))
    process.exitCode = usable(findings) ? 0 : 1
  })

program
  .command('explain')
  .description("walk a guest's VT-d tables in a memory dump, and say what each entry decides")
  .argument('<requester>', 'the device, such as 00:03.0')
  .argument('<iova>', 'the address that it asks for, in hexadecimal', address)
  .requiredOption(
    '--memory <file[@gpa]>',
    'raw guest memory that starts at this address (0); may be given several times',
    dumpPart,
  )
  .requiredOption('--root <rtaddr>', 'the root table register (0x20), with its mode bits', address)
  .option('--cap <cap>', 'the capability register (0x08); without it, all that there is', address)
  .option('--ecap <ecap>', 'the extended capability register (0x10)', address)
  .option('--host-width <bits>', 'width of guest-physical addresses', positive)
  .addOption(
    new Option('--access <access>', 'what the device wants to do')
      .choices(ACCESSES)
      .default('none'),
  )
  .option('--ats', 'the request comes from a device TLB', false)
  .option('--json', 'print one object, and nothing else, on standard output', false)
  .addHelpText(
    'after',
    '\nIt only reads the files. Exit status: 0 translated, 2 refused, 1 for its own failures.' +
      '\n\nLinux prints CAP, ECAP and the host address width when it boots (dmesg | grep DMAR). In' +
      "\nQEMU's monitor, `pmemsave 0 0x40000000 memory.bin` makes the dump, `xp /1gx 0xfed90020`" +
      '\nprints the register.' +
      '\n\nExamples:\n  vhost-iotlb explain --memory memory.bin --root 0x1402000 00:03.0 0xfffff000' +
      '\n  vhost-iotlb explain --memory low.bin --memory high.bin@0x100000000 --root 1402400 \\' +
      '\n    --cap d2008c222f0686 --ecap f00f5e --access write --json 01:00.0 fffe0000',
  )
  .action(async (requester: string, at: bigint, options: ExplainOptions) => {
    const { explain } = await import('./explain-command.js')
    process.exitCode = explain(requester, at, options)
  })

program
  .command('vm')
  .description('run a command in a machine that has /dev/vhost-net; without one, a shell')
  .argument('[command...]', 'program and arguments, with the files of this host')
  .passThroughOptions()
  .addOption(kernel())
  .option('--memory <MiB>', 'memory of the machine', positive, 2048)
  .option('--cpus <n>', 'processors of the machine', positive, 2)
  .option('--nested', 'a machine that has /dev/kvm', false)
  .option('--module <name...>', 'kernel modules to insert as well')
  .option('--timeout <seconds>', 'how long it may run, boot included', positive)
  .addHelpText(
    'after',
    '\nThe current directory is shared for writing, all else is kept in memory. The exit status is' +
      "\nthe command's own, 124 at the time limit." +
      '\n\nExamples:\n  vhost-iotlb vm\n  vhost-iotlb vm --kernel 6.1 -- vhost-iotlb doctor' +
      '\n  vhost-iotlb vm -- node script.js',
  )
  .action(async (command: readonly string[], options: VmCommandOptions) => {
    const { vm } = await import('./vm.js')
    process.exitCode = await vm(command, options)
  })

addGuestCommands(program)

addCompletionCommands(program)

program.parseAsync().catch((error: unknown) => {
  console.error(`vhost-iotlb: ${messageOf(error)}`)
  if (process.env['DEBUG'] !== undefined) console.error(error)
  process.exitCode = 1
})

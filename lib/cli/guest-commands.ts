/** The commands about guests, as the command line shows them: `boot`, `guest`. */
import { Option } from 'commander'
import type { Command } from 'commander'
import type { BootOptions } from './boot'
import { GUEST_MODES, GUEST_PAGES, PEERS } from './choices'
import type { GuestOptions } from './guest-command'
import { positive } from './numbers'
import { kernel, lookAhead, where } from './options'

export function addGuestCommands(program: Command): void {
  program
    .command('boot')
    .description('boot Linux on KVM, its network card behind the emulated VT-d with ATS')
    .requiredOption('--kernel <file>', 'a bzImage, such as /boot/vmlinuz')
    .option('--initrd <file>', 'its initramfs')
    .option('--append <text>', "the kernel's command line", 'console=ttyS0 intel_iommu=on')
    .option('--tap <name>', 'the interface of the network card', 'tap%d')
    .option('--memory <MiB>', 'memory of the guest', positive, 512)
    .option('--cpus <n>', 'processors of the guest: 1 to 4', positive, 1)
    .option('--mac <address>', "the network card's address")
    .addOption(lookAhead())
    .option('--no-ats', 'a network card without ATS')
    .addOption(exits())
    .option('--no-reboot', 'a reset of the guest ends it')
    .option('--json', 'print one object at the end; the console goes to standard error', false)
    .addHelpText(
      'after',
      '\nThe host needs root, /dev/kvm and /dev/vhost-net. The console is this terminal.' +
        '\n\nExample:\n  vhost-iotlb boot --kernel /boot/vmlinuz --initrd /boot/initrd.img' +
        " --append 'console=ttyS0 intel_iommu=on iommu.strict=1' --tap tap0",
    )
    .action(async (options: BootOptions) => {
      const { boot } = await import('./boot.js')
      process.exitCode = await boot(options)
    })

  program
    .command('guest')
    .description(
      'boot a stock Debian guest behind the emulated VT-d, and count what its frames cost',
    )
    .addOption(where())
    .addOption(
      new Option('--mode <mode>', 'how the guest uses its IOMMU')
        .choices(GUEST_MODES)
        .default('strict'),
    )
    .addOption(
      new Option(
        '--dpdk <pages>',
        "DPDK forwards in the guest, in memory of such pages, in place of the kernel's driver",
      ).choices(GUEST_PAGES),
    )
    .addOption(
      new Option('--beside <peer>', 'then the same guest on that machine, for comparison')
        .choices(PEERS)
        .conflicts('dpdk'),
    )
    .option('--packets <n>', 'frames each way', positive, 100_000)
    .addOption(lookAhead())
    .option('--no-ats', 'a network card without ATS')
    .addOption(exits())
    .addOption(kernel('the Debian kernel of the guest, and of the nested VM'))
    .option('--json', 'print one object, and nothing else, on standard output', false)
    .addHelpText(
      'after',
      '\nExample:\n  vhost-iotlb guest --mode lazy --packets 10000 --json | jq .missesPer1000' +
        '\n  vhost-iotlb guest --beside qemu --packets 20000 --json | jq .ratio' +
        '\n  vhost-iotlb guest --dpdk 1G --packets 500000 --json | jq .steady',
    )
    .action(async (options: GuestOptions) => {
      const { guest } = await import('./guest-command.js')
      process.exitCode = await guest(options)
    })
}

/** Of `shareRegisters`, which decides by itself where it is not named. */
function exits(): Option {
  return new Option('--exits', 'the guest leaves at each write of a register of its IOMMU')
}

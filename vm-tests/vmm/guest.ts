/** A Linux guest of ours in the nested VM, with a tap that has an address, and a shell into it. */
import { release } from 'node:os'
import { ping } from '../../lib/cli/guest/traffic'
import type { KernelLine } from '../../lib/vm/kernel'
import { setAddress } from '../../lib/vhost/interface'
import type { Tap } from '../../lib/vhost/tap'
import { debianGuest } from '../../lib/vmm/debian-guest'
import type { GuestMode } from '../../lib/vmm/debian-guest'
import { GuestShell } from '../../lib/vmm/guest-shell'
import { Machine } from '../../lib/vmm/machine'
import type { MachineOptions } from '../../lib/vmm/machine'
import { quietTap } from '../support/quiet-tap'

/** RFC 5737: addresses for documentation, which no network uses. */
export const HOST_IP = '192.0.2.1'
export const GUEST_IP = '192.0.2.2'
export const BOOT_SECONDS = 200
export const PINGS = 10

/** The line of the kernel that this runs on, which its guest gets too. */
export function sameLine(): KernelLine {
  return release().startsWith('6.1.') ? '6.1' : '6.12'
}

export class Guest implements AsyncDisposable {
  private constructor(
    readonly machine: Machine,
    readonly shell: GuestShell,
    readonly tap: Tap,
  ) {}

  /** Booted, with its interface up. */
  static async boot(mode: GuestMode, options: Partial<MachineOptions> = {}): Promise<Guest> {
    const { image } = await debianGuest(sameLine(), mode)
    const tap = quietTap()
    setAddress(tap.name, Uint8Array.from(HOST_IP.split('.'), Number), 24)
    const shell = new GuestShell()
    const machine = new Machine({ image, tap, onConsole: shell.hear, ...options })
    const guest = new Guest(machine, shell, tap)
    machine.start()
    try {
      await shell.ready(machine, BOOT_SECONDS)
      await guest.up()
    } catch (error) {
      await guest[Symbol.asyncDispose]()
      throw error
    }
    return guest
  }

  run(command: string, seconds?: number): Promise<string> {
    return this.shell.run(command, seconds)
  }

  /** How many of `PINGS` echo requests to this host were answered. */
  ping(): Promise<number> {
    return ping(this.shell, HOST_IP, PINGS)
  }

  async up(): Promise<void> {
    await this.run('echo 1 >/proc/sys/net/ipv6/conf/eth0/disable_ipv6')
    await this.run(`ip addr add ${GUEST_IP}/24 dev eth0 && ip link set eth0 up`)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.machine.close()
    this.tap.close()
    await Promise.resolve()
  }
}

/**
 * A stock Debian kernel on our machine, its network card served by the kernel's vhost-net: the
 * driver that programs the VT-d here was written by nobody of this project.
 */
import { writeFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { inspect } from 'node:util'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import type { Iova } from '../../lib/address'
import { frame } from '../support/frames'
import { PacketSocket } from '../support/packet-socket'
import { BOOT_SECONDS, Guest, PINGS } from './guest'
import { mappedPages } from './second-stage'

const CARD = 0x0100
/** How often the guest is started again: `GUEST_REBOOTS=50` for more. */
const REBOOTS = Number(process.env['GUEST_REBOOTS'] ?? 2)

/**
 * Frames that wait at the tap while nobody takes them. The guest gets all of them before the answer to
 * its first question, which it waits 3 s for, and an emulated one takes a second for some hundreds.
 */
const QUEUED = 16

describe('Linux with intel_iommu=on and iommu.strict=1', () => {
  let guest: Guest
  let messages: string

  beforeAll(async () => {
    guest = await Guest.boot('strict')
    messages = await guest.run(`dmesg | grep -iE 'dmar|iommu|firmware|bios'`)
  }, 240_000)

  afterAll(async () => {
    await guest[Symbol.asyncDispose]()
  })

  it('drives the unit with queued invalidation, and complains of nothing', () => {
    expect(messages).toContain('DMAR: dmar0: Using Queued invalidation')
    expect(messages).toContain('DMAR: Intel(R) Virtualization Technology for Directed I/O')
    expect(messages).toMatch(/TLB invalidation policy: strict mode/)
    expect(messages).not.toMatch(/BIOS is broken|Firmware (Bug|Warn)|DMAR: \[|handling fault/)
  })

  it('has switched ATS on, and translates for the network card alone', async () => {
    expect(guest.machine.net.pci.ats?.enabled).toBe(true)
    const groups = await guest.run('ls -d /sys/kernel/iommu_groups/*/devices/0000:01:00.0')
    expect(groups).toMatch(/iommu_groups\/\d+\/devices\/0000:01:00\.0$/)
    expect(guest.machine.net.root.requester).toBe(0x0100)
  })

  it('pings this host through vhost-net, and each answer costs invalidations', async () => {
    const before = guest.machine.stats().nic
    const answered = await guest.ping()
    const after = guest.machine.stats()
    // What is lost leaves its traces in these.
    expect(answered, inspect({ before, after }, { depth: 4 })).toBe(PINGS)
    expect(after.nic.invalidates - before.invalidates).toBeGreaterThanOrEqual(PINGS)
    expect(after.nic.misses).toBeGreaterThan(0)
    expect(after.nic.faults).toBe(0)
    expect(after.recordedFaults).toBe(0)
  })

  it('reaches nothing any more once the driver has let go of the card', async () => {
    const { machine } = guest
    const rings = machine.net.pci.transport.queues.flatMap(({ desc, avail, used }) => [
      desc,
      avail,
      used,
    ])
    const space = machine.iommu!.addressSpace(CARD)
    const reachable = (): boolean[] => rings.map((at) => space.translate(at as Iova, 'none').ok)
    expect(reachable()).not.toContain(false)
    expect(mappedPages(machine, CARD)).toBeGreaterThan(rings.length)

    await guest.run('echo 0000:01:00.0 >/sys/bus/pci/drivers/virtio-pci/unbind')
    expect(reachable()).not.toContain(true)
    expect(mappedPages(machine, CARD)).toBe(0)
    const { entries, pages, faults } = machine.stats().nic
    expect({ entries, pages, faults }).toEqual({ entries: 0, pages: 0, faults: 0 })
  })

  it('works again with a driver that comes back', async () => {
    await guest.run('echo 0000:01:00.0 >/sys/bus/pci/drivers/virtio-pci/bind')
    await guest.up()
    expect(await guest.ping()).toBe(PINGS)
    expect(guest.machine.net.pci.ats?.enabled).toBe(true)
  })

  it.each(Array.from({ length: REBOOTS }, (_, i) => i + 1))(
    'reboots while frames are under way, and works again: %i',
    async () => {
      const before = guest.machine.stats()
      await using flood = await Flood.into(guest.tap.name)
      guest.machine.type(Buffer.from('reboot -f\n'))
      await guest.shell.ready(guest.machine, BOOT_SECONDS)
      await flood[Symbol.asyncDispose]()
      await guest.up()
      expect(await guest.ping()).toBe(PINGS)
      const { nic, recordedFaults, boots, tripleFaults } = guest.machine.stats()
      expect({ faults: nic.faults, recordedFaults }).toEqual({ faults: 0, recordedFaults: 0 })
      // An emulated processor's VMRUN can begin at the instruction behind it, in its host: a guest that
      // has no interrupt table yet dies of that, and is reset (QEMU 7.2, seen on 6.1).
      const ordered = boots - tripleFaults - (before.boots - before.tripleFaults)
      expect(ordered, guest.shell.said.slice(-2000)).toBe(1)
      expect(guest.machine.net.pci.ats?.enabled).toBe(true)
    },
    240_000,
  )

  it('powers off', async () => {
    guest.machine.type(Buffer.from('poweroff -f\n'))
    expect(await guest.machine.ended).toEqual({ how: 'power-off' })
  })
})

/**
 * Frames into the guest, which nobody there answers. It must not send any itself: Linux breaks the
 * queues of virtio devices before a restart, and virtio_net's `start_xmit` then waits for ever for the
 * completions of a queue that is broken (seen on 6.1.192).
 */
class Flood implements AsyncDisposable {
  #going = true
  readonly #sent: Promise<void>

  private constructor(private readonly socket: PacketSocket) {
    this.#sent = this.#send()
  }

  static async into(name: string): Promise<Flood> {
    writeFileSync(`/sys/class/net/${name}/tx_queue_len`, String(QUEUED))
    return new Flood(await PacketSocket.open(name))
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (!this.#going) return
    this.#going = false
    await this.#sent
    await this.socket[Symbol.asyncDispose]()
  }

  async #send(): Promise<void> {
    for (let i = 0; this.#going; i++) {
      // The tap's queue is full while nobody reads it.
      await this.socket.send(frame(i, 100, 'host')).catch(() => undefined)
      await sleep(5)
    }
  }
}

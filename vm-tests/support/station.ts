/** Everything from a tap to a driver, with a socket of the host's on the other side. */
import { MiB } from '../../lib/address'
import { NetDriver } from '../../lib/guest/net-driver'
import type { Mapping, NetDriverOptions } from '../../lib/guest/net-driver'
import { IntelIommu } from '../../lib/iommu/intel/intel-iommu'
import { GuestMemory } from '../../lib/memory/guest-memory'
import { VhostNet } from '../../lib/vhost/net'
import type { VhostNetOptions } from '../../lib/vhost/net'
import type { Tap } from '../../lib/vhost/tap'
import { PacketSocket } from './packet-socket'
import { quietTap } from './quiet-tap'

export const REQUESTER = '00:03.0'

export interface StationOptions {
  readonly mapping: Mapping
  readonly driver?: Partial<NetDriverOptions>
  readonly device?: Partial<VhostNetOptions>
  /** Pairs of queues. */
  readonly pairs?: number
  /** Frames of the socket carry a virtio header. */
  readonly vnetHeader?: boolean
}

export class Station implements AsyncDisposable {
  /** What the driver received and nobody took. */
  readonly #received: Uint8Array[] = []
  #arrived: (() => void) | undefined

  private constructor(
    readonly tap: Tap,
    readonly memory: GuestMemory,
    readonly iommu: IntelIommu,
    readonly nic: VhostNet,
    readonly driver: NetDriver,
    readonly packets: PacketSocket,
  ) {
    driver.onFrame((bytes) => {
      this.#received.push(bytes)
      this.#arrived?.()
    })
  }

  /** Started, and quiet. */
  static async open(options: StationOptions): Promise<Station> {
    const { mapping, pairs = 1, vnetHeader = false } = options
    const tap = quietTap({ queues: pairs })
    const memory = GuestMemory.allocate(64 * MiB)
    const iommu = new IntelIommu(memory)
    const addressSpace = mapping === 'off' ? {} : { addressSpace: iommu.addressSpace(REQUESTER) }
    const nic = VhostNet.open({ memory, backend: tap, ...addressSpace, ...options.device })
    const driver = NetDriver.attach(nic, {
      memory,
      mapping,
      pairs,
      ...(mapping === 'off' ? {} : { iommu }),
      ...options.driver,
    })
    const packets = await PacketSocket.open(tap.name, { vnetHeader })
    const station = new Station(tap, memory, iommu, nic, driver, packets)
    await driver.start()
    return station
  }

  /** Waits until the driver has received `count` frames, and takes them. */
  async receive(count: number, within = 20_000): Promise<Uint8Array[]> {
    const end = Date.now() + within
    while (this.#received.length < count) {
      let timer: NodeJS.Timeout | undefined
      await Promise.race([
        new Promise<void>((resolve) => (this.#arrived = resolve)),
        new Promise<void>((resolve) => (timer = setTimeout(resolve, end - Date.now()))),
      ])
      clearTimeout(timer)
      if (Date.now() >= end) throw new Error(`${this.#received.length} of ${count} frames came`)
    }
    return this.#received.splice(0, count)
  }

  /** Sends frames as room comes. */
  async send(frames: readonly Uint8Array[]): Promise<void> {
    for (const bytes of frames) {
      while (!this.driver.send(bytes)) await this.driver.ready(bytes.length)
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.driver.close()
    this.nic.close()
    this.memory.close()
    await this.packets[Symbol.asyncDispose]()
    this.tap.close()
  }
}

/**
 * Layer-2 forwarding between two ports in one process: the experiment that asks how often the
 * kernel has to ask. What comes in at one port goes out at the other, unchanged.
 *
 * A frame is copied once, from the buffer that it came in to one of the other port, and a burst
 * that came together goes out with one kick.
 */
import { GiB, MiB } from '../address'
import { NetDriver } from '../guest/net-driver'
import type { FrameSink, Mapping, SendOptions } from '../guest/net-driver'
import type { PageSize } from '../guest/intel-iommu-driver'
import { IntelIommu } from '../iommu/intel/intel-iommu'
import type { LookAheadMode } from '../iotlb/look-ahead'
import { exact, merged } from '../iotlb/reply-policy'
import { GuestMemory } from '../memory/guest-memory'
import type { Recorder } from '../trace/recorder'
import { Tap } from '../vhost/tap'
import { VhostNet } from '../vhost/net'

export interface PortOptions {
  readonly mapping: Mapping
  readonly pageSize: PageSize
  readonly lookAhead: LookAheadMode
  /** Largest reply in bytes; 0 answers each miss with its own page; default as `VhostNet`. */
  readonly merge?: number
  /** Pairs of queues of each port. */
  readonly queues: number
  /** Chains in each ring; default 256. */
  readonly queueSize?: number
  readonly recorder?: Recorder | undefined
}

/** Sums over the ports. */
export interface Figures {
  /** Frames from the first port to the second, and back. */
  readonly forwarded: readonly [number, number]
  /** Frames for which the other port had no room. */
  readonly dropped: number
  readonly misses: number
  readonly updates: number
  readonly invalidates: number
  readonly faults: number
  /** Chains that the kernel completed. */
  readonly chains: number
}

const REQUESTERS = ['00:03.0', '00:04.0'] as const

/** Guest memory for one or more ports: as much as a leaf of the wanted size needs. */
export function memoryFor({ mapping, pageSize }: PortOptions): GuestMemory {
  return GuestMemory.allocate(mapping === 'static' && pageSize === '1G' ? GiB : 64 * MiB)
}

/** A tap with its device and driver. */
export class Port implements Disposable {
  readonly tap: Tap
  readonly nic: VhostNet
  readonly driver: NetDriver

  constructor(memory: GuestMemory, iommu: IntelIommu, requester: string, options: PortOptions) {
    const { mapping, pageSize, lookAhead, merge, queues, queueSize, recorder } = options
    const recorded = recorder?.port()
    const addressSpace = iommu.addressSpace(requester)
    this.tap = Tap.open('fwd%d', { queues })
    try {
      this.nic = VhostNet.open({
        memory,
        addressSpace,
        backend: this.tap,
        lookAhead,
        ...recorded?.options,
        ...(merge === undefined ? {} : { reply: merge === 0 ? exact : merged(merge) }),
      })
    } catch (error) {
      this.tap.close()
      throw error
    }
    this.driver = NetDriver.attach(
      recorded?.device(this.nic, { memory, addressSpace }) ?? this.nic,
      {
        memory,
        iommu: recorder?.iommu(iommu) ?? iommu,
        mapping,
        pageSize,
        pairs: queues,
        ...(queueSize === undefined ? {} : { queueSize }),
      },
    )
  }

  [Symbol.dispose](): void {
    this.driver.close()
    this.nic.close()
    this.tap.close()
  }
}

export class Forwarder implements Disposable {
  readonly ports: readonly [Port, Port]
  readonly #memory: GuestMemory
  readonly #lanes: readonly [Lane, Lane]

  /** @throws SystemError where the host refuses */
  constructor(options: PortOptions) {
    this.#memory = memoryFor(options)
    const iommu = new IntelIommu(options.recorder?.tables(this.#memory) ?? this.#memory)
    const made: Port[] = []
    try {
      for (const requester of REQUESTERS) {
        made.push(new Port(this.#memory, iommu, requester, options))
      }
    } catch (error) {
      for (const port of made) port[Symbol.dispose]()
      this.#memory.close()
      throw error
    }
    const [first, second] = made
    this.ports = [first, second]
    this.#lanes = [new Lane(second.driver, options.queues), new Lane(first.driver, options.queues)]
  }

  async start(): Promise<void> {
    for (const { driver } of this.ports) await driver.start()
    for (const [i, { driver }] of this.ports.entries()) driver.onFrames(this.#lanes[i])
  }

  figures(): Figures {
    const [there, back] = this.#lanes
    const total = { misses: 0, updates: 0, invalidates: 0, faults: 0, chains: 0 }
    for (const { nic } of this.ports) {
      const stats = nic.stats()
      total.misses += stats.misses
      total.updates += stats.updates
      total.invalidates += stats.invalidates
      total.faults += stats.faults
      total.chains += stats.chains
    }
    return {
      forwarded: [there.forwarded, back.forwarded],
      dropped: there.dropped + back.dropped,
      ...total,
    }
  }

  [Symbol.dispose](): void {
    for (const port of this.ports) port[Symbol.dispose]()
    this.#memory.close()
  }
}

export function difference(now: Figures, before: Figures): Figures {
  return {
    forwarded: [now.forwarded[0] - before.forwarded[0], now.forwarded[1] - before.forwarded[1]],
    dropped: now.dropped - before.dropped,
    misses: now.misses - before.misses,
    updates: now.updates - before.updates,
    invalidates: now.invalidates - before.invalidates,
    faults: now.faults - before.faults,
    chains: now.chains - before.chains,
  }
}

/** Chains that needed no miss, 0 to 1. Exactly 1 only without any miss. */
export function hitRate({ misses, chains }: Pick<Figures, 'misses' | 'chains'>): number {
  return chains === 0 ? 0 : Math.max(0, 1 - misses / chains)
}

/** One direction: what comes in at a pair goes out at the same pair of the other port. */
class Lane implements FrameSink {
  forwarded = 0
  dropped = 0
  readonly #to: NetDriver
  readonly #options: readonly SendOptions[]

  constructor(to: NetDriver, queues: number) {
    this.#to = to
    this.#options = Array.from({ length: queues }, (_, pair) => ({ pair }))
  }

  frame(u8: Uint8Array, at: number, length: number, _: unknown, pair: number): void {
    if (this.#to.sendFrom(u8, at, length, this.#options[pair])) this.forwarded += 1
    else this.dropped += 1
  }

  burst(pair: number): void {
    this.#to.publish(pair)
  }
}

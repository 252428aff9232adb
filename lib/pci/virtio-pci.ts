/**
 * A virtio device on PCI Express, modern alone: configuration space, one BAR with all structures,
 * MSI-X, ATS, and the transport behind them.
 *
 * The machine around it forwards accesses to `config` and, where the guest has put BAR 0, to `bar`,
 * and takes the messages. What the backend does with rings is not here.
 *
 * virtio 1.3 4.1, Virtio Over PCI Bus. Section numbers without a name are of virtio 1.3.
 */
import type { InspectOptions } from 'node:util'
import { hex, shown, summary } from '../inspect'
import type { MmioDevice } from '../iommu/iommu'
import { Ats } from './ats'
import type { AtsOptions } from './ats'
import { ConfigSpace } from './config-space'
import { Express } from './express'
import { COMMAND, endpointHeader } from './header'
import { Listeners } from './listeners'
import { MSIX_ENTRY_BYTES, Msix } from './msix'
import type { Message } from './msix'
import { PciAccess, structureCapability } from './virtio-capabilities'
import { COMMON_BYTES, CommonConfiguration } from './virtio-common'
import { STATUS, VirtioTransport } from './virtio-transport'
import type { DeviceConfiguration, TransportOptions, VirtioBackend } from './virtio-transport'

/** What a type of device says in its header: 4.1.2. */
export interface VirtioIdentity {
  /** virtio device type, 1 for a network card (virtio 1.3 5). */
  readonly type: number
  readonly classCode: number
}

export const NET_IDENTITY: VirtioIdentity = { type: 1, classCode: 0x020000 }

export interface VirtioPciOptions extends TransportOptions {
  readonly identity?: VirtioIdentity
  readonly backend: VirtioBackend
  readonly configuration: DeviceConfiguration
  /** MSI-X vectors, 1 to 256. By default one for each queue and one for the configuration. */
  readonly vectors?: number
  /** false: no ATS capability. */
  readonly ats?: AtsOptions | false
  /** On the root bus, without a link. By default behind a root port. */
  readonly integrated?: boolean
}

const VENDOR = 0x1af4
/** 4.1.2.1: the PCI device id of a modern device is this and its type. */
const DEVICE_BASE = 0x1040
/** 4.1.2.1: 0x40 or higher for a device that is modern alone. */
const SUBSYSTEM = 0x1100
const REVISION = 1
const BAR = 0
const BAR_BYTES = 0x8000
const INTA = 1

/** Where the structures are in the BAR; each on a page of its own. */
const PLACES = {
  common: 0x0000,
  isr: 0x1000,
  device: 0x2000,
  notify: 0x3000,
  vectors: 0x4000,
  pending: 0x5000,
} as const
const PLACE_BYTES = 0x1000

/** 4.1.4.4: queue n is kicked at n times this. */
const NOTIFY_MULTIPLIER = 4

/** 4.1.4.5: bits of the ISR status. */
const ISR = { queue: 1, configuration: 2 } as const

export class VirtioPci implements Disposable {
  readonly config: ConfigSpace
  /** BAR 0, from its own offset 0. */
  readonly bar: MmioDevice
  readonly barBytes = BAR_BYTES
  readonly msix: Msix
  /** undefined where the options say so. */
  readonly ats: Ats | undefined
  readonly transport: VirtioTransport
  readonly #common: CommonConfiguration
  readonly #configuration: DeviceConfiguration
  readonly #interrupts = new Listeners<[asserted: boolean]>()
  readonly #subscriptions: readonly Disposable[]
  #isr = 0
  #asserted = false

  /**
   * @throws RangeError for queues, vectors or identities that can't be
   * @throws InvalidState ERR_UNSUPPORTED for a backend without a feature that is needed
   */
  constructor(options: VirtioPciOptions) {
    const { backend, configuration, queues, ats = {}, identity = NET_IDENTITY } = options
    const { vectors = Math.min(queues + 1, PLACE_BYTES / MSIX_ENTRY_BYTES) } = options
    if (vectors > PLACE_BYTES / MSIX_ENTRY_BYTES) {
      throw new RangeError(`vectors must be from 1 to 256: ${vectors}`)
    }
    this.#configuration = configuration
    this.transport = new VirtioTransport(backend, configuration.features, options)
    this.msix = new Msix({
      vectors,
      bar: BAR,
      tableOffset: PLACES.vectors,
      pendingOffset: PLACES.pending,
    })
    this.ats = ats === false ? undefined : new Ats(ats)
    this.#common = new CommonConfiguration(this.transport, vectors, () => {
      this.#resetDevice()
    })
    this.bar = {
      read: (offset, size) => this.#read(offset, size),
      write: (offset, value, size) => {
        this.#write(offset, value, size)
      },
    }
    this.config = this.#configSpace(identity, queues, options.integrated ?? false)
    this.#subscriptions = this.#subscribe(backend, queues)
    this.#commandChanged()
  }

  /** An MSI-X message: a memory write of four bytes. */
  onMessage(listener: (message: Message, vector: number) => void): Disposable {
    return this.msix.onMessage(listener)
  }

  /** INTA has become asserted or deasserted. With MSI-X enabled it stays deasserted. */
  onInterrupt(listener: (asserted: boolean) => void): Disposable {
    return this.#interrupts.add(listener)
  }

  /** ATS Enable or STU has changed; never called without an ATS capability. */
  onAts(listener: (enabled: boolean, stu: number) => void): Disposable {
    return this.ats?.onAts(listener) ?? { [Symbol.dispose]: () => undefined }
  }

  /** What the backend threw inside a write of the guest; the guest sees DEVICE_NEEDS_RESET. */
  onFailure(listener: (cause: unknown) => void): Disposable {
    return this.transport.onFailure(listener)
  }

  /** Where in the BAR a queue is kicked, for machines that bind the address to an eventfd. */
  notifyOffset(queue: number): number {
    return PLACES.notify + NOTIFY_MULTIPLIER * queue
  }

  [shown](depth: number, options: InspectOptions): string {
    const fields = {
      status: hex(this.transport.status),
      memorySpace: this.config.memorySpace,
      busMaster: this.config.busMaster,
      bar: hex(this.config.barAddress(0)),
      ats: this.ats?.enabled,
      queues: this.transport.queues,
    }
    return summary('VirtioPci', fields, depth, options)
  }

  /** A reset of the bus, or of the machine. */
  reset(): void {
    this.config.reset('conventional')
  }

  /** Stops the backend and lets go of it. Its owner closes it. */
  [Symbol.dispose](): void {
    for (const subscription of this.#subscriptions) subscription[Symbol.dispose]()
    this.transport[Symbol.dispose]()
  }

  #configSpace(identity: VirtioIdentity, queues: number, integrated: boolean): ConfigSpace {
    const { type, classCode } = identity
    const header = endpointHeader({
      vendor: VENDOR,
      device: DEVICE_BASE + type,
      revision: REVISION,
      classCode,
      subsystemVendor: VENDOR,
      subsystem: SUBSYSTEM,
      bars: [{ index: BAR, bytes: BAR_BYTES, kind: 'memory64' }],
      interruptPin: INTA,
    })
    const notify = { offset: PLACES.notify, bytes: queues * NOTIFY_MULTIPLIER }
    const express = new Express({
      type: integrated ? 'integrated' : 'endpoint',
      onFunctionReset: () => {
        this.config.reset('function')
      },
    })
    return new ConfigSpace(header, [
      express,
      this.msix,
      structureCapability('common', BAR, { offset: PLACES.common, bytes: COMMON_BYTES }),
      structureCapability('notify', BAR, notify, NOTIFY_MULTIPLIER),
      structureCapability('isr', BAR, { offset: PLACES.isr, bytes: 1 }),
      structureCapability('device', BAR, {
        offset: PLACES.device,
        bytes: this.#configuration.bytes,
      }),
      new PciAccess(BAR, BAR_BYTES, this.bar),
      ...(this.ats === undefined ? [] : [this.ats]),
    ])
  }

  #subscribe(backend: VirtioBackend, queues: number): readonly Disposable[] {
    const calls = Array.from({ length: queues }, (_, index) =>
      backend.onCall(index, () => {
        this.#interrupt(this.transport.queues[index].vector, ISR.queue)
      }),
    )
    return [
      ...calls,
      this.#configuration.onChange(() => {
        this.#configurationChanged()
      }),
      this.transport.onNeedsReset(() => {
        this.#interrupt(this.#common.configVector, ISR.configuration)
      }),
      this.config.onReset(() => {
        this.#resetDevice()
      }),
      this.config.onChange((name) => {
        if (name === 'command') this.#commandChanged()
      }),
      this.msix.onEnable(() => {
        this.#drive()
      }),
    ]
  }

  #read(offset: number, size: number): bigint {
    const at = offset % PLACE_BYTES
    switch (offset - at) {
      case PLACES.common:
        return this.#common.read(at, size)
      case PLACES.isr:
        return at === 0 ? this.#readIsr() : 0n
      case PLACES.device:
        return this.#readConfiguration(at, size)
      case PLACES.vectors:
        return this.msix.table.read(at, size)
      case PLACES.pending:
        return this.msix.pendingBits.read(at, size)
      default:
        return 0n
    }
  }

  #write(offset: number, value: bigint, size: number): void {
    const at = offset % PLACE_BYTES
    switch (offset - at) {
      case PLACES.common:
        this.#common.write(at, value, size)
        return
      case PLACES.notify:
        // 4.1.5.2: the place says which queue; without NOTIFICATION_DATA the value says nothing.
        this.transport.kick(Math.floor(at / NOTIFY_MULTIPLIER))
        return
      case PLACES.vectors:
        this.msix.table.write(at, value, size)
        return
      default:
        return
    }
  }

  /** 4.1.4.5.1: reading resets it and deasserts the interrupt. */
  #readIsr(): bigint {
    const isr = this.#isr
    this.#isr = 0
    this.#drive()
    return BigInt(isr)
  }

  #readConfiguration(at: number, size: number): bigint {
    if (at + size > this.#configuration.bytes) return 0n
    if (size < 8) return BigInt(this.#configuration.read(at, size))
    const [low, high] = [this.#configuration.read(at, 4), this.#configuration.read(at + 4, 4)]
    return (BigInt(high) << 32n) | BigInt(low)
  }

  /** 4.1.4.3.1: the generation says that fields read before and after do not belong together. */
  #configurationChanged(): void {
    this.#common.generation = (this.#common.generation + 1) & 0xff
    this.#interrupt(this.#common.configVector, ISR.configuration)
  }

  /**
   * 4.1.5.1, 4.1.5.3: a message where MSI-X is on, otherwise INTA through the ISR status. 3.1.1: no
   * notification before DRIVER_OK.
   */
  #interrupt(vector: number, isr: number): void {
    if ((this.transport.status & STATUS.DRIVER_OK) === 0) return
    if (this.msix.enabled) {
      this.msix.raise(vector)
      return
    }
    this.#isr |= isr
    this.#drive()
  }

  /**
   * PCIe 5.0 7.5.1.1.3, 7.5.1.1.4: Interrupt Status is there even while Interrupt Disable is set.
   */
  #drive(): void {
    const wanted = this.#isr !== 0 && !this.msix.enabled
    const status = COMMAND.interruptStatus
    const command = this.config.get('command')
    this.config.set('command', (command & ~status.bits) | status.of(wanted))
    const asserted = wanted && !this.config.interruptDisable
    if (asserted === this.#asserted) return
    this.#asserted = asserted
    this.#interrupts.call(asserted)
  }

  #commandChanged(): void {
    this.transport.setBusMaster(this.config.busMaster)
    this.msix.hold(!this.config.busMaster)
    this.#drive()
  }

  /** What a driver sees of the device; configuration space and MSI-X are not the device's. */
  #resetDevice(): void {
    this.transport.reset()
    this.#common.clear()
    this.#isr = 0
    this.#drive()
  }
}

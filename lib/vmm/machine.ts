/**
 * A small PC for a stock Linux: memory, processors, a serial console, a VT-d unit, and one virtio
 * network card behind a root port, served by the kernel's vhost-net.
 *
 * It exists so that a driver that nobody here wrote programs the remapping unit. It is not a
 * machine monitor for daily use: no disk, no display, no firmware.
 */
import { availableParallelism } from 'node:os'
import { MiB } from '../address'
import { messageOf } from '../errors'
import type { Dmar } from '../acpi/dmar-structures'
import { IntelIommu } from '../iommu/intel/intel-iommu'
import type { IntelIommuOptions } from '../iommu/intel/capabilities'
import { GuestMemory } from '../memory/guest-memory'
import type { VhostNetOptions, VhostNetStats } from '../vhost/net'
import type { Tap } from '../vhost/tap'
import { Bus } from './bus'
import { Apart, Kvm } from './kvm'
import {
  DELAY_PORT,
  ECAM,
  INTEGRATED,
  KEYBOARD_PORT,
  POWER_PORTS,
  REMAPPING_BASE,
  ROOT_PORT,
  SERIAL,
} from './layout'
import { loadBare, loadLinux } from './linux'
import type { BareImage, LinuxImage } from './linux'
import { NetFunction } from './net-function'
import { KeyboardReset, Power, RESET_CODE } from './power'
import { prepareProcessor, startProcessor, writeBootTables } from './processor-state'
import { RegisterPage } from './register-page'
import { SERIAL_BYTES, Serial } from './serial'
import { acpiTables } from './tables'
import { Vcpu } from './vcpu'
import type { VcpuStop } from './vcpu'

export interface MachineOptions extends Pick<VhostNetOptions, 'lookAhead' | 'reply'> {
  readonly image: LinuxImage | BareImage
  readonly tap: Tap
  /** MiB, 256 or more; 512 if left out. */
  readonly memoryMiB?: number
  /** 1 to 4; 1 if left out. */
  readonly processors?: number
  /** Options of the remapping unit; false: none. */
  readonly iommu?: IntelIommuOptions | false
  /** Whether the network card has ATS; true if left out. */
  readonly ats?: boolean
  /**
   * Whether the network card is on the root bus, as a part of the processor's chip would be; false
   * if left out, which is behind a root port.
   */
  readonly integrated?: boolean
  /** The network card's address. */
  readonly mac?: string
  /**
   * Runs the first processor on the thread of the event loop, unless the registers are shared; true if
   * left out.
   */
  readonly onLoop?: boolean
  /**
   * Lets a guest that is busy with the invalidation queue write the unit's registers without an exit,
   * for which a processor of this host looks at them all the time. If left out: where this host has
   * more processors than the guest.
   */
  readonly shareRegisters?: boolean
  /** What a reset does: starts again, or ends the run as a power-off does. */
  readonly onReset?: 'boot' | 'end'
  /** Each byte that the guest sends through the serial port. */
  readonly onConsole?: (byte: number) => void
}

export type Ending =
  | { readonly how: 'power-off' | 'reset' | 'triple-fault' | 'closed' }
  | { readonly how: 'failed'; readonly reason: string }

export interface MachineStats {
  readonly boots: number
  /** Boots that followed a triple fault, and not a guest's order. */
  readonly tripleFaults: number
  /** Exits of the processors that were handled here. */
  readonly exits: number
  /** New tails of the invalidation queue that came without an exit (`shareRegisters`). */
  readonly served: number
  readonly nic: VhostNetStats
  /** Faults that the unit recorded. */
  readonly recordedFaults: number
}

const DEFAULT_MEMORY = 512
const LEAST_MEMORY = 256
const MOST_PROCESSORS = 4
const DEFAULT_MAC = '02:00:00:00:00:02'
const ADDRESS_WIDTH = 48

export class Machine implements Disposable {
  readonly memory: GuestMemory
  readonly iommu: IntelIommu | undefined
  readonly net: NetFunction
  /** Settled when the guest has powered off, or cannot go on; by a reset where that is an end. */
  readonly ended: Promise<Ending>
  readonly #options: MachineOptions
  readonly #processors: number
  readonly #serial: Serial
  readonly #memoryBus = new Bus()
  readonly #ports = new Bus()
  #kvm: Kvm | undefined
  #vcpus: readonly Vcpu[] = []
  #end: (ending: Ending) => void = () => undefined
  #boots = 0
  #tripleFaults = 0
  #pastExits = 0
  #pastServed = 0
  #unit: Disposable | undefined
  #page: RegisterPage | undefined
  #faults = 0
  #resetting = false

  /** @throws RangeError for options out of range; SystemError where the host refuses */
  constructor(options: MachineOptions) {
    this.#options = options
    const { tap, mac = DEFAULT_MAC, iommu = {}, lookAhead, reply } = options
    const { ats = true, integrated = false } = options
    this.#processors = inRange('processors', options.processors ?? 1, 1, MOST_PROCESSORS)
    const memoryMiB = inRange('memoryMiB', options.memoryMiB ?? DEFAULT_MEMORY, LEAST_MEMORY, 4096)
    this.memory = GuestMemory.allocate(memoryMiB * MiB)
    this.iommu = iommu === false ? undefined : new IntelIommu(this.memory, iommu)
    const policy = { ...(lookAhead && { lookAhead }), ...(reply && { reply }) }
    this.net = new NetFunction({
      ...{ memory: this.memory, tap, iommu: this.iommu, ats, integrated, mac },
      ...policy,
    })
    this.#serial = new Serial(
      (byte) => options.onConsole?.(byte),
      (asserted) => this.#kvm?.setLine(SERIAL.irq, asserted),
    )
    this.ended = new Promise((resolve) => {
      this.#end = resolve
    })
    this.#wire()
  }

  /** Boots. @throws SystemError ENOENT without KVM; RangeError for a kernel that does not fit */
  start(): void {
    this.#powerOn()
  }

  /** Bytes for the serial port. */
  type(bytes: Uint8Array): void {
    this.#serial.receive(bytes)
  }

  stats(): MachineStats {
    const exits = this.#vcpus.reduce((sum, vcpu) => sum + vcpu.exits, this.#pastExits)
    const served = this.#pastServed + (this.#page?.served ?? 0)
    return {
      boots: this.#boots,
      tripleFaults: this.#tripleFaults,
      exits,
      served,
      nic: this.net.nic.stats(),
      recordedFaults: this.#faults,
    }
  }

  /** The guest is stopped where it is. */
  close(): void {
    this.#powerDown()?.close()
    this.net[Symbol.dispose]()
    this.memory.close()
    this.#end({ how: 'closed' })
  }

  [Symbol.dispose](): void {
    this.close()
  }

  #wire(): void {
    const { iommu } = this
    if (iommu !== undefined) {
      iommu.on('interrupt', (message) => {
        this.#page?.takeBack()
        this.#kvm?.signal(message)
      })
      iommu.on('fault', () => {
        this.#page?.takeBack()
        this.#faults++
      })
    }
    this.#memoryBus.add(ECAM.base, ECAM.bytes, this.net.root)
    this.#ports.add(SERIAL.port, SERIAL_BYTES, this.#serial)
    const reset = (): void => {
      this.#reset()
    }
    const power = new Power(() => {
      this.#stop({ how: 'power-off' })
    }, reset)
    this.#ports.add(POWER_PORTS.base, POWER_PORTS.bytes, power)
    this.#ports.add(KEYBOARD_PORT, 1, new KeyboardReset(reset))
  }

  /** A new virtual machine of KVM on the same memory, so that nothing of the last run is left. */
  #powerOn(): void {
    this.#boots++
    const { memory } = this
    const kvm = Kvm.open(memory)
    this.#kvm = kvm
    this.#placeUnit(kvm)
    kvm.absorbPort(DELAY_PORT)
    kvm.coalescePort(SERIAL.port, 1)
    this.net.attach(kvm, this.#memoryBus)
    const tables = acpiTables({ processors: this.#processors, dmar: this.#dmar() })
    for (const { at, bytes } of [...tables, RESET_CODE]) memory.view(at, bytes.length).set(bytes)
    writeBootTables(memory)
    const { image } = this.#options
    const entry = 'code' in image ? loadBare(memory, image) : loadLinux(memory, image, tables[0].at)
    this.#vcpus = Array.from({ length: this.#processors }, (_, id) => {
      const vcpu = kvm.createVcpu(id)
      prepareProcessor(vcpu, kvm.supportedCpuid, id, this.#processors)
      if (id === 0) startProcessor(vcpu, entry)
      return new Vcpu(vcpu, {
        memory: this.#memoryBus,
        ports: this.#ports,
        onLoop: () => id === 0 && (this.#options.onLoop ?? true) && this.#page?.shared !== true,
        onStop: (stop) => {
          this.#stopped(stop)
        },
      })
    })
    for (const vcpu of this.#vcpus) vcpu.start()
  }

  #placeUnit(kvm: Kvm): void {
    const { iommu: unit } = this
    if (unit === undefined) return
    const { shareRegisters = availableParallelism() > this.#processors } = this.#options
    if (shareRegisters) {
      this.#page = new RegisterPage({
        unit,
        base: REMAPPING_BASE,
        map: (page) => {
          const shared = kvm.addMemory(page)
          const apart = new Apart(this.#vcpus.map(({ thread }) => thread))
          return {
            follow: () => {
              apart.follow()
            },
            [Symbol.dispose]: () => {
              apart[Symbol.dispose]()
              shared[Symbol.dispose]()
            },
          }
        },
        onError: (error) => {
          this.#stop({ how: 'failed', reason: messageOf(error) })
        },
      })
    }
    this.#unit = this.#memoryBus.add(REMAPPING_BASE, unit.registerBytes, this.#page ?? unit)
  }

  /**
   * Processors first: nobody then uses a device that goes back to its beginning.
   * @returns what is to be closed, without processors and devices
   */
  #powerDown(): Kvm | undefined {
    for (const vcpu of this.#vcpus) vcpu.close()
    this.#pastExits = this.stats().exits
    this.#vcpus = []
    this.net.detach()
    this.#unit?.[Symbol.dispose]()
    this.#pastServed += this.#page?.served ?? 0
    this.#page?.close()
    this.#page = undefined
    this.iommu?.reset()
    this.#serial.reset()
    const kvm = this.#kvm
    this.#kvm = undefined
    return kvm
  }

  #stopped(stop: VcpuStop): void {
    if (stop.how !== 'shutdown') {
      this.#stop(stop)
      return
    }
    this.#tripleFaults++
    this.#reset('triple-fault')
  }

  /** Not inside the exit that asks for it. */
  #reset(how: 'reset' | 'triple-fault' = 'reset'): void {
    if (this.#options.onReset === 'end') {
      this.#stop({ how })
      return
    }
    if (this.#resetting) return
    this.#resetting = true
    setImmediate(() => {
      this.#resetting = false
      if (this.#kvm === undefined) return
      // Not the other way round: a host whose only machine goes has virtualisation switched off.
      const last = this.#powerDown()
      this.#powerOn()
      last?.close()
    })
  }

  #stop(ending: Ending): void {
    setImmediate(() => {
      this.#powerDown()?.close()
      this.#end(ending)
    })
  }

  /**
   * One unit in front of everything; ATS behind the root port, and beside it (VT-d 5.10 8.3, 8.5,
   * 8.8).
   */
  #dmar(): Dmar | undefined {
    if (this.iommu === undefined) return undefined
    const beside: Pick<Dmar, 'satc'> =
      this.#options.integrated === true && this.net.pci.ats !== undefined
        ? { satc: [{ scopes: [{ type: 'endpoint', path: path(INTEGRATED) }] }] }
        : {}
    return {
      hostAddressWidth: Math.min(ADDRESS_WIDTH, this.iommu.capabilities.hostAddressWidth),
      drhd: [{ base: REMAPPING_BASE, includePciAll: true }],
      atsr: [{ scopes: [{ type: 'bridge', path: path(ROOT_PORT) }] }],
      ...beside,
    }
  }
}

function path(slot: { readonly device: number; readonly function: number }): string {
  return `00:${slot.device.toString(16).padStart(2, '0')}.${slot.function}`
}

function inRange(name: string, value: number, least: number, most: number): number {
  if (Number.isInteger(value) && value >= least && value <= most) return value
  throw new RangeError(`${name} must be an integer from ${least} to ${most}: ${value}`)
}

/**
 * The PCI Express hierarchy of the machine: a host bridge, one root port, and one function, behind
 * it or beside it.
 *
 * Configuration space is memory (ECAM). Which bus is behind the port is for the guest to say, and
 * whatever it says is possible. PCIe 5.0 7.2.2.
 */
import type { MmioDevice } from '../iommu/iommu'
import { ConfigSpace } from '../pci/config-space'
import { endpointHeader } from '../pci/header'
import { RootPort } from '../pci/root-port'
import { INTEGRATED, ROOT_PORT } from './layout'

/** A root complex without a driver, as QEMU's generic PCI Express host has it. */
const HOST_BRIDGE = {
  ...{ vendor: 0x1b36, device: 0x0008, classCode: 0x060000 },
  ...{ subsystemVendor: 0x1af4, subsystem: 0x1100 },
}

export class PciRoot implements MmioDevice {
  readonly port = new RootPort({ port: 1 })
  readonly #hostBridge = new ConfigSpace(endpointHeader(HOST_BRIDGE))
  readonly #function: ConfigSpace
  readonly #integrated: boolean

  /** @param integrated the function is on the root bus, not behind the root port */
  constructor(fn: ConfigSpace, integrated = false) {
    this.#function = fn
    this.#integrated = integrated
  }

  /** The function's 16-bit source id; undefined while its bus has no number. */
  get requester(): number | undefined {
    if (this.#integrated) return INTEGRATED.device << 3
    const buses = this.port.buses
    return buses === undefined ? undefined : buses.secondary << 8
  }

  read(offset: number, size: number): bigint {
    const config = this.#at(offset)
    return config === undefined
      ? ALL_ONES >> BigInt(64 - 8 * size)
      : config.read(offset & 0xfff, size)
  }

  write(offset: number, value: bigint, size: number): void {
    this.#at(offset)?.write(offset & 0xfff, value, size)
  }

  reset(): void {
    this.#hostBridge.reset('conventional')
    this.port.reset()
  }

  #at(offset: number): ConfigSpace | undefined {
    const bus = offset >>> 20
    const device = (offset >>> 15) & 31
    const fn = (offset >>> 12) & 7
    if (fn !== 0) return undefined
    if (bus === 0 && device === 0) return this.#hostBridge
    if (bus === 0 && device === ROOT_PORT.device) return this.port.config
    if (this.#integrated)
      return bus === 0 && device === INTEGRATED.device ? this.#function : undefined
    return bus === this.port.buses?.secondary && device === 0 ? this.#function : undefined
  }
}

const ALL_ONES = 0xffff_ffff_ffff_ffffn

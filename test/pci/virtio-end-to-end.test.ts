/** Frames through registers: a driver, virtio-pci, a device, and the IOMMU between their rings. */
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { MiB } from '../../lib/address'
import { NetDriver } from '../../lib/guest/net-driver'
import { IntelIommu } from '../../lib/iommu/intel/intel-iommu'
import { GuestMemory } from '../../lib/memory/guest-memory'
import { LoopbackDevice } from '../../lib/testing/loopback-device'
import type { NetDevice } from '../../lib/virtio/net-device'
import type { RingAddresses } from '../../lib/virtio/ring-layout'
import { NetConfig } from '../../lib/pci/virtio-net-config'
import { VirtioPci } from '../../lib/pci/virtio-pci'
import { STATUS } from '../../lib/pci/virtio-transport'
import { find } from './support'
import { RegisterDriver } from './virtio-support'

const REQUESTER = 0x0100
const ISR = 0x1000
const TABLE = 0x4000

/** The bus side of a driver: a NetDevice whose every call is register accesses. */
class PciNetDevice implements NetDevice {
  readonly requester = REQUESTER
  readonly features: bigint
  readonly #registers: RegisterDriver
  readonly #listeners = new Map<number, () => void>()

  constructor(
    readonly pci: VirtioPci,
    interrupts: 'msix' | 'intx',
  ) {
    this.#registers = new RegisterDriver(pci)
    this.#registers.enableFunction()
    this.features = this.#registers.offered()
    if (interrupts === 'msix') {
      for (const vector of [0, 1]) {
        pci.bar.write(TABLE + 16 * vector, 0xfee00000n, 8)
        pci.bar.write(TABLE + 16 * vector + 8, BigInt(vector), 8)
      }
      pci.config.write(find(pci.config, 0x11) + 2, 0x8000n, 2)
    }
    pci.onMessage(({ data }) => this.#listeners.get(data)?.())
    pci.onInterrupt((asserted) => {
      if (asserted && pci.bar.read(ISR, 1) !== 0n)
        for (const call of this.#listeners.values()) call()
    })
  }

  setFeatures(bits: bigint): void {
    this.#registers.set('status', 0)
    this.#registers.status(STATUS.ACKNOWLEDGE)
    this.#registers.status(STATUS.DRIVER)
    this.#registers.accept(bits)
    const status = this.#registers.status(STATUS.FEATURES_OK)
    if ((status & STATUS.FEATURES_OK) === 0) throw new RangeError('the device refuses')
  }

  setQueue(index: number, ring: RingAddresses): void {
    this.#registers.queue(index, ring, index)
  }

  start(): void {
    this.#registers.enableFunction()
    const status = this.#registers.status(STATUS.DRIVER_OK)
    if (status !== 15) throw new Error(`the device does not start: ${status}`)
  }

  stop(): void {
    this.#registers.set('status', 0)
  }

  kick(index: number): void {
    this.#registers.kick(index)
  }

  onCall(index: number, listener: () => void): Disposable {
    this.#listeners.set(index, listener)
    return { [Symbol.dispose]: () => void this.#listeners.delete(index) }
  }
}

let memory: GuestMemory
let iommu: IntelIommu
let device: LoopbackDevice
let pci: VirtioPci

beforeEach(() => {
  memory = GuestMemory.allocate(8 * MiB)
  iommu = new IntelIommu(memory)
  const addressSpace = iommu.addressSpace(REQUESTER)
  device = new LoopbackDevice({ memory, addressSpace, requester: REQUESTER })
  pci = new VirtioPci({ backend: device, configuration: new NetConfig(), queues: 2 })
})
afterEach(() => {
  pci[Symbol.dispose]()
  device.close()
  memory.close()
})

function attach(interrupts: 'msix' | 'intx'): NetDriver {
  const nic = new PciNetDevice(pci, interrupts)
  return NetDriver.attach(nic, {
    memory,
    iommu,
    mapping: 'strict',
  })
}

async function next(driver: NetDriver): Promise<Uint8Array> {
  for await (const frame of driver.frames()) return frame
  throw new Error('no more frames')
}

async function roundTrips(driver: NetDriver, count: number): Promise<void> {
  for (let i = 0; i < count; i++) {
    const frame = Uint8Array.from({ length: 60 + i }, (_, at) => (at * 7 + i) & 0xff)
    expect(driver.send(frame)).toBe(true)
    expect(await next(driver)).toEqual(frame)
  }
}

describe.each(['msix', 'intx'] as const)('a driver with %s', (interrupts) => {
  it('sends and receives', async () => {
    using driver = attach(interrupts)
    await driver.start()
    await roundTrips(driver, 300)
    expect(device.stats()).toMatchObject({ transmitted: 300, received: 300, errors: 0 })
  })
})

it('bus mastering taken away in between loses no frame', async () => {
  using driver = attach('msix')
  await driver.start()
  await roundTrips(driver, 3)
  pci.config.write(4, 2n, 2)
  const frame = new Uint8Array(60).fill(9)
  driver.send(frame)
  await new Promise(setImmediate)
  expect(device.stats().transmitted).toBe(3)
  pci.config.write(4, 6n, 2)
  expect(await next(driver)).toEqual(frame)
  expect(device.stats()).toMatchObject({ transmitted: 4, received: 4 })
})

it('after a function level reset another driver goes on', async () => {
  const first = attach('msix')
  await first.start()
  await roundTrips(first, 3)
  pci.config.write(find(pci.config, 0x10) + 8, 0x8000n, 2)
  expect(pci.transport.running).toBe(false)
  first.close()
  using second = attach('msix')
  await second.start()
  await roundTrips(second, 3)
})

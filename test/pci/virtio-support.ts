/** A backend that writes down what it is asked, and a driver that knows the registers. */
import { features } from '../../lib/virtio/net'
import type { RingAddresses } from '../../lib/virtio/ring-layout'
import { NetConfig } from '../../lib/pci/virtio-net-config'
import { VirtioPci } from '../../lib/pci/virtio-pci'
import type { VirtioPciOptions } from '../../lib/pci/virtio-pci'
import { STATUS } from '../../lib/pci/virtio-transport'
import type { VirtioBackend } from '../../lib/pci/virtio-transport'

export const OFFERED = features(
  'VIRTIO_NET_F_MRG_RXBUF',
  'VIRTIO_F_INDIRECT_DESC',
  'VIRTIO_F_EVENT_IDX',
  'VIRTIO_F_VERSION_1',
  'VIRTIO_F_ACCESS_PLATFORM',
)
export const NEEDED = features('VIRTIO_F_VERSION_1', 'VIRTIO_F_ACCESS_PLATFORM')

export class RecordingBackend implements VirtioBackend {
  features = OFFERED
  readonly log: string[] = []
  readonly rings = new Map<number, RingAddresses>()
  agreed = 0n
  running = false
  /** The name of the method that throws. */
  refuse: string | undefined
  /** What it throws, where that is not just an Error. */
  refusal: Error | undefined
  readonly #calls = new Map<number, Set<() => void>>()
  readonly #errors = new Set<(index: number) => void>()

  setFeatures(bits: bigint): void {
    this.#note('setFeatures')
    this.agreed = bits
  }

  setQueue(index: number, ring: RingAddresses): void {
    this.#note('setQueue', index)
    this.rings.set(index, ring)
  }

  start(): void {
    this.#note('start')
    if (this.running) throw new Error('started twice')
    this.running = true
  }

  stop(): void {
    this.#note('stop')
    if (!this.running) throw new Error('stopped without a start')
    this.running = false
  }

  kick(index: number): void {
    this.#note('kick', index)
    if (!this.running) throw new Error('kicked while stopped')
  }

  onCall(index: number, listener: () => void): Disposable {
    const listeners = this.#calls.get(index) ?? new Set()
    this.#calls.set(index, listeners.add(listener))
    return { [Symbol.dispose]: () => void listeners.delete(listener) }
  }

  onError(listener: (index: number) => void): Disposable {
    this.#errors.add(listener)
    return { [Symbol.dispose]: () => void this.#errors.delete(listener) }
  }

  /** The device has completed chains of a queue. */
  call(index: number): void {
    for (const listener of this.#calls.get(index) ?? []) listener()
  }

  /** A queue can't go on. */
  fail(index: number): void {
    for (const listener of this.#errors) listener(index)
  }

  get listeners(): number {
    return [...this.#calls.values()].reduce((sum, { size }) => sum + size, this.#errors.size)
  }

  #note(name: string, index?: number): void {
    this.log.push(index === undefined ? name : `${name} ${index}`)
    if (this.refuse === name) throw this.refusal ?? new Error(`${name} refused`)
  }
}

/** One that can take a queue back while it runs. */
export class ResettingBackend extends RecordingBackend {
  resetQueue(index: number): void {
    this.log.push(`resetQueue ${index}`)
  }
}

export function made(
  options: Partial<VirtioPciOptions> & { readonly backend?: RecordingBackend } = {},
) {
  const backend = options.backend ?? new RecordingBackend()
  const configuration = new NetConfig({ mac: '52:54:00:12:34:56', mtu: 1500 })
  const pci = new VirtioPci({ configuration, queues: 2, ...options, backend })
  return { backend, configuration, pci, driver: new RegisterDriver(pci), log: backend.log }
}

/** Register names and places as in virtio 1.3 4.1.4.3, written down again on purpose. */
export const REGISTER = {
  deviceFeatureSelect: [0, 4],
  deviceFeature: [4, 4],
  driverFeatureSelect: [8, 4],
  driverFeature: [12, 4],
  configVector: [16, 2],
  numQueues: [18, 2],
  status: [20, 1],
  generation: [21, 1],
  queueSelect: [22, 2],
  queueSize: [24, 2],
  queueVector: [26, 2],
  queueEnable: [28, 2],
  queueNotifyOff: [30, 2],
  queueDesc: [32, 8],
  queueDriver: [40, 8],
  queueDevice: [48, 8],
  queueReset: [58, 2],
} as const

type RegisterName = keyof typeof REGISTER

export const RING = { desc: 0x10000n, avail: 0x11000n, used: 0x12000n } as const

/** Does what a driver does, through BAR and configuration space alone. */
export class RegisterDriver {
  constructor(readonly pci: VirtioPci) {}

  get(name: RegisterName): bigint {
    const [offset, size] = REGISTER[name]
    return this.pci.bar.read(offset, size)
  }

  set(name: RegisterName, value: bigint | number): void {
    const [offset, size] = REGISTER[name]
    this.pci.bar.write(offset, BigInt(value), size)
  }

  /** Memory space and bus mastering. */
  enableFunction(command = 6n): void {
    this.pci.config.write(4, command, 2)
  }

  offered(): bigint {
    return [1, 0].reduce((bits, half) => {
      this.set('deviceFeatureSelect', half)
      return (bits << 32n) | this.get('deviceFeature')
    }, 0n)
  }

  accept(bits: bigint): void {
    for (const half of [0, 1]) {
      this.set('driverFeatureSelect', half)
      this.set('driverFeature', (bits >> BigInt(32 * half)) & 0xffffffffn)
    }
  }

  /** Ors bits to the status. @returns what it reads then */
  status(bits: number): number {
    this.set('status', Number(this.get('status')) | bits)
    return Number(this.get('status'))
  }

  queue(index: number, ring: Partial<RingAddresses> = {}, vector = 0xffff): void {
    const { size = 256, desc, avail, used } = { ...RING, ...ring }
    this.set('queueSelect', index)
    this.set('queueSize', size)
    this.set('queueVector', vector)
    this.set('queueDesc', desc)
    this.set('queueDriver', avail)
    this.set('queueDevice', used)
    this.set('queueEnable', 1)
  }

  kick(index: number): void {
    this.pci.bar.write(this.pci.notifyOffset(index), BigInt(index), 2)
  }

  /** virtio 1.3 3.1.1, all of it. @returns the status */
  start(options: { readonly accept?: bigint; readonly queues?: readonly number[] } = {}): number {
    this.enableFunction()
    this.set('status', 0)
    this.status(STATUS.ACKNOWLEDGE)
    this.status(STATUS.DRIVER)
    this.accept(options.accept ?? NEEDED)
    this.status(STATUS.FEATURES_OK)
    for (const index of options.queues ?? [0, 1]) this.queue(index)
    return this.status(STATUS.DRIVER_OK)
  }
}

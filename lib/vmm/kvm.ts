/**
 * A virtual machine of KVM, call by call: memory, the interrupt controllers in the kernel, eventfds
 * bound to addresses and to interrupts, processors.
 *
 * Each method is one step of the kernel's protocol. What the machine looks like to its guest is
 * decided elsewhere. Documentation/virt/kvm/api.rst of Linux.
 */
import { InvalidState, SystemError, succeeded } from '../errors'
import type { GuestMemory, MemoryRegion } from '../memory/guest-memory'
import { native } from '../native'
import type { Descriptor, VcpuThread } from '../native'
import type { Message } from '../pci/msix'
import { encodeStruct } from '../vhost/uapi'
import {
  KVM_API_VERSION,
  KVM_CAPABILITIES,
  KVM_IOCTLS,
  KVM_IOEVENTFD_FLAG_DEASSIGN,
  KVM_IOEVENTFD_FLAG_PIO,
  KVM_IRQCHIP_IOAPIC,
  KVM_IRQFD_FLAG_DEASSIGN,
  KVM_IRQ_ROUTING_IRQCHIP,
  KVM_IRQ_ROUTING_MSI,
  KVM_STRUCTS,
} from './kvm-uapi'
import type { KvmIoctl } from './kvm-uapi'

export type { Descriptor, VcpuThread } from '../native'

const O_RDWR = 2
/** Pages that VMX needs for itself, out of the way of memory and devices. */
const IDENTITY_MAP = 0xfeffc000
const TASK_STATE = 0xfeffd000
/** Pins of the IOAPIC are the interrupts 0 to 23; messages come after them. */
const IOAPIC_PINS = 24
const CPUID_ENTRIES = 256

/** A message that the kernel sends when an eventfd is written. */
export interface InterruptBinding extends Disposable {
  /** From the next signal on. */
  retarget(message: Message): void
}

export class Kvm implements Disposable {
  /** CPUID as the host supports it: `struct kvm_cpuid2` without its head, entry after entry. */
  readonly supportedCpuid: Uint8Array
  readonly #system: Descriptor
  readonly #vm: Descriptor
  readonly #memory: GuestMemory
  readonly #holds: Disposable[] = []
  readonly #vcpus: Descriptor[] = []
  readonly #routes = new Map<number, Message>()
  readonly #sink: Descriptor
  #closed = false

  private constructor(system: Descriptor, vm: Descriptor, memory: GuestMemory) {
    this.#system = system
    this.#vm = vm
    this.#memory = memory
    this.#sink = made(native().eventfd(0), 'eventfd')
    this.supportedCpuid = this.#readCpuid()
    this.#holds.push(memory.pin(this, vm))
    this.#call(vm, 'KVM_SET_IDENTITY_MAP_ADDR', struct('u64', { value: BigInt(IDENTITY_MAP) }))
    call(vm, 'KVM_SET_TSS_ADDR', TASK_STATE)
    call(vm, 'KVM_CREATE_IRQCHIP', 0)
    this.#setMemory()
    this.#setRoutes()
  }

  /**
   * A machine with the memory in its place and interrupt controllers, without a processor.
   * @throws SystemError ENOENT without KVM, EACCES, EPERM
   * @throws InvalidState ERR_UNSUPPORTED where this KVM lacks what the machine needs
   */
  static open(memory: GuestMemory, path = '/dev/kvm'): Kvm {
    const system = made(native().open(path, O_RDWR), 'open', path, HINTS)
    try {
      checkSystem(system)
      const fd = call(system, 'KVM_CREATE_VM', 0)
      const vm = made(native().adopt(fd), 'fcntl')
      try {
        return new Kvm(system, vm, memory)
      } catch (error) {
        vm.close()
        throw error
      }
    } catch (error) {
      system.close()
      throw error
    }
  }

  /** The level of a pin of the IOAPIC. */
  setLine(irq: number, asserted: boolean): void {
    const level = struct('kvm_irq_level', { irq, level: Number(asserted) })
    this.#call(this.#vm, 'KVM_IRQ_LINE', level)
  }

  /** A message now. What KVM refuses is nothing: the address is the guest's own choice. */
  signal({ address, data }: Message): void {
    const msi = struct('kvm_msi', { ...halves(address), data })
    native().ioctl(this.#vm, KVM_IOCTLS.KVM_SIGNAL_MSI, msi)
  }

  /** A write of any size to the address writes to the eventfd, and nobody else hears of it. */
  bindAddress(address: bigint, eventfd: Descriptor): Disposable {
    return this.#ioeventfd({ addr: address, len: 0, fd: eventfd.fd, flags: 0 })
  }

  /** Writes of one byte to the port end in the kernel. */
  absorbPort(port: number): void {
    const { fd } = this.#sink
    this.#ioeventfd({ addr: BigInt(port), len: 1, fd, flags: KVM_IOEVENTFD_FLAG_PIO })
  }

  /** Writes to the port are put into the ring behind `kvm_run`, and come with the next exit. */
  coalescePort(port: number, size: number): void {
    const zone = struct('kvm_coalesced_mmio_zone', { addr: BigInt(port), size, pio: 1 })
    this.#call(this.#vm, 'KVM_REGISTER_COALESCED_MMIO', zone)
  }

  /** Each signal of the eventfd becomes the message, in the kernel. A signal that waits does too. */
  bindInterrupt(eventfd: Descriptor, message: Message): InterruptBinding {
    let gsi = IOAPIC_PINS
    while (this.#routes.has(gsi)) gsi++
    this.#routes.set(gsi, message)
    this.#setRoutes()
    const { fd } = eventfd
    this.#call(this.#vm, 'KVM_IRQFD', struct('kvm_irqfd', { fd, gsi }))
    return {
      retarget: (target) => {
        this.#routes.set(gsi, target)
        this.#setRoutes()
      },
      [Symbol.dispose]: () => {
        if (this.#closed) return
        const flags = KVM_IRQFD_FLAG_DEASSIGN
        this.#call(this.#vm, 'KVM_IRQFD', struct('kvm_irqfd', { fd, gsi, flags }))
        this.#routes.delete(gsi)
        this.#setRoutes()
      },
    }
  }

  /** A processor that has not started. @param id also its APIC id */
  createVcpu(id: number): KvmVcpu {
    const bytes = call(this.#system, 'KVM_GET_VCPU_MMAP_SIZE', 0)
    const fd = call(this.#vm, 'KVM_CREATE_VCPU', id)
    const descriptor = made(native().adopt(fd), 'fcntl')
    this.#vcpus.push(descriptor)
    this.#holds.push(this.#memory.pin(this, descriptor))
    return {
      set: (name, bytes) => {
        this.#call(descriptor, name, bytes)
      },
      start: (listener) => made(native().vcpu(descriptor, bytes, listener), 'mmap'),
    }
  }

  /** Processors stop first, then the machine goes. */
  close(): void {
    if (this.#closed) return
    this.#closed = true
    for (const vcpu of this.#vcpus) vcpu.close()
    this.#vm.close()
    this.#system.close()
    this.#sink.close()
    for (const hold of this.#holds) hold[Symbol.dispose]()
  }

  [Symbol.dispose](): void {
    this.close()
  }

  /**
   * Further memory, of one region, at its place until it is disposed: when that returns, the guest does
   * not reach it any more.
   * @throws SystemError EEXIST where there is memory already
   */
  addMemory(memory: GuestMemory): Disposable {
    const [region] = memory.regions
    const slot = this.#memory.regions.length
    const hold = memory.pin(this, this.#vm)
    try {
      this.#setRegion(slot, region, region.bytes)
    } catch (error) {
      hold[Symbol.dispose]()
      throw error
    }
    return {
      [Symbol.dispose]: () => {
        if (!this.#closed) this.#setRegion(slot, region, 0)
        hold[Symbol.dispose]()
      },
    }
  }

  #setMemory(): void {
    for (const [slot, region] of this.#memory.regions.entries()) {
      this.#setRegion(slot, region, region.bytes)
    }
  }

  /** Of 0 bytes it goes. */
  #setRegion(slot: number, region: MemoryRegion, size: number): void {
    const bytes = struct('kvm_userspace_memory_region', {
      slot,
      guest_phys_addr: region.range.first,
      memory_size: BigInt(size),
      userspace_addr: region.hva,
    })
    const { userspace_addr, memory_size } = KVM_STRUCTS.kvm_userspace_memory_region.fields
    const guards = size === 0 ? [] : [userspace_addr.at, memory_size.at]
    this.#call(this.#vm, 'KVM_SET_USER_MEMORY_REGION', bytes, guards)
  }

  #setRoutes(): void {
    const pins = Array.from({ length: IOAPIC_PINS }, (_, pin) =>
      struct('kvm_irq_routing_irqchip', {
        ...{ gsi: pin, type: KVM_IRQ_ROUTING_IRQCHIP },
        ...{ irqchip: KVM_IRQCHIP_IOAPIC, pin },
      }),
    )
    const messages = [...this.#routes].map(([gsi, { address, data }]) =>
      struct('kvm_irq_routing_msi', { gsi, type: KVM_IRQ_ROUTING_MSI, ...halves(address), data }),
    )
    const all = [...pins, ...messages]
    this.#call(
      this.#vm,
      'KVM_SET_GSI_ROUTING',
      Buffer.concat([struct('kvm_irq_routing', { nr: all.length }), ...all]),
    )
  }

  #ioeventfd(values: Readonly<Record<'addr', bigint> & Record<'len' | 'fd' | 'flags', number>>) {
    this.#call(this.#vm, 'KVM_IOEVENTFD', struct('kvm_ioeventfd', values))
    return {
      [Symbol.dispose]: (): void => {
        if (this.#closed) return
        const flags = values.flags | KVM_IOEVENTFD_FLAG_DEASSIGN
        this.#call(this.#vm, 'KVM_IOEVENTFD', struct('kvm_ioeventfd', { ...values, flags }))
      },
    }
  }

  #readCpuid(): Uint8Array {
    const head = KVM_STRUCTS.kvm_irq_routing.bytes
    const each = KVM_STRUCTS.kvm_cpuid_entry2.bytes
    const bytes = new Uint8Array(head + each * CPUID_ENTRIES)
    const view = new DataView(bytes.buffer)
    view.setUint32(0, CPUID_ENTRIES, true)
    this.#call(this.#system, 'KVM_GET_SUPPORTED_CPUID', bytes)
    return bytes.subarray(head, head + each * view.getUint32(0, true))
  }

  #call(
    descriptor: Descriptor,
    name: KvmIoctl,
    bytes: Uint8Array,
    guards?: readonly number[],
  ): void {
    const size = bytes.byteLength
    const result = native().ioctl(descriptor, KVM_IOCTLS[name], bytes, size, guards)
    succeeded(result, `ioctl ${name}`)
  }
}

/** Calls whose argument is a structure of the processor. */
export type VcpuState = 'KVM_SET_CPUID2' | 'KVM_SET_MSRS' | 'KVM_SET_REGS' | 'KVM_SET_SREGS'

export interface KvmVcpu {
  /** @throws SystemError EINVAL for a state that a processor cannot have */
  set(name: VcpuState | 'KVM_GET_SREGS', bytes: Uint8Array): void
  /** @param listener gets what KVM_RUN answered, 0 or -errno, after each `resume()` */
  start(listener: (result: number) => void): VcpuThread
}

const HINTS: Readonly<Record<string, string>> = {
  ENOENT: 'load the module: modprobe kvm_amd (or kvm_intel); in a nested VM: vm --nested',
  EACCES: 'no permission: add the user to the group kvm, or run as root',
}

function checkSystem(system: Descriptor): void {
  if (call(system, 'KVM_GET_API_VERSION', 0) !== KVM_API_VERSION) {
    throw new InvalidState('ERR_UNSUPPORTED', `KVM has another API than ${KVM_API_VERSION}`)
  }
  for (const [name, number] of Object.entries(KVM_CAPABILITIES)) {
    if (call(system, 'KVM_CHECK_EXTENSION', number) > 0) continue
    throw new InvalidState('ERR_UNSUPPORTED', `this KVM has no ${name}`)
  }
}

function call(descriptor: Descriptor, name: KvmIoctl, value: number): number {
  return succeeded(native().ioctl(descriptor, KVM_IOCTLS[name], value, 0), `ioctl ${name}`)
}

function struct(name: keyof typeof KVM_STRUCTS, values: Parameters<typeof encodeStruct>[1]) {
  return encodeStruct(KVM_STRUCTS[name], values)
}

function halves(address: bigint) {
  return { address_lo: Number(address & 0xffffffffn), address_hi: Number(address >> 32n) }
}

function made<T extends object>(
  result: T | number,
  syscall: string,
  path?: string,
  hints: Readonly<Record<string, string | undefined>> = {},
): T {
  if (typeof result !== 'number') return result
  const hint = hints[new SystemError(result, syscall).code]
  throw new SystemError(result, syscall, {
    ...(path === undefined ? {} : { path }),
    ...(hint === undefined ? {} : { hint }),
  })
}

/**
 * Keeps threads off the processor of the one that calls, until it is disposed: for guests that wait
 * for this process without an exit. They turn in a loop, as software does that waits for hardware,
 * which no scheduler can see; on one processor with who is waited for, a guest turns for its whole
 * slice, some milliseconds, for what takes some hundredths of one.
 *
 * The calling thread is left where it is and may be moved: what it starts would inherit its place.
 */
export class Apart implements Disposable {
  readonly #threads: readonly Pick<VcpuThread, 'threadId'>[]
  /** Where each of them may run otherwise; nowhere, where the host does not tell. */
  readonly #places: readonly (readonly number[])[]
  #here = -1

  constructor(threads: readonly Pick<VcpuThread, 'threadId'>[]) {
    this.#threads = threads
    this.#places = threads.map(({ threadId }) => {
      const places = native().affinity(threadId)
      return typeof places === 'number' ? [] : places
    })
    this.follow()
  }

  /** To be called now and then: the host may have moved the calling thread. */
  follow(): void {
    const here = native().currentProcessor()
    if (here === this.#here) return
    this.#here = here
    this.#place((places) => places.filter((processor) => processor !== here))
  }

  [Symbol.dispose](): void {
    this.#place((places) => places)
  }

  /** Who has nowhere else to go stays, and so does who has ended or whom the host refuses to move. */
  #place(where: (places: readonly number[]) => readonly number[]): void {
    for (const [i, { threadId }] of this.#threads.entries()) {
      const processors = where(this.#places[i])
      if (processors.length > 0) native().affinity(threadId, processors)
    }
  }
}

/**
 * The network card in its slot: a virtio function, the remapping unit's view of it, and vhost-net.
 *
 * On the packet path nothing of this program runs: a kick goes from the guest's store through an
 * ioeventfd to the kernel's worker, a call from there through an irqfd to the guest's processor.
 * What is here follows the guest's registers and binds those two anew when they change.
 */
import type { IntelIommu } from '../iommu/intel/intel-iommu'
import type { GuestMemory } from '../memory/guest-memory'
import { NetConfig } from '../pci/virtio-net-config'
import { VirtioPci } from '../pci/virtio-pci'
import type { Message } from '../pci/msix'
import { VhostNet } from '../vhost/net'
import type { VhostNetOptions } from '../vhost/net'
import type { Tap } from '../vhost/tap'
import type { Bus } from './bus'
import type { InterruptBinding, Kvm } from './kvm'
import { PCI_INTERRUPTS } from './layout'
import { PciRoot } from './pci-root'
import { RequesterSpace } from './requester-space'

const QUEUES = 2
const PAIR = QUEUES / 2

export interface NetFunctionOptions extends Pick<VhostNetOptions, 'lookAhead' | 'reply'> {
  readonly memory: GuestMemory
  readonly tap: Tap
  /** undefined: DMA addresses are gpas, and the function is not behind any unit. */
  readonly iommu: IntelIommu | undefined
  /** Whether the function has the ATS capability. */
  readonly ats: boolean
  /** It is on the root bus, as a part of the processor's chip would be, and not behind the port. */
  readonly integrated: boolean
  readonly mac: string
}

interface Bound {
  readonly message: Message
  readonly binding: InterruptBinding
}

export class NetFunction implements Disposable {
  readonly nic: VhostNet
  readonly pci: VirtioPci
  readonly root: PciRoot
  readonly #options: NetFunctionOptions
  readonly #space: RequesterSpace | undefined
  readonly #interrupts: (Bound | undefined)[] = []
  readonly #notifies: Disposable[] = []
  #machine: { readonly kvm: Kvm; readonly bus: Bus } | undefined
  #decoded: Disposable | undefined
  #at = 0n

  /** @throws SystemError where the host refuses; InvalidState ERR_UNSUPPORTED */
  constructor(options: NetFunctionOptions) {
    const { memory, tap, iommu, ats, integrated, mac, lookAhead, reply } = options
    this.#options = options
    this.#space = iommu === undefined ? undefined : new RequesterSpace(iommu, 0)
    this.nic = VhostNet.open({
      ...{ memory, backend: tap, queues: PAIR },
      ...(lookAhead && { lookAhead }),
      ...(reply && { reply }),
      ...(this.#space === undefined ? {} : { addressSpace: this.#space }),
    })
    this.pci = new VirtioPci({
      backend: this.nic,
      configuration: new NetConfig({ mac }),
      queues: QUEUES,
      accessPlatform: iommu !== undefined,
      ats: ats && iommu !== undefined ? {} : false,
      integrated,
    })
    this.root = new PciRoot(this.pci.config, integrated)
    this.#renumber()
    this.root.port.onBusReset(() => {
      this.pci.reset()
    })
    this.root.port.config.onChange(() => {
      this.#renumber()
    })
    this.pci.onAts((enabled) => {
      this.#switchAts(enabled)
    })
    this.pci.onMessage((message) => this.#machine?.kvm.signal(message))
    this.pci.onInterrupt((asserted) => this.#machine?.kvm.setLine(PCI_INTERRUPTS[0], asserted))
    this.pci.config.onChange(() => {
      this.#follow()
    })
  }

  /** The function answers in this machine until `detach`. */
  attach(kvm: Kvm, bus: Bus): void {
    this.#machine = { kvm, bus }
  }

  /** All of it as at power-on, and out of the machine. */
  detach(): void {
    this.pci.reset()
    this.root.reset()
    this.#follow()
    this.#machine = undefined
  }

  [Symbol.dispose](): void {
    this.detach()
    this.pci[Symbol.dispose]()
    this.nic.close()
  }

  /** A bus number of 0 stands for none: then the function's requests reach nothing. */
  #renumber(): void {
    if (this.#space === undefined) return
    const { requester = 0 } = this.root
    if (requester === this.#space.requester) return
    const enabled = this.pci.ats?.enabled ?? false
    this.#switchAts(false)
    this.#space.requester = requester
    this.#switchAts(enabled)
  }

  #switchAts(enabled: boolean): void {
    if (this.#space !== undefined) this.#options.iommu?.setAts(this.#space.requester, enabled)
  }

  /** Where the BAR is, and which interrupts can go straight to the guest. */
  #follow(): void {
    this.#decode()
    this.#route()
  }

  #decode(): void {
    const at = this.pci.config.memorySpace ? this.pci.config.barAddress(0) : 0n
    if (at === this.#at || this.#machine === undefined) return
    const { kvm, bus } = this.#machine
    this.#at = at
    this.#decoded?.[Symbol.dispose]()
    this.#decoded = undefined
    for (const notify of this.#notifies.splice(0)) notify[Symbol.dispose]()
    if (at === 0n) return
    this.#decoded = bus.add(Number(at), this.pci.barBytes, {
      read: (offset, size) => this.pci.bar.read(offset, size),
      write: (offset, value, size) => {
        this.pci.bar.write(offset, value, size)
        this.#route()
      },
    })
    for (let queue = 0; queue < QUEUES; queue++) {
      const address = at + BigInt(this.pci.notifyOffset(queue))
      this.#notifies.push(kvm.bindAddress(address, this.nic.events(queue).kick))
    }
  }

  /** A vector that something masks stays with the function, which keeps it pending. */
  #route(): void {
    if (this.#machine === undefined) return
    const { kvm } = this.#machine
    for (let queue = 0; queue < QUEUES; queue++) {
      const message = this.pci.msix.route(this.pci.transport.queues[queue].vector)
      const bound = this.#interrupts[queue]
      if (same(message, bound?.message)) continue
      if (message !== undefined && bound !== undefined) {
        bound.binding.retarget(message)
        this.#interrupts[queue] = { message, binding: bound.binding }
        continue
      }
      bound?.binding[Symbol.dispose]()
      this.#interrupts[queue] =
        message === undefined
          ? undefined
          : { message, binding: kvm.bindInterrupt(this.nic.events(queue).call, message) }
    }
  }
}

function same(a: Message | undefined, b: Message | undefined): boolean {
  return a?.address === b?.address && a?.data === b?.data
}

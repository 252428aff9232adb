/**
 * What a network driver can be asked for, and what follows from it before anything runs: whose DMA
 * it uses, and which features it wants.
 */
import { InvalidState } from '../errors'
import type { Requester } from '../iommu/iommu'
import type { GuestMemory } from '../memory/guest-memory'
import { features, hasFeature } from '../virtio/net'
import type { NetDevice } from '../virtio/net-device'
import { physicalDma } from './dma'
import type { GuestDma, Mapping } from './dma'
import { IntelIommuDriver } from './intel-iommu-driver'
import type { DrivenIommu, PageSize } from './intel-iommu-driver'
import type { DriverOrder } from './intel-iommu-unit'
import type { PageAllocator } from './page-allocator'

export interface NetDriverOptions {
  readonly memory: GuestMemory
  readonly mapping: Mapping
  /** Needed for every mapping but `'off'`. */
  readonly iommu?: DrivenIommu
  /** In place of `iommu`: another IOMMU's driver, enabled and disabled by this one. */
  readonly dma?: GuestDma
  /** Default: what the device says. */
  readonly requester?: Requester
  /** Static mapping: the largest pages to use. */
  readonly pageSize?: PageSize
  /** ATS: default true. */
  readonly deviceTlb?: boolean
  /** Whose order of invalidations; default `'6.12'`. */
  readonly order?: DriverOrder
  /** Where rings, buffers and tables come from; default: shared by all drivers in this memory. */
  readonly pages?: PageAllocator
  /** Chains in each ring, a power of two; default 256. */
  readonly queueSize?: number
  /** Pages for frames to send, for each pair; default `queueSize`. */
  readonly sendBuffers?: number
  /** Pairs of queues; default 1. */
  readonly pairs?: number
  /** VIRTIO_NET_F_MRG_RXBUF, VIRTIO_F_EVENT_IDX, VIRTIO_F_INDIRECT_DESC where offered: default. */
  readonly mergeable?: boolean
  readonly eventIndex?: boolean
  readonly indirect?: boolean
  /** Takes frames of up to 64 KiB and unfinished checksums, as their headers say. Default false. */
  readonly receiveOffload?: boolean
  /** Frames held for a reader that is busy, or for the first one to come; default 1024. */
  readonly backlog?: number
}

/** @throws TypeError without an IOMMU where the mapping needs one, or without a requester */
export function dmaOf(nic: NetDevice, options: NetDriverOptions): GuestDma {
  const { memory, iommu, dma, mapping, pageSize, deviceTlb, order, pages } = options
  if (dma !== undefined) return dma
  if (mapping === 'off') return physicalDma
  if (iommu === undefined) throw new TypeError(`mapping '${mapping}' needs an iommu`)
  const requester = options.requester ?? nic.requester
  if (requester === undefined) throw new TypeError('the device does not say its requester')
  return new IntelIommuDriver(iommu, memory, {
    requester,
    mode: mapping,
    ...(pageSize === undefined ? {} : { pageSize }),
    ...(deviceTlb === undefined ? {} : { deviceTlb }),
    ...(order === undefined ? {} : { order }),
    ...(pages === undefined ? {} : { pages }),
  })
}

/**
 * virtio 1.3, 3.1.1: of what is offered, what is used here.
 * @throws InvalidState ERR_UNSUPPORTED without VERSION_1, or ACCESS_PLATFORM where it is needed
 */
export function negotiate(offered: bigint, mapping: Mapping, options: NetDriverOptions): bigint {
  const required = mapping === 'off' ? [] : (['VIRTIO_F_ACCESS_PLATFORM'] as const)
  for (const name of ['VIRTIO_F_VERSION_1', ...required] as const) {
    if (hasFeature(offered, name)) continue
    throw new InvalidState('ERR_UNSUPPORTED', `the device does not offer ${name}`)
  }
  let wanted = features('VIRTIO_F_VERSION_1', ...required)
  wanted |= features('VIRTIO_NET_F_CSUM', 'VIRTIO_NET_F_HOST_TSO4', 'VIRTIO_NET_F_HOST_TSO6')
  if (options.mergeable !== false) wanted |= features('VIRTIO_NET_F_MRG_RXBUF')
  if (options.eventIndex !== false) wanted |= features('VIRTIO_F_EVENT_IDX')
  if (options.indirect !== false) wanted |= features('VIRTIO_F_INDIRECT_DESC')
  if (options.receiveOffload === true) {
    wanted |= features('VIRTIO_NET_F_GUEST_CSUM')
    wanted |= features('VIRTIO_NET_F_GUEST_TSO4', 'VIRTIO_NET_F_GUEST_TSO6')
  }
  return offered & wanted
}

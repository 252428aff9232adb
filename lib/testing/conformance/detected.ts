/**
 * What the library finds out about a kernel when it opens a device, and what it does so that it
 * need not know. Nothing of it goes by the kernel's version: distributions carry fixes back.
 */
import { moduleParameter } from '../../vhost/module-parameters'
import { VhostDevice } from '../../vhost/vhost-device'
import { featureNames, hasFeature } from '../../virtio/net'

export interface Detected {
  readonly what: string
  /** `'always'` for what is done whatever the kernel is. */
  readonly found: string
  readonly so: string
}

/** @throws SystemError as `VhostDevice.open` */
export function detected(): readonly Detected[] {
  using device = VhostDevice.open()
  const { features, messageVersion } = device
  return [
    {
      what: 'VHOST_GET_FEATURES',
      found: featureNames(features).join(' '),
      so: hasFeature(features, 'VIRTIO_F_ACCESS_PLATFORM')
        ? 'the device IOTLB is used; no more than this is offered to a driver'
        : 'opening with an address space is refused',
    },
    {
      what: 'VHOST_GET_BACKEND_FEATURES',
      found: messageVersion === 2 ? 'IOTLB_MSG_V2' : 'nothing, or no such request',
      so: `messages of version ${messageVersion}`,
    },
    {
      what: 'vhost.max_iotlb_entries',
      found: String(moduleParameter('vhost/max_iotlb_entries')),
      so: 'the shadow evicts where the kernel does',
    },
    {
      what: 'vhost_net.experimental_zcopytx',
      found: String(moduleParameter('vhost_net/experimental_zcopytx')),
      so: 'other than 0 is refused: an INVALIDATE would not wait for frames in flight',
    },
    ...ALWAYS,
  ]
}

/** What differs between kernels, and is done in the way that all of them take. */
const ALWAYS: readonly Detected[] = [
  {
    what: 'INVALIDATE of size 0 (K10)',
    found: 'always',
    so: 'everything is taken back in two halves',
  },
  {
    what: 'rings forgotten with ACCESS_PLATFORM (CVE-2026-97988)',
    found: 'always',
    so: 'features are set before the rings are placed',
  },
  {
    what: 'IOTLB that outlives ACCESS_PLATFORM (975eeb2291a6)',
    found: 'always',
    so: 'a change of that bit goes through RESET_OWNER',
  },
  {
    what: 'readers not woken by a reset',
    found: 'always',
    so: 'the descriptor is read without blocking',
  },
  {
    what: 'a limit of misses for each ring (69d4a65c4e92)',
    found: 'always',
    so: 'all that is pending is read, and each is answered',
  },
]

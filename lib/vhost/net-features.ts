/** Which features a network device offers, and what the kernel and the tap are told of them. */
import { SystemError } from '../errors'
import { featureNames, features, hasFeature } from '../virtio/net'
import type { Feature } from '../virtio/net'
import type { Tap } from './tap'
import { TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6 } from './uapi'
import type { VhostDevice } from './vhost-device'

/** What the driver may leave to the tap, and needs no one to say so: frames from the guest. */
const FROM_GUEST = features('VIRTIO_NET_F_CSUM', 'VIRTIO_NET_F_HOST_TSO4', 'VIRTIO_NET_F_HOST_TSO6')
/** What the driver takes unfinished, and what the tap is told for it. */
const TO_GUEST: readonly (readonly [Feature, number])[] = [
  ['VIRTIO_NET_F_GUEST_CSUM', TUN_F_CSUM],
  ['VIRTIO_NET_F_GUEST_TSO4', TUN_F_TSO4],
  ['VIRTIO_NET_F_GUEST_TSO6', TUN_F_TSO6],
]
/** virtio 1.3, 5.1.3.1: the feature on the left is nothing without the one on the right. */
const REQUIRES: readonly (readonly [Feature, Feature])[] = [
  ['VIRTIO_NET_F_GUEST_TSO4', 'VIRTIO_NET_F_GUEST_CSUM'],
  ['VIRTIO_NET_F_GUEST_TSO6', 'VIRTIO_NET_F_GUEST_CSUM'],
  ['VIRTIO_NET_F_HOST_TSO4', 'VIRTIO_NET_F_CSUM'],
  ['VIRTIO_NET_F_HOST_TSO6', 'VIRTIO_NET_F_CSUM'],
]
const OFFLOADS = FROM_GUEST | features(...TO_GUEST.map(([feature]) => feature))
const ACCESS_PLATFORM = features('VIRTIO_F_ACCESS_PLATFORM')
/** VHOST_NET_F_VIRTIO_NET_HDR: the same bit. */
export const HEADER_BY_VHOST = features('VIRTIO_F_ANY_LAYOUT')
/** Bits of the kernel that are not the driver's to acknowledge. */
const OURS = HEADER_BY_VHOST | features('VHOST_F_LOG_ALL')
/** virtio 1.3, 5.1.6.1: a header of 12 bytes with either, of 10 without. */
const LONG_HEADER = features('VIRTIO_F_VERSION_1', 'VIRTIO_NET_F_MRG_RXBUF')
/** EOPNOTSUPP; Node's name for the number is ENOTSUP. */
const ENOTSUP = -95

/**
 * All that a driver may acknowledge.
 * @throws SystemError ENOTSUP where translation is wanted and the kernel has none
 */
export function offered(
  translated: boolean,
  devices: readonly VhostDevice[],
  taps: readonly Tap[],
): bigint {
  const kernel = devices.reduce((bits, { features }) => bits & features, devices[0].features)
  const offloads = taps.every(({ vnetHeader }) => vnetHeader) ? OFFLOADS : 0n
  if (!translated) {
    return (kernel & ~OURS & ~ACCESS_PLATFORM) | offloads
  }
  if ((kernel & ACCESS_PLATFORM) === 0n) {
    throw new SystemError(ENOTSUP, 'ioctl VHOST_GET_FEATURES', {
      path: devices[0].path,
      hint: 'this kernel has no device IOTLB (VIRTIO_F_ACCESS_PLATFORM): Linux 4.8 has one',
    })
  }
  return (kernel & ~OURS) | offloads
}

/** @throws RangeError for bits that are not offered, or that require one that is missing */
export function checkAcknowledged(bits: bigint, offered: bigint): void {
  const foreign = bits & ~offered
  if (foreign !== 0n) {
    throw new RangeError(`features not offered: ${featureNames(foreign).join(' ')}`)
  }
  for (const [feature, required] of REQUIRES) {
    if (!hasFeature(bits, feature) || hasFeature(bits, required)) continue
    throw new RangeError(`${feature} requires ${required}`)
  }
}

export function configure(tap: Tap, bits: bigint): void {
  const modern = (bits & LONG_HEADER) !== 0n
  tap.setHeaderBytes(modern ? 12 : 10)
  let offload = 0
  for (const [feature, bit] of TO_GUEST) if (hasFeature(bits, feature)) offload |= bit
  tap.setOffload(offload)
}

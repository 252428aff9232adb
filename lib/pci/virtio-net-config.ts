/**
 * What a virtio-net device tells its driver: its address, its link, its MTU, its queue pairs.
 *
 * virtio 1.3 5.1.4, `struct virtio_net_config`. Read-only for drivers: with VERSION_1 the address
 * is set through the control queue, which vhost-net has not.
 */
import { RegisterFile } from '../bits'
import type { Register } from '../bits'
import { features } from '../virtio/net'
import { Listeners } from './listeners'
import type { DeviceConfiguration } from './virtio-transport'

export interface NetConfigOptions {
  /**
   * Six bytes, or text such as `'52:54:00:12:34:56'`; unicast. Without one the driver makes it up.
   */
  readonly mac?: string | Uint8Array
  /** The largest payload of a frame, 68 to 65535. */
  readonly mtu?: number
  /** Pairs of queues that multiqueue can use, 1 to 32768. Said to drivers with VIRTIO_NET_F_MQ. */
  readonly maxQueuePairs?: number
  /** Up where it is left out. */
  readonly link?: LinkState
}

export type LinkState = 'up' | 'down'

/** virtio 1.3 5.1.4: VIRTIO_NET_S_LINK_UP. */
const LINK_UP = 1n

/** In words of 4 bytes: mac in 0 to 5, status in 6, max_virtqueue_pairs in 8, mtu in 10. */
const CONFIG = [
  { name: 'mac', offset: 0, size: 4 },
  { name: 'macAndStatus', offset: 4, size: 4 },
  { name: 'pairsAndMtu', offset: 8, size: 4 },
] as const satisfies readonly Register[]
const BYTES = 12
const MAC = /^[0-9a-f]{2}(:[0-9a-f]{2}){5}$/i

export class NetConfig implements DeviceConfiguration {
  /** VIRTIO_NET_F_STATUS, and those of the fields that have been given. */
  readonly features: bigint
  readonly bytes = BYTES
  readonly #file = new RegisterFile(CONFIG, BYTES)
  readonly #mac: bigint
  readonly #changes = new Listeners<[]>()
  #link: LinkState

  /** @throws TypeError for a malformed address, RangeError for numbers out of range */
  constructor({ mac, mtu, maxQueuePairs = 1, link = 'up' }: NetConfigOptions = {}) {
    if (mtu !== undefined && !(Number.isInteger(mtu) && mtu >= 68 && mtu <= 65535)) {
      throw new RangeError(`mtu must be from 68 to 65535: ${mtu}`)
    }
    if (!Number.isInteger(maxQueuePairs) || maxQueuePairs < 1 || maxQueuePairs > 32768) {
      throw new RangeError(`maxQueuePairs must be from 1 to 32768: ${maxQueuePairs}`)
    }
    this.#mac = mac === undefined ? 0n : macNumber(mac)
    this.#link = link
    this.features =
      features('VIRTIO_NET_F_STATUS') |
      (mac === undefined ? 0n : features('VIRTIO_NET_F_MAC')) |
      (mtu === undefined ? 0n : features('VIRTIO_NET_F_MTU'))
    this.#file.set('mac', this.#mac & 0xffffffffn)
    this.#file.set('pairsAndMtu', BigInt(maxQueuePairs) | (BigInt(mtu ?? 0) << 16n))
    this.#writeLink()
  }

  get link(): LinkState {
    return this.#link
  }

  /** The driver hears of a change, and takes its interface up or down. */
  setLink(link: LinkState): void {
    if (link === this.#link) return
    this.#link = link
    this.#writeLink()
    this.#changes.call()
  }

  read(offset: number, size: number): number {
    return Number(this.#file.read(offset, size))
  }

  onChange(listener: () => void): Disposable {
    return this.#changes.add(listener)
  }

  #writeLink(): void {
    const status = this.#link === 'up' ? LINK_UP : 0n
    this.#file.set('macAndStatus', (this.#mac >> 32n) | (status << 16n))
  }
}

/** As a little-endian number: the first byte of the address is the lowest. */
function macNumber(mac: string | Uint8Array): bigint {
  if (typeof mac === 'string' && !MAC.test(mac)) {
    throw new TypeError(`not an Ethernet address (such as 52:54:00:12:34:56): ${mac}`)
  }
  const bytes =
    typeof mac === 'string' ? mac.split(':').map((b) => Number.parseInt(b, 16)) : [...mac]
  if (bytes.length !== 6) throw new TypeError(`an Ethernet address has 6 bytes: ${bytes.length}`)
  if ((bytes[0] & 1) !== 0) throw new RangeError('a device has a unicast address')
  return bytes.reduceRight((number, byte) => (number << 8n) | BigInt(byte), 0n)
}

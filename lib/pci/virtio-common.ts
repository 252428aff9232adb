/**
 * The common configuration structure of virtio-pci: how a driver sees the transport's state
 * through registers in the function's memory.
 *
 * One table says what is where and what a read or a write means. Drivers use each field's own
 * width (virtio 1.3 4.1.3.1); any other access reaches the fields that its bytes belong to, in
 * their order, so that no access is an error.
 *
 * virtio 1.3 4.1.4.3, `struct virtio_pci_common_cfg`.
 */
import type { MmioDevice } from '../iommu/iommu'
import { VIRTIO_MSI_NO_VECTOR } from './virtio-transport'
import type { Queue, VirtioTransport } from './virtio-transport'

/** A field, in bytes; a write of a part of it comes with the rest as it reads. */
export interface CommonField {
  readonly name: string
  readonly offset: number
  readonly size: 1 | 2 | 4
  readonly read: (common: CommonConfiguration) => number
  readonly write?: (common: CommonConfiguration, value: number) => void
}

/** With queue_reset, without the fields of an administration queue. */
export const COMMON_BYTES = 60

type Part = 'desc' | 'avail' | 'used'

/** Field names as in the specification; `queue_driver` is avail, `queue_device` is used. */
export const COMMON_FIELDS: readonly CommonField[] = [
  select('device_feature_select', 0, 'deviceFeatureSelect', 0xffffffff),
  {
    name: 'device_feature',
    offset: 4,
    size: 4,
    read: (c) => half(c.offered, c.deviceFeatureSelect),
  },
  select('driver_feature_select', 8, 'driverFeatureSelect', 0xffffffff),
  {
    name: 'driver_feature',
    offset: 12,
    size: 4,
    read: (c) => half(c.transport.driverFeatures, c.driverFeatureSelect),
    write: (c, bits) => {
      c.transport.writeDriverFeatures(c.driverFeatureSelect, bits)
    },
  },
  {
    name: 'config_msix_vector',
    offset: 16,
    size: 2,
    read: (c) => c.configVector,
    write: (c, vector) => {
      c.configVector = c.vector(vector)
    },
  },
  { name: 'num_queues', offset: 18, size: 2, read: (c) => c.transport.queues.length },
  {
    name: 'device_status',
    offset: 20,
    size: 1,
    read: (c) => c.transport.status,
    write: (c, status) => {
      c.writeStatus(status)
    },
  },
  { name: 'config_generation', offset: 21, size: 1, read: (c) => c.generation },
  select('queue_select', 22, 'queueSelect', 0xffff),
  ofQueue(
    'queue_size',
    24,
    (queue) => queue.size,
    (c, queue, size) => {
      c.transport.setSize(queue, size)
    },
  ),
  {
    name: 'queue_msix_vector',
    offset: 26,
    size: 2,
    read: (c) => c.queue?.vector ?? VIRTIO_MSI_NO_VECTOR,
    write: (c, vector) => {
      if (c.queue !== undefined) c.queue.vector = c.vector(vector)
    },
  },
  ofQueue(
    'queue_enable',
    28,
    (queue) => Number(queue.enabled),
    (c, _, value) => {
      if (value === 1) c.transport.enable(c.queueSelect)
    },
  ),
  { name: 'queue_notify_off', offset: 30, size: 2, read: (c) => (c.queue ? c.queueSelect : 0) },
  address('queue_desc_lo', 32, 'desc', 0),
  address('queue_desc_hi', 36, 'desc', 1),
  address('queue_driver_lo', 40, 'avail', 0),
  address('queue_driver_hi', 44, 'avail', 1),
  address('queue_device_lo', 48, 'used', 0),
  address('queue_device_hi', 52, 'used', 1),
  { name: 'queue_notif_config_data', offset: 56, size: 2, read: () => 0 },
  ofQueue(
    'queue_reset',
    58,
    () => 0,
    (c, _, value) => {
      if (value === 1) c.transport.resetQueue(c.queueSelect)
    },
  ),
]

export class CommonConfiguration implements MmioDevice {
  deviceFeatureSelect = 0
  driverFeatureSelect = 0
  queueSelect = 0
  configVector = VIRTIO_MSI_NO_VECTOR
  /** 8 bits, another one after each change of the device configuration (4.1.4.3.1). */
  generation = 0

  constructor(
    readonly transport: VirtioTransport,
    /** Of the function's MSI-X table; 0 without one. */
    readonly vectors: number,
    /** The driver has written 0 to the status: reset what belongs to it. */
    readonly reset: () => void,
  ) {}

  get offered(): bigint {
    return this.transport.offered
  }

  /** The queue that is selected; undefined where there is none of that number. */
  get queue(): Queue | undefined {
    return this.transport.queues.at(this.queueSelect)
  }

  /** 4.1.5.1.2.1: a vector that can't be mapped reads back as NO_VECTOR. */
  vector(wanted: number): number {
    return wanted < this.vectors ? wanted : VIRTIO_MSI_NO_VECTOR
  }

  writeStatus(status: number): void {
    if (status === 0) this.reset()
    else this.transport.writeStatus(status)
  }

  /** Back to what a driver finds at first. The generation goes on. */
  clear(): void {
    this.deviceFeatureSelect = 0
    this.driverFeatureSelect = 0
    this.queueSelect = 0
    this.configVector = VIRTIO_MSI_NO_VECTOR
  }

  read(offset: number, size: number): bigint {
    let value = 0n
    for (const field of COMMON_FIELDS) {
      if (!overlaps(field, offset, size)) continue
      const bits = BigInt(field.read(this))
      const shift = 8 * (field.offset - offset)
      value |= shift < 0 ? bits >> BigInt(-shift) : bits << BigInt(shift)
    }
    return BigInt.asUintN(8 * size, value)
  }

  write(offset: number, value: bigint, size: number): void {
    for (const field of COMMON_FIELDS) {
      if (field.write !== undefined && overlaps(field, offset, size)) {
        field.write(this, Number(merged(field, field.read(this), offset, value, size)))
      }
    }
  }
}

/** A field that only keeps what was written. */
function select(
  name: string,
  offset: number,
  key: 'deviceFeatureSelect' | 'driverFeatureSelect' | 'queueSelect',
  mask: 0xffff | 0xffffffff,
): CommonField {
  return {
    name,
    offset,
    size: mask === 0xffff ? 2 : 4,
    read: (c) => c[key],
    write: (c, value) => {
      c[key] = value
    },
  }
}

/** A field of two bytes of the selected queue: 0 where there is no such queue (4.1.4.3.1). */
function ofQueue(
  name: string,
  offset: number,
  read: (queue: Queue) => number,
  write: (common: CommonConfiguration, queue: Queue, value: number) => void,
): CommonField {
  return {
    name,
    offset,
    size: 2,
    read: (c) => (c.queue === undefined ? 0 : read(c.queue)),
    write: (c, value) => {
      if (c.queue !== undefined) write(c, c.queue, value)
    },
  }
}

/** Half of a ring's address; a queue that is enabled keeps its addresses. */
function address(name: string, offset: number, part: Part, word: 0 | 1): CommonField {
  const shift = BigInt(32 * word)
  return {
    name,
    offset,
    size: 4,
    read: (c) => half(c.queue?.[part] ?? 0n, word),
    write: (c, value) => {
      const { queue } = c
      if (queue === undefined || queue.enabled) return
      queue[part] = (queue[part] & ~(0xffffffffn << shift)) | (BigInt(value) << shift)
    },
  }
}

/** Bits 0 to 31 for 0, bits 32 to 63 for 1, nothing beyond (4.1.4.3.1, device_feature). */
function half(value: bigint, index: number): number {
  return Number((value >> BigInt(32 * index)) & 0xffffffffn)
}

function overlaps(field: CommonField, offset: number, size: number): boolean {
  return field.offset < offset + size && offset < field.offset + field.size
}

/** The field's bytes: those of the access where it has them, those of `old` where not. */
function merged(
  field: CommonField,
  old: number,
  offset: number,
  value: bigint,
  size: number,
): bigint {
  let result = 0n
  for (let i = field.size - 1; i >= 0; i--) {
    const from = field.offset + i - offset
    const written = from >= 0 && from < size
    const byte = written ? value >> BigInt(8 * from) : BigInt(old) >> BigInt(8 * i)
    result = (result << 8n) | (byte & 0xffn)
  }
  return result
}

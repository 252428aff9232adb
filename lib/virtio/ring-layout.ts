/**
 * Where the bytes of a split virtqueue are, and the few words that stand in them
 * (virtio 1.3, 2.7). Both views of a ring read this one table; nothing here touches memory.
 *
 * Packed rings are not here: vhost-net never offers them.
 */

/** virtio 1.3, 2.7: the queue size of a split ring is a power of two, at most 32768. */
export const MAX_QUEUE_SIZE = 32768

/** virtio 1.3, 2.7: what each part must be aligned to. */
export const RING_ALIGNMENT = { desc: 16, avail: 2, used: 4 } as const

/** virtio 1.3, 2.7.5: `struct virtq_desc`, byte offsets. */
export const DESC = { addr: 0, len: 8, flags: 12, next: 14, bytes: 16 } as const
/** virtio 1.3, 2.7.5: `flags` of a descriptor. */
export const VIRTQ_DESC_F_NEXT = 1
export const VIRTQ_DESC_F_WRITE = 2
export const VIRTQ_DESC_F_INDIRECT = 4

/** virtio 1.3, 2.7.6: `struct virtq_avail`, byte offsets; `used_event` follows the ring. */
export const AVAIL = { flags: 0, idx: 2, ring: 4, entry: 2 } as const
export const VIRTQ_AVAIL_F_NO_INTERRUPT = 1

/** virtio 1.3, 2.7.8: `struct virtq_used`, byte offsets; `avail_event` follows the ring. */
export const USED = { flags: 0, idx: 2, ring: 4, entry: 8, id: 0, len: 4 } as const
export const VIRTQ_USED_F_NO_NOTIFY = 1

/** Lengths in bytes, and the offset of each part in one allocation as Linux lays it out. */
export interface RingLayout {
  readonly size: number
  readonly desc: number
  readonly avail: number
  readonly used: number
  readonly descBytes: number
  readonly availBytes: number
  readonly usedBytes: number
  /** From the first byte of the descriptor table to the last of the used ring. */
  readonly bytes: number
}

/** The addresses of a ring's parts: iovas or gpas, as the holder says. */
export interface RingAddresses {
  readonly size: number
  readonly desc: bigint
  readonly avail: bigint
  readonly used: bigint
}

/**
 * The event fields count as part of the ring, negotiated or not: the layout stays the same.
 * @param alignment of the used ring; 64 is what virtio-pci of Linux uses (SMP_CACHE_BYTES)
 * @throws RangeError for a size that no split ring has, or an alignment below 4
 */
export function ringLayout(size: number, alignment = 64): RingLayout {
  checkQueueSize(size)
  if (!isPowerOfTwo(alignment) || alignment < RING_ALIGNMENT.used) {
    throw new RangeError(`a ring's alignment is a power of two from 4: ${alignment}`)
  }
  const descBytes = DESC.bytes * size
  const availBytes = usedEventOffset(size) + 2
  const usedBytes = availEventOffset(size) + 2
  const avail = descBytes
  const used = Math.ceil((avail + availBytes) / alignment) * alignment
  return { size, desc: 0, avail, used, descBytes, availBytes, usedBytes, bytes: used + usedBytes }
}

/** Byte offset of `used_event` in the available ring (virtio 1.3, 2.7.7). */
export function usedEventOffset(size: number): number {
  return AVAIL.ring + AVAIL.entry * size
}

/** Byte offset of `avail_event` in the used ring (virtio 1.3, 2.7.10). */
export function availEventOffset(size: number): number {
  return USED.ring + USED.entry * size
}

/** @throws RangeError for a size that no split ring has */
export function checkQueueSize(size: number): void {
  if (!isPowerOfTwo(size) || size > MAX_QUEUE_SIZE) {
    throw new RangeError(`a queue size is a power of two from 1 to ${MAX_QUEUE_SIZE}: ${size}`)
  }
}

/**
 * Whether moving an index from `before` to `now` passes `event` (virtio 1.3, 2.7.7.1 and 2.7.10.1).
 * All three are free-running 16-bit indices.
 */
export function passesEvent(event: number, now: number, before: number): boolean {
  return ((now - event - 1) & 0xffff) < ((now - before) & 0xffff)
}

function isPowerOfTwo(value: number): boolean {
  return Number.isInteger(value) && value > 0 && (value & (value - 1)) === 0
}

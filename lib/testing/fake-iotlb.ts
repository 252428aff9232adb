/**
 * The table and the two message lists of a vhost device, byte by byte, as the kernel keeps them.
 *
 * Sources: Linux 6.12 drivers/vhost/iotlb.c and drivers/vhost/vhost.c (vhost_iotlb_miss,
 * vhost_iotlb_notify_vq). Mistakes that kernels have had can be put back in, one by one, to see
 * that a test would have found them.
 */
export const MASK64 = (1n << 64n) - 1n

/** Mistakes that kernels have had, by what was seen of them; each names what ended it. */
export const FAKE_BUGS = {
  /** e2ae38cf3d91 (5.17): the entry hung the worker; here it is only taken. */
  'zero-size-update': 'an UPDATE of size 0 is taken',
  /** 98047313cdb4 (6.1.5): the end of the range moved with its start. */
  'translation-range': 'a buffer in two entries at the end of the address space is not found',
  /** de845981da67 (6.12.104): vring_addr changed, the cached entry did not. */
  'cache-outlives-move': 'a ring that was moved is read beside where it was',
  /** "reset metadata cache when initializing new IOTLB" (2018). */
  'cache-outlives-table': 'after SET_FEATURES the rings are still found',
  /** "correctly check the iova range when waking virtqueue" (2018). */
  'wake-misses-last-byte': 'an UPDATE whose last byte was asked for wakes nobody',
  /** 74ad7419489d (5.1). */
  'short-write': 'a write of less than a message is taken',
  /** CVE-2018-1118. */
  'read-leaks-padding': 'the unused bytes of a MISS are not zero',
  /** cc5e71075947 (5.0): "failure of scp to guest during migration". */
  'log-by-iova': 'a write is logged where its iova says, not its gpa',
  /** "clear pending messages when the backend is removed" (6.2, 6.1.11). */
  'messages-outlive-backend': 'SET_BACKEND -1 keeps the questions',
  /** 2020: access_ok() of iovas. */
  'rings-checked-as-host-addresses': 'a running ring cannot move to a high iova',
  /** 09861858a683 (2026; 6.12.97): vhost_enable_notify() took buffers put back for new ones. */
  'few-buffers-livelock': 'a frame that needs more buffers than there are is tried for ever',
  /** 975eeb2291a6 (2026, vhost-net), 7e2f8fd8dc83 (vhost-vsock). */
  'table-outlives-feature': 'clearing ACCESS_PLATFORM keeps the IOTLB',
  /** be7b5722a9d4 (6.12.114, CVE-2026-97988). */
  'rings-outlive-feature': 'rings keep their addresses when ACCESS_PLATFORM changes',
} as const

export type FakeBug = keyof typeof FAKE_BUGS

/** `perm`: 1 read, 2 write. Inclusive. */
export interface FakeMap {
  readonly start: bigint
  readonly last: bigint
  readonly addr: bigint
  readonly perm: number
}

/** A MISS on its way, and who is woken by its answer. */
export interface FakeMessage<Q> {
  readonly iova: bigint
  readonly perm: number
  readonly queue: Q
}

export class FakeIotlb<Q> {
  /** In the order of insertion. */
  maps: FakeMap[] = []
  /** Asked and not read; read and not answered. */
  unread: FakeMessage<Q>[] = []
  pending: FakeMessage<Q>[] = []
  evictions = 0

  constructor(
    readonly limit: number,
    readonly bugs: ReadonlySet<FakeBug> = new Set(),
  ) {}

  /** vhost_iotlb_add_range: a full table gives up the entry inserted first. */
  add(map: FakeMap): void {
    if (this.maps.length >= this.limit) {
      this.maps.shift()
      this.evictions++
    }
    this.maps.push(map)
  }

  /** vhost_iotlb_del_range: every entry that the range touches, whole; also a range that wraps. */
  remove(start: bigint, last: bigint): void {
    this.maps = this.maps.filter((map) => !(map.start <= last && start <= map.last))
  }

  /** vhost_iotlb_itree_first: the lowest start counts, of equal ones the oldest. */
  first(start: bigint, last: bigint): FakeMap | undefined {
    let found: FakeMap | undefined
    for (const map of this.maps) {
      if (map.start > last || map.last < start) continue
      if (found === undefined || map.start < found.start) found = map
    }
    return found
  }

  ask(message: FakeMessage<Q>): void {
    this.unread.push(message)
  }

  /** What is read waits for its answer from then on. */
  read(most: number): readonly FakeMessage<Q>[] {
    const read = this.unread.splice(0, most)
    this.pending.push(...read)
    return read
  }

  /** vhost_iotlb_notify_vq. @returns the queues that an UPDATE wakes, one for each question */
  answered(start: bigint, last: bigint): Q[] {
    const woken: Q[] = []
    const missing = this.bugs.has('wake-misses-last-byte') ? 1n : 0n
    this.pending = this.pending.filter(({ iova, queue }) => {
      if (iova < start || iova > last - missing) return true
      woken.push(queue)
      return false
    })
    return woken
  }

  forgetMessages(): void {
    this.unread = []
    this.pending = []
  }
}

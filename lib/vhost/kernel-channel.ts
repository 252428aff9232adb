/**
 * The IOTLB channel of a vhost descriptor: MISS by read(2), UPDATE and INVALIDATE by write(2).
 *
 * It knows how messages look and what the kernel does with them; what to answer is not its
 * business. One message goes out per write (K10), and no address can reach the kernel that is not
 * in a mapping which the descriptor holds: native checks each UPDATE against them.
 */
import type { InspectOptions } from 'node:util'
import { LAST_PAGE, accessBits, pageOf } from '../address'
import type { Access, AccessBits, Hva, Iova, Range } from '../address'
import { InvalidState, SystemError } from '../errors'
import { shown, summary } from '../inspect'
import { Miss } from '../iotlb/channel'
import type { IotlbChannel } from '../iotlb/channel'
import { native } from '../native'
import type { Descriptor, Poller } from '../native'
import { moduleParameter } from './module-parameters'
import {
  MESSAGE_BYTES,
  MESSAGE_WORDS,
  UPDATE_GUARDS,
  decodeMiss,
  encodeInvalidate,
  encodeUpdate,
} from './uapi'
import type { MessageVersion } from './uapi'
import { watch } from './watch'

/** How many messages one drain reads at most. */
const BATCH = 64
const EAGAIN = -11
const EFAULT = -14
/** The first page of the upper half: a full flush goes out as two (K10). */
const HALF = 2 ** 51

export interface KernelChannelOptions {
  /** A vhost descriptor, opened non-blocking, whose ACCESS_PLATFORM is or will be acknowledged. */
  readonly descriptor: Descriptor
  /** 2 where VHOST_BACKEND_F_IOTLB_MSG_V2 was acknowledged. */
  readonly version: MessageVersion
  /** Entries before eviction; read from the module's parameter where it is not given. */
  readonly limit?: number
  /** Takes the error of a device that can't be watched any more; without it, it is thrown. */
  readonly onError?: (error: Error) => void
  /** 0 (default) to 1000: how long to look for further misses before the event loop goes on. */
  readonly busyPollMicroseconds?: number | undefined
}

export class KernelChannel implements IotlbChannel {
  readonly limit: number
  /** Whether the device has an IOTLB: while it has none, nothing has to be taken back. */
  enabled = true
  readonly #descriptor: Descriptor
  readonly #version: MessageVersion
  readonly #onError: ((error: Error) => void) | undefined
  readonly #busy: number
  readonly #in = new Uint32Array(BATCH * MESSAGE_WORDS)
  readonly #out = new Uint32Array(MESSAGE_WORDS)
  readonly #writeUpdate: () => number
  readonly #writeInvalidate: () => number
  readonly #batches: readonly (readonly Miss[])[]
  readonly #listeners = new Set<() => void>()
  /** Messages in `#in` that native read and nobody has taken yet. */
  #pending = 0
  /** In a batch of native's with which nothing was left: what comes now, the poll will tell. */
  #dry = false
  /** What a listener left behind; empty unless one did. */
  readonly #left: Uint32Array[] = []
  #again: NodeJS.Immediate | undefined
  #poller: Poller | undefined
  #referenced = true
  #unknown = 0
  #closed = false

  constructor(options: KernelChannelOptions) {
    this.#descriptor = options.descriptor
    this.#version = options.version
    this.#onError = options.onError
    this.#busy = options.busyPollMicroseconds ?? 0
    this.#writeUpdate = native().writer(this.#descriptor, this.#out, MESSAGE_BYTES, UPDATE_GUARDS)
    this.#writeInvalidate = native().writer(this.#descriptor, this.#out, MESSAGE_BYTES)
    this.limit = options.limit ?? moduleParameter('vhost/max_iotlb_entries')
    const misses = Array.from({ length: BATCH }, () => new Miss())
    this.#batches = Array.from({ length: BATCH + 1 }, (_, length) => misses.slice(0, length))
  }

  /** Messages of a type that is none of ours: counted and dropped. */
  get unknownMessages(): number {
    return this.#unknown
  }

  /** @throws SystemError when the device refuses to be read */
  drain(): readonly Miss[] {
    for (;;) {
      const count = this.#take()
      if (count === 0) return this.#batches[0]
      const misses = this.#decode(count)
      if (misses > 0) return this.#batches[misses]
    }
  }

  update(range: Range<Iova>, hva: Hva, access: Access): void {
    const aligned = (range.first | hva) & 0xfffn
    if (aligned !== 0n || (range.last & 0xfffn) !== 0xfffn || range.last < range.first) {
      throw new RangeError('an UPDATE covers whole pages')
    }
    this.updatePages(pageOf(range.first), pageOf(range.last), pageOf(hva), accessBits(access))
  }

  invalidate(range: Range<Iova>): void {
    if (range.last < range.first) throw new RangeError('a range ends where it starts, or later')
    this.invalidatePages(pageOf(range.first), pageOf(range.last))
  }

  updatePages(firstPage: number, lastPage: number, hvaPage: number, access: AccessBits): void {
    checkPages(firstPage, lastPage)
    const pages = lastPage - firstPage + 1
    encodeUpdate(this.#out, 0, this.#version, firstPage, pages, hvaPage, access)
    const written = this.#writeUpdate()
    if (written !== 1) this.#refused(written, 'UPDATE')
  }

  invalidatePages(firstPage: number, lastPage: number): void {
    checkPages(firstPage, lastPage)
    if (!this.enabled) return
    if (firstPage < HALF && lastPage >= HALF) {
      this.#invalidate(firstPage, HALF - firstPage)
      this.#invalidate(HALF, lastPage - HALF + 1)
    } else {
      this.#invalidate(firstPage, lastPage - firstPage + 1)
    }
  }

  onReadable(listener: () => void): Disposable {
    if (this.#closed) throw new InvalidState('ERR_CLOSED', 'this channel is closed')
    this.#listeners.add(listener)
    if (this.#poller === undefined) {
      this.#poller = watch(this.#descriptor, this.#in, MESSAGE_BYTES, this.#onBatch, this.#busy)
      if (!this.#referenced) this.#poller.unref()
    }
    return {
      [Symbol.dispose]: () => {
        this.#listeners.delete(listener)
        if (this.#listeners.size === 0) this.#stopPolling()
      },
    }
  }

  /** Whether waiting for misses keeps the event loop alive; it does unless told otherwise. */
  ref(): void {
    this.#referenced = true
    this.#poller?.ref()
  }

  unref(): void {
    this.#referenced = false
    this.#poller?.unref()
  }

  /** Reads and drops what is pending: questions of a device that was stopped (R15). */
  discard(): number {
    let dropped = 0
    this.#dry = false
    for (let count = this.#take(); count > 0; count = this.#take()) dropped += count
    return dropped
  }

  /** Ends the watch. The descriptor stays open: it is its owner's. */
  close(): void {
    this.#closed = true
    this.#listeners.clear()
    this.#stopPolling()
  }

  [shown](depth: number, options: InspectOptions): string {
    const fields = {
      state: this.#closed ? 'closed' : 'open',
      limit: this.limit,
      version: this.#version,
      pending: this.#pending,
      unknownMessages: this.#unknown,
    }
    return summary('KernelChannel', fields, depth, options)
  }

  readonly #onBatch = (count: number): void => {
    if (count < 0) {
      this.#stopPolling()
      const error = new SystemError(count, 'read')
      if (this.#onError === undefined) throw error
      this.#onError(error)
      return
    }
    this.#pending = count
    this.#dry = count < BATCH
    try {
      this.#call()
    } finally {
      this.#dry = false
    }
  }

  /** What a listener leaves is kept, for the next drain or the next turn. */
  #call(): void {
    for (const listener of this.#listeners) listener()
    if (this.#pending > 0) {
      this.#left.push(this.#in.slice(0, this.#pending * MESSAGE_WORDS))
      this.#pending = 0
    }
    if (this.#left.length > 0 && this.#listeners.size > 0 && this.#again === undefined) {
      this.#again = setImmediate(() => {
        this.#again = undefined
        this.#call()
      })
    }
  }

  /** Messages now in `#in`: what a listener left, then what native read, then what is to read. */
  #take(): number {
    const left = this.#pending === 0 ? this.#left.shift() : undefined
    if (left !== undefined) {
      this.#in.set(left)
      return left.length / MESSAGE_WORDS
    }
    if (this.#pending > 0) {
      const count = this.#pending
      this.#pending = 0
      return count
    }
    if (this.#dry) return 0
    const count = native().readMany(this.#descriptor, this.#in, MESSAGE_BYTES)
    if (count === EAGAIN) return 0
    if (count < 0) throw new SystemError(count, 'read')
    return count
  }

  #decode(count: number): number {
    const slots = this.#batches[BATCH]
    let misses = 0
    for (let i = 0; i < count; i++) {
      if (decodeMiss(this.#in, i * MESSAGE_WORDS, slots[misses])) misses++
    }
    this.#unknown += count - misses
    return misses
  }

  #invalidate(firstPage: number, pages: number): void {
    encodeInvalidate(this.#out, 0, this.#version, firstPage, pages)
    const written = this.#writeInvalidate()
    if (written !== 1) this.#refused(written, 'INVALIDATE')
  }

  #refused(result: number, message: string): never {
    if (result === EFAULT) {
      throw new SystemError(result, 'write', {
        hint:
          `the device has no IOTLB (VIRTIO_F_ACCESS_PLATFORM is not acknowledged), ` +
          `or the ${message} names memory that is not the device's`,
      })
    }
    throw new SystemError(result === 0 ? EAGAIN : result, 'write')
  }

  #stopPolling(): void {
    clearImmediate(this.#again)
    this.#again = undefined
    this.#poller?.close()
    this.#poller = undefined
  }
}

function checkPages(firstPage: number, lastPage: number): void {
  if (!(firstPage >= 0 && firstPage <= lastPage && lastPage <= LAST_PAGE)) {
    throw new RangeError(`pages are from 0 to ${LAST_PAGE}, in order: ${firstPage} to ${lastPage}`)
  }
}

/**
 * Which pages of guest memory the kernel has written: what a guest's migration has to send again.
 *
 * The kernel sets one bit for each page in host memory that it is given (VHOST_SET_LOG_BASE), after
 * the write itself: a bit that is not there yet comes with the next `take()`. It logs by gpa in
 * both modes; behind an IOMMU it finds the gpa from the host address and the memory table (Linux,
 * drivers/vhost/vhost.c: log_write_hva), which is why it has a table then that it needs for nothing
 * else. Not in the log: what this process writes as an IOMMU (wait statuses, accessed bits) or for
 * its guest; `mark()` is for that.
 */
import type { InspectOptions } from 'node:util'
import { PAGE_SIZE } from '../address'
import type { Gpa, Range } from '../address'
import { InvalidState, SystemError, succeeded } from '../errors'
import { shown, summary } from '../inspect'
import { native } from '../native'
import type { Mapping } from '../native'
import type { VhostDevice } from './vhost-device'

const WORD_BITS = 32
/** Pages whose bits fill one page of the bitmap. */
const PAGES_PER_PAGE = PAGE_SIZE * 8

interface Bitmap {
  readonly mapping: Mapping
  readonly words: Uint32Array
}

export class DirtyLog implements Disposable {
  readonly #devices: readonly VhostDevice[]
  readonly #onClose: () => void
  #bitmap: Bitmap
  #closed = false

  /**
   * Gives the kernel the bitmap; who turns the logging on is `net-pair.ts`.
   * @param bytes the first gpa beyond guest memory
   * @param onClose ends the logging; the kernel has the bitmap until it returns
   * @throws SystemError ENOMEM, EFAULT
   */
  constructor(devices: readonly VhostDevice[], bytes: number, onClose: () => void) {
    this.#devices = devices
    this.#onClose = onClose
    this.#bitmap = bitmapFor(bytes)
    try {
      for (const device of devices) this.#give(device, this.#bitmap)
    } catch (error) {
      this.#bitmap.mapping.close()
      throw error
    }
  }

  get closed(): boolean {
    return this.#closed
  }

  [shown](depth: number, options: InspectOptions): string {
    const fields = {
      devices: this.#devices.length,
      pages: this.#bitmap.words.length * WORD_BITS,
      closed: this.#closed,
    }
    return summary('DirtyLog', fields, depth, options)
  }

  /**
   * The pages written since the last call, ascending, adjacent ones as one range; each bit is
   * cleared as it is read. Take first and copy the pages after: what is written in between is in
   * the next answer. Once the device is stopped, one more call has all the rest.
   * @throws InvalidState ERR_CLOSED
   */
  take(): readonly Range<Gpa>[] {
    this.#open()
    const { words } = this.#bitmap
    const ranges: { first: Gpa; last: Gpa }[] = []
    let first = -1
    let next = -1
    const finish = (): void => {
      if (first < 0) return
      ranges.push({ first: gpaOf(first), last: (gpaOf(next) - 1n) as Gpa })
    }
    for (let i = 0; i < words.length; i++) {
      if (words[i] === 0) continue
      let bits = Atomics.exchange(words, i, 0)
      while (bits !== 0) {
        const bit = 31 - Math.clz32(bits & -bits)
        bits &= bits - 1
        const page = i * WORD_BITS + bit
        if (page !== next) {
          finish()
          first = page
        }
        next = page + 1
      }
    }
    finish()
    return ranges
  }

  /** Enters what someone else has written. Bytes outside guest memory are ignored. */
  mark(at: Gpa | number, bytes: number): void {
    this.#open()
    const { words } = this.#bitmap
    const last = Math.floor((Number(at) + bytes - 1) / PAGE_SIZE)
    for (let page = Math.floor(Number(at) / PAGE_SIZE); page <= last; page++) {
      const word = Math.floor(page / WORD_BITS)
      if (word < words.length) Atomics.or(words, word, 1 << (page % WORD_BITS))
    }
  }

  /**
   * Guest memory now ends at `bytes`: to be called before the kernel hears of it.
   * @throws SystemError ENOMEM, EFAULT; the bitmap is the old one then
   */
  cover(bytes: number): void {
    const before = this.#bitmap
    if (bytes <= before.words.length * WORD_BITS * PAGE_SIZE) return
    const bitmap = bitmapFor(bytes)
    for (const device of this.#devices) this.#give(device, bitmap)
    this.#bitmap = bitmap
    for (let i = 0; i < before.words.length; i++) Atomics.or(bitmap.words, i, before.words[i])
    for (const { descriptor } of this.#devices) native().letGo(descriptor, before.mapping)
    before.mapping.close()
  }

  /** A device that was reset has forgotten the bitmap. */
  renew(device: VhostDevice): void {
    this.#give(device, this.#bitmap)
  }

  /** Ends the logging, and the bitmap with it. */
  close(): void {
    if (this.#closed) return
    this.#closed = true
    this.#onClose()
    for (const { descriptor } of this.#devices) native().letGo(descriptor, this.#bitmap.mapping)
    this.#bitmap.mapping.close()
  }

  [Symbol.dispose](): void {
    this.close()
  }

  #give(device: VhostDevice, { mapping }: Bitmap): void {
    succeeded(native().hold(device.descriptor, mapping), 'hold')
    device.setLogBase(mapping.address, mapping.byteLength)
  }

  #open(): void {
    if (this.#closed) throw new InvalidState('ERR_CLOSED', 'this log is closed')
  }
}

function bitmapFor(bytes: number): Bitmap {
  const pages = Math.max(Math.ceil(bytes / PAGE_SIZE / PAGES_PER_PAGE), 1)
  const mapping = native().mapMemory(pages * PAGE_SIZE, 0)
  if (typeof mapping === 'number') {
    throw new SystemError(mapping, 'mmap', { hint: `a log of ${pages} pages` })
  }
  return { mapping, words: new Uint32Array(mapping.buffer) }
}

function gpaOf(page: number): Gpa {
  return (BigInt(page) << 12n) as Gpa
}

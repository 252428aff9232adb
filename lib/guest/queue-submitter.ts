/**
 * The driver's end of the invalidation queue: descriptors, a wait, the tail register
 * (VT-d 4.1, 6.5.2), as Linux's `qi_submit_sync` uses them.
 *
 * One submission is any number of invalidations and one wait; it returns when the wait's status
 * has been written. Which invalidations a change needs is not decided here.
 */
import { PAGE_SIZE } from '../address'
import type { Layout, MutableWords } from '../bits'
import { InvalidState } from '../errors'
import { writeWord } from '../iommu/iommu'
import type { MmioDevice } from '../iommu/iommu'
import type { ByteSpace } from '../virtio/dma-view'
import {
  CONTEXT_INVALIDATE,
  DESCRIPTOR_TYPE,
  DEVICE_TLB_INVALIDATE,
  GRANULARITY,
  IOTLB_INVALIDATE,
  REGISTER,
  WAIT,
} from './intel-formats'

/** IQA.QS = 0: one page of 128-bit descriptors (11.4.9.3). */
const ENTRIES = 256
const WORDS = 4
/** What the status word holds while the wait is out, and what the wait writes. */
const IN_USE = 1
const DONE = 2
/** The whole address space to a device TLB: all ones up to bit 62, as Linux writes it. */
const ALL_PAGES = 2 ** 51 - 1
/** IQT.QT (11.4.9.2): the first bit. */
const TAIL_SHIFT = 4

export interface QueuePlace {
  /** gpa page of the descriptors. */
  readonly queuePage: number
  /** gpa page of the status words, one for each slot. */
  readonly statusPage: number
}

/** Whether the unit drains reads and writes at an IOTLB invalidation (CAP.DRD, CAP.DWD). */
export interface Drain {
  readonly reads: boolean
  readonly writes: boolean
}

export class QueueSubmitter {
  /** Since the beginning: waits, and the invalidations before them. */
  submissions = 0
  invalidations = 0
  readonly #iommu: MmioDevice
  readonly #words: Uint32Array
  readonly #base: number
  readonly #status: Uint32Array
  readonly #statusBase: number
  readonly #statusPage: number
  readonly #iotlbPages: Uint32Array
  readonly #iotlbDomain: Uint32Array
  readonly #iotlbGlobal: Uint32Array
  readonly #deviceTlb: Uint32Array
  readonly #wait: Uint32Array
  #tail = 0
  #pending = 0

  /** The pages must be cleared, and the queue not enabled yet. */
  constructor(memory: ByteSpace, iommu: MmioDevice, place: QueuePlace, drain: Drain) {
    const queue = wordsOf(memory, place.queuePage)
    const status = wordsOf(memory, place.statusPage)
    this.#iommu = iommu
    this.#words = queue.words
    this.#base = queue.base
    this.#status = status.words
    this.#statusBase = status.base
    this.#statusPage = place.statusPage
    const iotlb = { type: DESCRIPTOR_TYPE.iotlb, DR: Number(drain.reads), DW: Number(drain.writes) }
    this.#iotlbPages = encode(IOTLB_INVALIDATE, { ...iotlb, G: GRANULARITY.page })
    this.#iotlbDomain = encode(IOTLB_INVALIDATE, { ...iotlb, G: GRANULARITY.domain })
    this.#iotlbGlobal = encode(IOTLB_INVALIDATE, { ...iotlb, G: GRANULARITY.global })
    this.#deviceTlb = encode(DEVICE_TLB_INVALIDATE, { type: DESCRIPTOR_TYPE.deviceTlb })
    this.#wait = encode(WAIT, { type: DESCRIPTOR_TYPE.wait, SW: 1, data: DONE })
  }

  /** 6.5.2.1: every context entry. */
  contextGlobal(): void {
    const { context } = DESCRIPTOR_TYPE
    this.#put(encode(CONTEXT_INVALIDATE, { type: context, G: GRANULARITY.global }))
  }

  /** 6.5.2.1: the context entry of one source id. */
  contextDevice(domain: number, source: number): void {
    const what = { type: DESCRIPTOR_TYPE.context, G: GRANULARITY.device, DID: domain, SID: source }
    this.#put(encode(CONTEXT_INVALIDATE, what))
  }

  /** 6.5.2.3 */
  iotlbGlobal(): void {
    this.#put(this.#iotlbGlobal)
  }

  iotlbDomain(domain: number): void {
    const at = this.#put(this.#iotlbDomain)
    IOTLB_INVALIDATE.field.DID.write(this.#words, domain, at)
  }

  /**
   * @param page first of 2^order pages, aligned to them
   * @param leafOnly no table above a leaf has changed (IH)
   */
  iotlbPages(domain: number, page: number, order: number, leafOnly: boolean): void {
    const { DID, AM, IH, ADDR } = IOTLB_INVALIDATE.field
    const words = this.#words
    const at = this.#put(this.#iotlbPages)
    DID.write(words, domain, at)
    ADDR.write(words, page, at)
    if (order > 0) AM.write(words, order, at)
    if (leafOnly) IH.write(words, 1, at)
  }

  /** 6.5.2.5. @param page first of 2^order pages, aligned to them */
  deviceTlb(source: number, page: number, order: number): void {
    const { SID, S, ADDR } = DEVICE_TLB_INVALIDATE.field
    const words = this.#words
    const at = this.#put(this.#deviceTlb)
    SID.write(words, source, at)
    if (order > 0) S.write(words, 1, at)
    // The size is the number of trailing ones: none for 2 pages, one for 4.
    ADDR.write(words, order > 1 ? page + 2 ** (order - 1) - 1 : page, at)
  }

  deviceTlbAll(source: number): void {
    const { SID, S, ADDR } = DEVICE_TLB_INVALIDATE.field
    const at = this.#put(this.#deviceTlb)
    SID.write(this.#words, source, at)
    S.write(this.#words, 1, at)
    ADDR.write(this.#words, ALL_PAGES, at)
  }

  /**
   * Adds a wait, writes the tail, and sees that the wait is done.
   * @throws InvalidState ERR_UNSUPPORTED when the unit stopped before the wait
   */
  submit(): void {
    const slot = this.#tail
    const status = this.#statusBase + slot
    const at = this.#put(this.#wait)
    this.#words[at + 2] = this.#statusPage * PAGE_SIZE + 4 * slot
    this.#words[at + 3] = Math.floor((this.#statusPage * PAGE_SIZE) / 2 ** 32)
    Atomics.store(this.#status, status, IN_USE)
    this.submissions += 1
    this.invalidations += this.#pending - 1
    this.#pending = 0
    writeWord(this.#iommu, REGISTER.IQT, this.#tail << TAIL_SHIFT)
    if (Atomics.load(this.#status, status) !== DONE) this.#stopped()
  }

  /** Copies a descriptor into the next slot. @returns the index of its first word */
  #put(descriptor: Uint32Array): number {
    if (this.#pending === ENTRIES - 1) {
      throw new InvalidState('ERR_EXHAUSTED', `the invalidation queue has ${ENTRIES} slots`)
    }
    const at = this.#base + WORDS * this.#tail
    const words = this.#words
    for (let word = 0; word < WORDS; word++) words[at + word] = descriptor[word]
    this.#tail = (this.#tail + 1) % ENTRIES
    this.#pending += 1
    return at
  }

  #stopped(): never {
    const status = this.#iommu.read(REGISTER.FSTS, 4).toString(16)
    const head = this.#iommu.read(REGISTER.IQH, 8) >> 4n
    throw new InvalidState(
      'ERR_UNSUPPORTED',
      `the IOMMU stopped at invalidation descriptor ${head.toString()} (FSTS 0x${status})`,
    )
  }
}

/** A structure with the fields given, all others 0. */
export function encode<Name extends string>(
  structure: Layout<Name>,
  values: Readonly<Partial<Record<Name, number>>>,
): Uint32Array {
  const words = new Uint32Array(structure.words)
  fill(structure, values, words, 0)
  return words
}

export function fill<Name extends string>(
  structure: Layout<Name>,
  values: Readonly<Partial<Record<Name, number>>>,
  words: MutableWords,
  at: number,
): void {
  for (const name of Object.keys(values) as Name[]) {
    structure.field[name].write(words, values[name] ?? 0, at)
  }
}

function wordsOf(memory: ByteSpace, page: number): { words: Uint32Array; base: number } {
  const region = memory.find(page * PAGE_SIZE)
  if (region === undefined) throw new RangeError(`page ${page} is not memory`)
  return { words: region.u32, base: (page * PAGE_SIZE - region.start) / 4 }
}

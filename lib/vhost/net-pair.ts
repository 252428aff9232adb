/**
 * One vhost-net descriptor with its two rings and one queue of a tap: the order of things.
 *
 * The order is what this file is about. Features come before addresses (kernels since 6.12.114
 * forget them otherwise), all three parts of a ring are granted before its backend is set (K8), a
 * stop takes the backends away first, then the translations, then the questions that are left.
 * Where a step is refused, the steps before it are taken back: a start happened or it did not.
 */
import { InvalidState, SystemError } from '../errors'
import type { IotlbChannel } from '../iotlb/channel'
import type { MissHandlerOptions } from '../iotlb/miss-handler'
import type { UnansweredMiss } from '../iotlb/unanswered'
import { physicalView, translatedView } from '../virtio/dma-view'
import type { DmaView } from '../virtio/dma-view'
import type { RingAddresses } from '../virtio/ring-layout'
import { features, hasFeature } from '../virtio/net'
import type { DirtyLog } from './dirty-log'
import { Doctor } from './doctor'
import { KernelChannel } from './kernel-channel'
import { MissWorker } from './miss-worker'
import type { MissLoop } from './miss-worker'
import { handlerOptions, looking } from './net-pair-options'
import type { NetPairOptions } from './net-pair-options'
import { headsUpTo } from './stall'
import { Vring } from './vring'

const EFAULT = -14
/** drivers/vhost/net.c: VHOST_NET_VQ_RX and VHOST_NET_VQ_TX. */
const RINGS = 2
const INDEX_MASK = 0xffff
const LOG_ALL = features('VHOST_F_LOG_ALL')
/**
 * Misses that may wait in the kernel unread or unanswered: it keeps a note of each, of some 100
 * bytes, and each kick of a guest that names what is not mapped makes another one (K6).
 */
const MOST_NOTES = 1024

export class NetPair {
  readonly rings: readonly Vring[]
  readonly handler: MissLoop | undefined
  readonly channel: KernelChannel | undefined
  /** Examines rings that stand still. */
  readonly doctor: Doctor
  dropped = 0
  /** How often the kernel was made to forget its notes of unanswered misses. */
  purges = 0
  readonly #options: NetPairOptions
  readonly #pin: Disposable
  #view: DmaView
  #worker: MissWorker | undefined
  #features: bigint | undefined
  #log: DirtyLog | undefined
  #referenced = true
  #running = false
  /** Misses read when the kernel had no note. */
  #notedFrom = 0
  #purging = false

  constructor(options: NetPairOptions) {
    const { device, memory, addressSpace } = options
    this.#options = options
    this.#view = physicalView(memory)
    this.#pin = memory.pin(this, device.descriptor, this.#onMemory)
    const rings: Vring[] = []
    try {
      for (let i = 0; i < RINGS; i++) rings.push(new Vring(i))
      this.rings = rings
      this.doctor = new Doctor(options, rings)
      if (addressSpace !== undefined) {
        this.channel = new KernelChannel({
          descriptor: device.descriptor,
          version: device.messageVersion,
          onError: options.onFailure,
          busyPollMicroseconds: options.busyPollMicroseconds,
        })
        this.channel.unref()
        // A guest may enable its IOMMU, which invalidates, before its driver acknowledges anything.
        this.channel.enabled = device.translates
        this.handler = this.#missLoop(this.channel)
      }
    } catch (error) {
      for (const ring of rings) ring.close()
      this.channel?.close()
      this.#pin[Symbol.dispose]()
      throw error
    }
  }

  /** Messages of a type that this library does not know. */
  get unknownMessages(): number {
    return (this.channel?.unknownMessages ?? 0) + (this.#worker?.unknownMessages ?? 0)
  }

  get running(): boolean {
    return this.#running
  }

  /**
   * Features and what follows from them; the rings' addresses go to the kernel at `start()`.
   * @throws SystemError; the device has to be given its features again then
   */
  setFeatures(bits: bigint): void {
    const { device, memory, addressSpace } = this.#options
    const changed = hasFeature(device.acknowledged ^ bits, 'VIRTIO_F_ACCESS_PLATFORM')
    this.#features = undefined
    if (device.acknowledged !== 0n && changed) {
      device.reset()
      this.#log?.renew(device)
    }
    device.setFeatures(this.#logged(bits))
    this.#forget()
    if (this.channel !== undefined) this.channel.enabled = device.translates
    this.#setMemory()
    this.#features = bits
    this.#view =
      device.translates && addressSpace !== undefined
        ? translatedView(memory, looking(addressSpace))
        : physicalView(memory)
    this.doctor.sees(this.#view, device.translates ? this.handler : undefined)
  }

  /**
   * @throws InvalidState ERR_NOT_CONFIGURED where no ring has addresses
   * @throws RangeError for a ring outside guest memory, where its addresses are gpas
   * @throws SystemError EFAULT for a used ring that the tables do not grant for reading and writing
   */
  start(): void {
    const mine = this.rings.filter(({ ring }) => ring !== undefined)
    if (mine.length === 0) throw new InvalidState('ERR_NOT_CONFIGURED', 'no queue: setQueue()')
    try {
      for (const ring of mine) this.#place(ring)
      this.#preload(mine)
      this.#channelReferenced(this.#referenced)
      for (const ring of mine) this.#run(ring)
      this.#running = true
    } catch (error) {
      this.#undo(mine)
      throw error
    }
  }

  stop(): void {
    if (!this.#running) return
    this.#halt(this.rings.filter(({ running }) => running))
  }

  /**
   * From now on the kernel notes what it writes in a log that it has been given, or does not.
   * While it translates, its translations are gone after that (K9).
   * @throws SystemError; what it notes is not known then
   */
  setLog(log: DirtyLog | undefined): void {
    const { device } = this.#options
    this.#log = log
    for (const ring of this.rings) {
      ring.wrote = log?.mark.bind(log)
    }
    if (log !== undefined) this.#setMemory()
    if (this.#features !== undefined) {
      if (device.translates) this.handler?.flush()
      device.setFeatures(this.#logged(this.#features))
      for (const ring of this.rings) if (ring.running) this.#setAddresses(ring)
    }
    if (log === undefined) this.#setMemory()
  }

  /** Stops one ring for good (virtio 1.3, 2.6.1) and leaves the other running. */
  resetRing(index: number): void {
    const ring = this.rings[index]
    if (ring.running) {
      this.#pause(ring)
      this.#wakeOthers(ring)
    }
    ring.forget()
    this.#running = this.rings.some(({ running }) => running)
  }

  /** Starts a ring that was reset and given new addresses, next to one that runs. */
  startRing(index: number): void {
    const ring = this.rings[index]
    if (ring.running) throw new InvalidState('ERR_ALREADY_STARTED', 'the queue is running')
    try {
      this.#place(ring)
      this.#preload([ring])
      this.#run(ring)
      this.#running = true
    } catch (error) {
      this.#pause(ring)
      this.#wakeOthers(ring)
      throw error
    }
  }

  /** Whether waiting for the device keeps the event loop alive, while it runs. */
  reference(referenced: boolean): void {
    this.#referenced = referenced
    if (this.#running) this.#channelReferenced(referenced)
    for (const ring of this.rings) ring.reference(referenced)
  }

  close(): void {
    try {
      this.stop()
    } finally {
      this.handler?.close()
      this.channel?.close()
      for (const ring of this.rings) ring.close()
      this.#options.device.close()
      this.#pin[Symbol.dispose]()
    }
  }

  #channelReferenced(referenced: boolean): void {
    if (referenced) this.channel?.ref()
    else this.channel?.unref()
    this.#worker?.reference(referenced)
  }

  #missLoop(channel: KernelChannel): MissLoop {
    const { serve, device, memory, busyPollMicroseconds, decorate, handle } = this.#options
    const made = (over: IotlbChannel): MissHandlerOptions => ({
      ...handlerOptions(this.#options, over, this.#onDrop, this.#onFault),
      onObsolete: this.#noted,
    })
    if (serve === 'loop') {
      return handle(made(decorate(channel)))
    }
    this.#worker = new MissWorker({
      ...made(channel),
      channel,
      memory,
      fd: device.descriptor.fd,
      version: device.messageVersion,
      busyPollMicroseconds,
      onTakeOver: () => {
        for (const ring of this.rings) if (ring.running) ring.kick()
      },
    })
    return this.#worker
  }

  #place(ring: Vring): void {
    const { device } = this.#options
    device.setRing(ring.index, this.#addresses(ring), ring.base, this.#loggedAt(ring))
    device.setEvents(ring.index, ring.events)
  }

  #setAddresses(ring: Vring): void {
    this.#options.device.setRingAddresses(ring.index, this.#addresses(ring), this.#loggedAt(ring))
  }

  #addresses(ring: Vring): RingAddresses {
    const { device, memory } = this.#options
    return device.translates ? ring.ring! : ring.inHostMemory(memory)
  }

  #loggedAt(ring: Vring): bigint | undefined {
    return this.#log === undefined ? undefined : ring.ring!.used
  }

  #logged(bits: bigint): bigint {
    return this.#log === undefined ? bits : bits | LOG_ALL
  }

  #setMemory(): void {
    const { device, memory } = this.#options
    device.setMemory(device.translates && this.#log === undefined ? undefined : memory)
  }

  /** K8: the used ring must be writable, although the kernel asks for it with read alone. */
  #preload(rings: readonly Vring[]): void {
    if (!this.#options.device.translates || this.handler === undefined) return
    for (const ring of rings) {
      for (const { name, firstPage, lastPage, wanted } of ring.parts()) {
        const granted = this.handler.preload(firstPage, lastPage, wanted)
        if (granted || name !== 'used') continue
        throw new SystemError(EFAULT, 'ioctl VHOST_NET_SET_BACKEND', {
          path: this.#options.device.path,
          hint: `the tables do not map the used ring of queue ${this.#queue(ring)} for writing`,
        })
      }
    }
  }

  #run(ring: Vring): void {
    const { device, socket, onCall } = this.#options
    const queue = this.#queue(ring)
    ring.observe(this.#view)
    if (device.translates) {
      ring.outlook = this.handler?.lookInto(this.#view, ring.ring!, ring.base)
    }
    const called = (): void => {
      ring.sample()
      onCall(queue)
    }
    const failed = (): void => {
      this.doctor.ticked(ring)
    }
    ring.watch(called, failed, this.#referenced)
    device.setBackend(ring.index, socket)
    ring.running = true
  }

  /** Backends first: from then on nobody asks. Then what the device holds, then what it asked. */
  #halt(rings: readonly Vring[]): void {
    for (const ring of rings) this.#pause(ring)
    this.#running = false
    this.#channelReferenced(false)
    if (this.#options.device.translates) this.handler?.flush()
    this.#forget()
  }

  /**
   * After a refusal, which is what the caller hears of; what fails here fails again at the next
   * start.
   */
  #undo(rings: readonly Vring[]): void {
    try {
      this.#halt(rings)
    } catch {
      this.#running = false
    }
  }

  #forget(): void {
    this.handler?.reset()
    this.#forgetMisses()
    this.channel?.discard()
  }

  #pause(ring: Vring): void {
    const { device } = this.#options
    ring.unwatch()
    ring.outlook?.[Symbol.dispose]()
    ring.outlook = undefined
    device.setBackend(ring.index, undefined)
    if (!ring.running) return
    ring.base = device.ringBase(ring.index)
    ring.sample()
    ring.running = false
  }

  /** Taking one backend away lost the questions of the other ring too (K9): it asks them again. */
  #wakeOthers(paused: Vring): void {
    this.#forgetMisses()
    for (const ring of this.rings) if (ring !== paused && ring.running) ring.kick()
  }

  readonly #onFault = (miss: UnansweredMiss): void => {
    this.#noted()
    this.#options.onFault(miss)
  }

  /** K6, whatever the policy: no guest makes the kernel keep more than so many notes. */
  readonly #noted = (): void => {
    const asked = this.handler?.asked ?? 0
    if (asked - this.#notedFrom > MOST_NOTES && !this.#purging) {
      this.#purging = true
      queueMicrotask(this.#purge)
    }
  }

  /**
   * Taking a backend away makes the kernel forget (K9); the rings that still want to, ask again.
   */
  readonly #purge = (): void => {
    this.#purging = false
    const ring = this.rings.find(({ running }) => running)
    if (ring === undefined) return
    this.purges++
    try {
      this.#restart(ring, () => undefined)
    } catch {
      this.#options.onStop()
    }
  }

  /** The fault policy 'drop'; not in the handler's turn, because it stops a ring. */
  readonly #onDrop = (miss: UnansweredMiss): void => {
    queueMicrotask(() => {
      try {
        const page = Number(miss.iova >> 12n)
        for (const ring of this.rings) if (ring.running && this.#drop(ring, page)) return
      } catch {
        this.#options.onStop(miss)
      }
    })
  }

  /** The chain that waits is completed with nothing in it, and so are those before it. */
  #drop(ring: Vring, page: number): boolean {
    const { device } = this.#options
    const waits = headsUpTo(page, ring, device.ringBase(ring.index), this.#view)
    if (waits.length === 0) return false
    this.#restart(ring, () => {
      for (const head of headsUpTo(page, ring, ring.base, this.#view)) {
        if (!ring.complete(head)) break
        ring.base = (ring.base + 1) & INDEX_MASK
        this.dropped++
      }
    })
    return true
  }

  /** Takes the backend away, and gives it back after an action that may move `ring.base`. */
  #restart(ring: Vring, action: () => void): void {
    const { device, socket } = this.#options
    device.setBackend(ring.index, undefined)
    ring.base = device.ringBase(ring.index)
    action()
    this.#place(ring)
    // An invalidation of everything took the rings too, and SET_BACKEND touches the used one (K8).
    this.#preload([ring])
    device.setBackend(ring.index, socket)
    this.#forgetMisses()
    for (const each of this.rings) if (each.running) each.kick()
  }

  #forgetMisses(): void {
    this.handler?.forgetMisses()
    this.#notedFrom = this.handler?.asked ?? 0
  }

  /**
   * Regions of guest memory came or went. The kernel's translations are by host address, so that
   * all go; what waits for an answer gets one by the new regions, and each ring looks again.
   */
  readonly #onMemory = (): void => {
    const { device, memory } = this.#options
    const running = this.rings.filter((ring) => ring.running)
    if (!device.translates) for (const ring of running) this.#stillInMemory(ring)
    this.#log?.cover(Number(memory.regions.at(-1)!.range.last) + 1)
    if (!device.translates || this.#log !== undefined) this.#setMemory()
    if (device.translates) {
      this.handler?.flush()
      this.handler?.retry()
    }
    for (const ring of running) ring.kick()
  }

  /** Without translation the kernel has the ring's host addresses, and asks nobody. */
  #stillInMemory(ring: Vring): void {
    try {
      ring.inHostMemory(this.#options.memory)
    } catch {
      throw new InvalidState(
        'ERR_IN_USE',
        `queue ${this.#queue(ring)} runs in this memory: stop or reset it first`,
      )
    }
  }

  #queue(ring: Vring): number {
    return this.#options.firstQueue + ring.index
  }
}

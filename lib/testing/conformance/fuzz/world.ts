/**
 * A device under a sequence of steps: does each, and tells all that can be seen afterwards.
 *
 * Told are the result of the call, the questions that were read, both used rings, which error
 * eventfds ticked, and what was written to memory. How often a question or an error came is not:
 * a queue that is woken twice makes one pass or two.
 */
import { accessBits } from '../../../address'
import { MESSAGE_BYTES, VHOST_IOTLB_INVALIDATE, VHOST_IOTLB_UPDATE } from '../../../vhost/uapi'
import { decodeMessage, encodeMessage } from '../../../vhost/uapi'
import { AVAIL, DESC, USED } from '../../../virtio/ring-layout'
import { features } from '../../../virtio/net'
import type { BareDevice } from '../bare-device'
import { BUFFERS_GPA, FEATURES, PAGE, ROOM, RX, TX, codeOf, done } from '../bench'
import { DATA_BYTES, MOVED, RINGS, SIZE, TABLES, gpaOf, iovaOf, placeOf, placeText } from './step'
import type { Chained, RingName, Step } from './step'

const MERGEABLE = features('VIRTIO_NET_F_MRG_RXBUF')
const INDEX = { rx: RX, tx: TX } as const
const ALL = 6 * ROOM

interface Ring {
  /** 0: the lower half of each room, 1: the upper. */
  half: number
  /** Free-running: chains offered, and a number that the device has taken for certain. */
  offered: number
  floor: number
  usedSeen: number
}

export class World {
  readonly #device: BareDevice
  #rings: Readonly<Record<RingName, Ring>> = { rx: fresh(), tx: fresh() }

  /** The device is renewed: nothing of an earlier sequence is left. It stays its owner's. */
  constructor(device: BareDevice) {
    this.#device = device
    device.renew()
    device.memory.view(0, ALL).fill(0)
    device.memory.view(BUFFERS_GPA, TABLES + 2 * PAGE).fill(0)
    this.#prepare()
  }

  /** Does a step, and tells what is to be seen then. */
  take(step: Step): string {
    const device = this.#device
    device.memory.view(BUFFERS_GPA, DATA_BYTES).fill(0)
    const said = this.#act(step)
    device.flush()
    const errors = RINGS.filter((name) => this.#ticked(name))
    const rings = RINGS.map((name) => this.#ringText(name))
    const ticked = errors.length > 0 ? `, error ${errors.join(' ')}` : ''
    return `${said}${rings.join(', ')}${ticked}${this.#written()}`
  }

  /**
   * Whether a ring's error eventfd ticked. An error ends a pass, and who is woken twice makes one
   * pass or two; so such a ring is kicked until it has been through all that it was offered.
   */
  #ticked(name: RingName): boolean {
    const { offered, floor } = this.#rings[name]
    let ticked = false
    for (let passes = offered - floor; this.#device.errors(INDEX[name]) > 0; passes--) {
      ticked = true
      if (passes < 0) break
      this.#device.kick(INDEX[name])
      this.#device.flush()
    }
    return ticked
  }

  #act(step: Step): string {
    const device = this.#device
    switch (step.do) {
      case 'update':
      case 'invalidate':
        return result(this.#message(step))
      case 'descriptor':
        for (const half of [0, 1]) {
          const at = this.#gpa(step.of, 0, half) + DESC.bytes * step.index
          this.#describe(at, step)
        }
        return ''
      case 'entry':
        this.#describe(BUFFERS_GPA + TABLES + DESC.bytes * step.index, step)
        return ''
      case 'offer':
        this.#offer(step.ring, step.head)
        return ''
      case 'kick':
        device.kick(INDEX[step.ring])
        return ''
      case 'start':
      case 'stop':
        return result(device.setBackend(INDEX[step.ring], step.do === 'start'))
      case 'base':
        return this.#base(step.ring)
      case 'resize':
        return result(device.setSize(INDEX[step.ring], SIZE))
      case 'move':
        this.#rings[step.ring].half = step.half
        return result(this.#place(step.ring))
      case 'drain':
        return `asked ${this.#asked().join(' ')}; `
      case 'answer':
        return `asked ${this.#answered().join(' ')}; `
      case 'receive':
        device.receive(step.count)
        return ''
      case 'features':
        return result(device.setFeatures(step.mergeable ? FEATURES : FEATURES & ~MERGEABLE))
      case 'memory':
        return result(device.setMemory([]))
      case 'owner':
        done(device.resetOwner())
        this.#prepare()
        return ''
    }
  }

  /** Known to the device, not started, with nothing granted. */
  #prepare(): void {
    const device = this.#device
    done(device.setFeatures(FEATURES))
    done(device.setMemory([]))
    for (const name of RINGS) {
      done(device.setSize(INDEX[name], SIZE))
      this.#base(name)
      done(this.#place(name))
    }
  }

  #place(name: RingName): number {
    const base = iovaOf({ name: `${name}.desc`, offset: 0 })
    const offset = BigInt(this.#rings[name].half * MOVED)
    const at = (part: number): bigint => base + BigInt(part * ROOM) + offset
    const addresses = { size: SIZE, desc: at(0), avail: at(1), used: at(2) }
    return this.#device.setAddresses(INDEX[name], addresses)
  }

  /** The device shall go on with what is offered next. */
  #base(name: RingName): string {
    const ring = this.#rings[name]
    const set = this.#device.setBase(INDEX[name], ring.offered & 0xffff)
    if (set === 0) ring.floor = ring.offered
    return result(set)
  }

  #gpa(name: RingName, part: number, half = this.#rings[name].half): number {
    return gpaOf({ name: `${name}.desc`, offset: part * ROOM + half * MOVED })
  }

  #message(step: Extract<Step, { do: 'update' | 'invalidate' }>): number {
    const device = this.#device
    const target = { iova: iovaOf(step.at), size: BigInt(step.bytes) }
    const update = step.do === 'update'
    const type = update ? VHOST_IOTLB_UPDATE : VHOST_IOTLB_INVALIDATE
    const leads = update
      ? { uaddr: device.memory.hva(gpaOf(step.at)), perm: accessBits(step.access) }
      : {}
    const version = device.messageVersion
    return device.write(encodeMessage({ version, type, ...target, ...leads }))
  }

  #describe(gpa: number, { at, length, flags, next }: Chained): void {
    const { memory } = this.#device
    memory.setU64(gpa + DESC.addr, iovaOf(at))
    memory.setU32(gpa + DESC.len, length)
    memory.setU16(gpa + DESC.flags, flags)
    memory.setU16(gpa + DESC.next, next)
  }

  /** Nothing when the ring is full: more than it holds is no sequence that a driver could mean. */
  #offer(name: RingName, head: number): void {
    const ring = this.#rings[name]
    if (ring.offered - ring.floor >= SIZE) return
    const slot = AVAIL.ring + AVAIL.entry * (ring.offered % SIZE)
    ring.offered++
    for (const half of [0, 1]) {
      const avail = this.#gpa(name, 1, half)
      this.#device.memory.setU16(avail + slot, head)
      this.#device.memory.storeReleaseU16(avail + AVAIL.idx, ring.offered & 0xffff)
    }
  }

  #questions(): { readonly iova: bigint; readonly perm: number }[] {
    const all: { readonly iova: bigint; readonly perm: number }[] = []
    const bytes = new Uint8Array(MESSAGE_BYTES)
    while (this.#device.read(bytes) === MESSAGE_BYTES) all.push(decodeMessage(bytes))
    return all
  }

  #asked(questions = this.#questions()): string[] {
    const words = questions.map(({ iova, perm }) => {
      const place = placeOf(iova)
      const where = place === undefined ? `0x${iova.toString(16)}` : placeText(place)
      return `${['nothing', 'read', 'write', 'both'][perm]}:${where}`
    })
    return words.length === 0 ? ['nothing'] : [...new Set(words)].sort()
  }

  #answered(): string[] {
    const questions = this.#questions()
    const pages = new Set(questions.map(({ iova }) => iova & ~0xfffn))
    for (const page of [...pages].sort((a, b) => (a < b ? -1 : 1))) {
      const at = placeOf(page)
      if (at === undefined || at.name === 'far' || at.name === 'odd') continue
      this.#message({ do: 'update', at, bytes: PAGE, access: 'readwrite' })
    }
    return this.#asked(questions)
  }

  /** `tx 2/1 [0:54 3:20]`: completions and flags, then the used entries up to the last one. */
  #ringText(name: RingName): string {
    const { memory } = this.#device
    const ring = this.#rings[name]
    const used = this.#gpa(name, 2)
    const index = memory.loadAcquireU16(used + USED.idx)
    const more = (index - ring.usedSeen) & 0xffff
    ring.usedSeen = index
    if (more <= SIZE) ring.floor = Math.min(ring.floor + more, ring.offered)
    const entries = Array.from({ length: SIZE }, (_, i) => {
      const at = used + USED.ring + USED.entry * i
      return `${memory.u32(at + USED.id)}:${memory.u32(at + USED.len)}`
    })
    while (entries.at(-1) === '0:0') entries.pop()
    const listed = entries.length === 0 ? '' : ` [${entries.join(' ')}]`
    // Kernels differ in how often they look at a receiving ring without room for a frame.
    const flags = name === 'rx' ? '' : `/${memory.u16(used + USED.flags)}`
    return `${name} ${index}${flags}${listed}`
  }

  /** Where data was written, and a sum of it. */
  #written(): string {
    const bytes = this.#device.memory.view(BUFFERS_GPA, DATA_BYTES)
    const words = new Uint32Array(bytes.buffer, bytes.byteOffset, DATA_BYTES / 4)
    const first = words.findIndex((word) => word !== 0)
    if (first < 0) return ''
    let sum = 0
    for (let i = first; i < words.length; i++) sum = (Math.imul(sum, 31) + words[i]) | 0
    return `, wrote buf+0x${(first * 4).toString(16)} sum ${(sum >>> 0).toString(16)}`
  }
}

function fresh(): Ring {
  return { half: 0, offered: 0, floor: 0, usedSeen: 0 }
}

function result(value: number): string {
  return value < 0 ? `${codeOf(value)}; ` : ''
}

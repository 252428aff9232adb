/**
 * One virtual processor: takes its exits to the buses, and lets it go on.
 *
 * It runs on the event loop that all devices live on, or in a thread of its own; either way, all that
 * it needs done for it is done on that loop. So a register write that it exits for is done, with all
 * that follows from it, before the guest's next instruction, and no device needs a lock.
 */
import { SystemError, messageOf } from '../errors'
import type { Bus } from './bus'
import type { KvmVcpu, VcpuThread } from './kvm'
import { KVM_COALESCED, KVM_EXIT, KVM_RUN_AT } from './kvm-uapi'

const PAGE = 4096
const EINTR = -4
const EAGAIN = -11
const IO_OUT = 1

/** Why a processor runs no more. */
export type VcpuStop =
  /** A triple fault: what resets a real machine. */
  { readonly how: 'shutdown' } | { readonly how: 'failed'; readonly reason: string }

export interface VcpuOptions {
  readonly memory: Bus
  readonly ports: Bus
  /** Whether it goes on, after this exit, on the thread of the devices: one processor at a time may. */
  readonly onLoop: () => boolean
  readonly onStop: (stop: VcpuStop) => void
}

export class Vcpu {
  /** Exits that came here. */
  exits = 0
  /** Of this processor; idle while it runs on the event loop. */
  readonly thread: VcpuThread
  readonly #options: VcpuOptions
  readonly #view: DataView
  readonly #bytes: Uint8Array
  /** The data of an MMIO exit. */
  readonly #data: BigUint64Array
  #stopped = false

  constructor(kvm: KvmVcpu, options: VcpuOptions) {
    this.#options = options
    this.thread = kvm.start((result) => {
      this.#exit(result)
    })
    this.#view = new DataView(this.thread.run)
    this.#bytes = new Uint8Array(this.thread.run)
    this.#data = new BigUint64Array(this.thread.run, KVM_RUN_AT.mmioData, 1)
  }

  start(): void {
    this.thread.resume(this.#options.onLoop())
  }

  /** The thread has ended when it returns. */
  close(): void {
    this.#stopped = true
    this.thread.close()
  }

  /** What a device throws is the host's refusal, never the guest's doing: it cannot go on. */
  #exit(result: number): void {
    this.exits++
    try {
      this.#drain()
      if (result === 0) this.#handle(this.#view.getUint32(KVM_RUN_AT.exitReason, true))
      else if (result !== EINTR && result !== EAGAIN) throw new SystemError(result, 'ioctl KVM_RUN')
    } catch (cause) {
      const reason = messageOf(cause)
      this.#stop({ how: 'failed', reason })
    }
    if (!this.#stopped) this.thread.resume(this.#options.onLoop())
  }

  #handle(reason: number): void {
    switch (reason) {
      case KVM_EXIT.MMIO:
        this.#mmio()
        return
      case KVM_EXIT.IO:
        this.#io()
        return
      case KVM_EXIT.INTR:
        return
      case KVM_EXIT.SHUTDOWN:
      case KVM_EXIT.SYSTEM_EVENT:
        this.#stop({ how: 'shutdown' })
        return
      default: {
        const detail = this.#view.getBigUint64(KVM_RUN_AT.detail, true).toString(16)
        this.#stop({ how: 'failed', reason: `KVM exit ${reason}, detail 0x${detail}` })
      }
    }
  }

  #mmio(): void {
    const view = this.#view
    const { mmioAddress } = KVM_RUN_AT
    const address =
      view.getUint32(mmioAddress, true) + view.getUint32(mmioAddress + 4, true) * 2 ** 32
    const size = view.getUint32(KVM_RUN_AT.mmioLength, true)
    const bus = this.#options.memory
    if (view.getUint8(KVM_RUN_AT.mmioIsWrite) !== 0) {
      // The registers that a guest writes most have 4 bytes.
      if (size === 4) bus.writeWord(address, view.getUint32(KVM_RUN_AT.mmioData, true))
      else bus.write(address, BigInt.asUintN(8 * size, this.#data[0]), size)
    } else {
      this.#data[0] = bus.read(address, size)
    }
  }

  /** A string instruction is one exit with many accesses. */
  #io(): void {
    const view = this.#view
    const port = view.getUint16(KVM_RUN_AT.ioPort, true)
    const size = view.getUint8(KVM_RUN_AT.ioSize)
    const count = view.getUint32(KVM_RUN_AT.ioCount, true)
    const out = view.getUint8(KVM_RUN_AT.ioDirection) === IO_OUT
    let at = Number(view.getBigUint64(KVM_RUN_AT.ioDataOffset, true))
    for (let i = 0; i < count; i++, at += size) {
      if (out) this.#options.ports.write(port, this.#load(at, size), size)
      else this.#store(at, this.#options.ports.read(port, size), size)
    }
  }

  /** Writes that KVM has put aside come before the one that this exit is about. */
  #drain(): void {
    const view = this.#view
    const ring = KVM_COALESCED.page * PAGE
    const entries = Math.floor((PAGE - KVM_COALESCED.entries) / KVM_COALESCED.entryBytes)
    let first = view.getUint32(ring + KVM_COALESCED.first, true)
    while (!this.#stopped && first !== view.getUint32(ring + KVM_COALESCED.last, true)) {
      const at = ring + KVM_COALESCED.entries + KVM_COALESCED.entryBytes * first
      const port = Number(view.getBigUint64(at + KVM_COALESCED.entryAddress, true))
      const size = view.getUint32(at + KVM_COALESCED.entryLength, true)
      this.#options.ports.write(port, this.#load(at + KVM_COALESCED.entryData, size), size)
      first = (first + 1) % entries
      view.setUint32(ring + KVM_COALESCED.first, first, true)
    }
  }

  #load(at: number, size: number): bigint {
    let value = 0n
    for (let i = size - 1; i >= 0; i--) value = (value << 8n) | BigInt(this.#bytes[at + i])
    return value
  }

  #store(at: number, value: bigint, size: number): void {
    for (let i = 0; i < size; i++) {
      this.#bytes[at + i] = Number((value >> BigInt(8 * i)) & 0xffn)
    }
  }

  #stop(stop: VcpuStop): void {
    this.#stopped = true
    this.#options.onStop(stop)
  }
}

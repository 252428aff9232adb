/**
 * A serial port of a PC: a 16550A as an operating system's console driver sees it.
 *
 * There is no line behind it: what is sent is out at once, and what comes in waits until the guest
 * reads it. National Semiconductor PC16550D data sheet, section 8.
 */
import type { MmioDevice } from '../iommu/iommu'

export const SERIAL_BYTES = 8

const REGISTER = { data: 0, ier: 1, iir: 2, lcr: 3, mcr: 4, lsr: 5, msr: 6, scratch: 7 } as const
const IER = { received: 1, empty: 2, all: 0x0f } as const
/** Interrupt identification: the cause, and the two bits that say that the FIFOs are on. */
const IIR = { none: 1, empty: 2, received: 4, fifos: 0xc0 } as const
const FCR = { enable: 1, clearReceived: 2 } as const
const LCR = { divisor: 0x80 } as const
const MCR = { dtr: 1, rts: 2, out1: 4, out2: 8, loop: 0x10, all: 0x1f } as const
const LSR = { ready: 1, empty: 0x60 } as const
const MSR = { cts: 0x10, dsr: 0x20, ri: 0x40, dcd: 0x80 } as const

export class Serial implements MmioDevice {
  readonly #output: (byte: number) => void
  readonly #interrupt: (asserted: boolean) => void
  #received: number[] = []
  #ier = 0
  #fifos = false
  #lcr = 0
  #mcr = 0
  #scratch = 0
  #divisor = 1
  /** The transmitter has become empty, and nobody has looked since. */
  #empty = false
  #asserted = false

  /** @param output gets each byte that the guest sends */
  constructor(output: (byte: number) => void, interrupt: (asserted: boolean) => void) {
    this.#output = output
    this.#interrupt = interrupt
  }

  /** Bytes for the guest. They wait as long as it takes. */
  receive(bytes: Uint8Array): void {
    this.#received.push(...bytes)
    this.#drive()
  }

  reset(): void {
    this.#received = []
    this.#ier = 0
    this.#fifos = false
    this.#lcr = 0
    this.#mcr = 0
    this.#scratch = 0
    this.#divisor = 1
    this.#empty = false
    this.#drive()
  }

  read(offset: number, size: number): bigint {
    let value = 0n
    for (let i = size - 1; i >= 0; i--) value = (value << 8n) | BigInt(this.#read(offset + i))
    return value
  }

  write(offset: number, value: bigint, size: number): void {
    for (let i = 0; i < size; i++) {
      this.#write(offset + i, Number((value >> BigInt(8 * i)) & 0xffn))
    }
  }

  get #divisorLatch(): boolean {
    return (this.#lcr & LCR.divisor) !== 0
  }

  get #loop(): boolean {
    return (this.#mcr & MCR.loop) !== 0
  }

  #read(register: number): number {
    switch (register) {
      case REGISTER.data:
        return this.#divisorLatch ? this.#divisor & 0xff : this.#take()
      case REGISTER.ier:
        return this.#divisorLatch ? this.#divisor >> 8 : this.#ier
      case REGISTER.iir:
        return this.#identify()
      case REGISTER.lcr:
        return this.#lcr
      case REGISTER.mcr:
        return this.#mcr
      case REGISTER.lsr:
        return LSR.empty | (this.#received.length > 0 ? LSR.ready : 0)
      case REGISTER.msr:
        return this.#modemStatus()
      default:
        return this.#scratch
    }
  }

  #write(register: number, value: number): void {
    switch (register) {
      case REGISTER.data:
        if (this.#divisorLatch) this.#divisor = (this.#divisor & 0xff00) | value
        else this.#send(value)
        break
      case REGISTER.ier:
        if (this.#divisorLatch) this.#divisor = (this.#divisor & 0xff) | (value << 8)
        else this.#setEnabled(value & IER.all)
        break
      case REGISTER.iir:
        this.#fifos = (value & FCR.enable) !== 0
        if ((value & FCR.clearReceived) !== 0) this.#received = []
        break
      case REGISTER.lcr:
        this.#lcr = value
        break
      case REGISTER.mcr:
        this.#mcr = value & MCR.all
        break
      case REGISTER.scratch:
        this.#scratch = value
        break
      default:
        break
    }
    this.#drive()
  }

  #take(): number {
    const byte = this.#received.shift() ?? 0
    this.#drive()
    return byte
  }

  #send(byte: number): void {
    this.#empty = true
    if (this.#loop) this.#received.push(byte)
    else this.#output(byte)
  }

  /** The transmitter is empty all the time: enabling that interrupt causes it. */
  #setEnabled(enabled: number): void {
    if ((enabled & ~this.#ier & IER.empty) !== 0) this.#empty = true
    this.#ier = enabled
  }

  /** Reading it takes the transmitter's interrupt back, where that is what it says. */
  #identify(): number {
    const cause = this.#cause()
    if (cause === IIR.empty) this.#empty = false
    this.#drive()
    return cause | (this.#fifos ? IIR.fifos : 0)
  }

  #cause(): number {
    if ((this.#ier & IER.received) !== 0 && this.#received.length > 0) return IIR.received
    return (this.#ier & IER.empty) !== 0 && this.#empty ? IIR.empty : IIR.none
  }

  #modemStatus(): number {
    if (!this.#loop) return MSR.cts | MSR.dsr | MSR.dcd
    return (
      ((this.#mcr & MCR.rts) !== 0 ? MSR.cts : 0) |
      ((this.#mcr & MCR.dtr) !== 0 ? MSR.dsr : 0) |
      ((this.#mcr & MCR.out1) !== 0 ? MSR.ri : 0) |
      ((this.#mcr & MCR.out2) !== 0 ? MSR.dcd : 0)
    )
  }

  /** On a PC the line reaches the interrupt controller through OUT2. */
  #drive(): void {
    const out = (this.#mcr & MCR.out2) !== 0 && !this.#loop
    const asserted = out && this.#cause() !== IIR.none
    if (asserted === this.#asserted) return
    this.#asserted = asserted
    this.#interrupt(asserted)
  }
}

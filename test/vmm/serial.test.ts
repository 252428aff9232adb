import { beforeEach, describe, expect, it } from 'vitest'
import { Serial } from '../../lib/vmm/serial'

const DATA = 0
const IER = 1
const IIR = 2
const LCR = 3
const MCR = 4
const LSR = 5
const MSR = 6
const SCRATCH = 7
const OUT2 = 8n

let sent: number[]
let line: boolean
let edges: number
let serial: Serial

beforeEach(() => {
  sent = []
  line = false
  edges = 0
  serial = new Serial(
    (byte) => sent.push(byte),
    (asserted) => {
      line = asserted
      if (asserted) edges++
    },
  )
})

const read = (register: number): number => Number(serial.read(register, 1))
const write = (register: number, value: number): void => {
  serial.write(register, BigInt(value), 1)
}

describe('a driver that polls', () => {
  it('finds the transmitter empty at any time, and its bytes on the line in order', () => {
    for (const byte of [0x68, 0x69]) {
      expect(read(LSR) & 0x60).toBe(0x60)
      write(DATA, byte)
    }
    expect(sent).toEqual([0x68, 0x69])
  })

  it('reads what came in, in order, and is told when there is no more', () => {
    serial.receive(Uint8Array.of(1, 2))
    expect([read(LSR) & 1, read(DATA), read(LSR) & 1, read(DATA), read(LSR) & 1]).toEqual([
      1, 1, 1, 2, 0,
    ])
  })

  it('takes a divisor through the same place, which goes nowhere', () => {
    write(LCR, 0x83)
    write(DATA, 0x0c)
    write(IER, 0x01)
    expect([read(DATA), read(IER)]).toEqual([0x0c, 0x01])
    write(LCR, 0x03)
    expect(sent).toEqual([])
    expect(read(IER)).toBe(0)
  })
})

describe('how Linux finds out what it is', () => {
  it('keeps the scratch register and the four bits of the interrupt enable register', () => {
    write(SCRATCH, 0xa5)
    write(IER, 0xff)
    expect([read(SCRATCH), read(IER)]).toEqual([0xa5, 0x0f])
  })

  it('has FIFOs where they were asked for: a 16550A', () => {
    expect(read(IIR) & 0xc0).toBe(0)
    write(IIR, 0x01)
    expect(read(IIR) & 0xc0).toBe(0xc0)
  })

  it('shows the modem control bits in the modem status while it is looped back', () => {
    write(MCR, 0x1a)
    expect(read(MSR) & 0xf0).toBe(0x90)
    write(DATA, 0x55)
    expect(sent).toEqual([])
    expect(read(DATA)).toBe(0x55)
  })
})

describe('its interrupt', () => {
  beforeEach(() => {
    serial.write(MCR, OUT2, 1)
  })

  it('stands while there is something to read, and says so', () => {
    write(IER, 0x01)
    serial.receive(Uint8Array.of(7))
    expect(line).toBe(true)
    expect(read(IIR) & 0x0f).toBe(0x04)
    read(DATA)
    expect(line).toBe(false)
    expect(read(IIR) & 0x0f).toBe(0x01)
  })

  it('comes once for an empty transmitter, until the next byte', () => {
    write(IER, 0x02)
    expect(line).toBe(true)
    expect(read(IIR) & 0x0f).toBe(0x02)
    expect(line).toBe(false)
    write(DATA, 1)
    expect(line).toBe(true)
    expect(edges).toBe(2)
  })

  it('does not reach the processor without OUT2', () => {
    write(MCR, 0)
    write(IER, 0x03)
    serial.receive(Uint8Array.of(7))
    expect(edges).toBe(0)
  })

  it('is gone after a reset, and so is all that was waiting', () => {
    write(IER, 0x01)
    serial.receive(Uint8Array.of(7))
    serial.reset()
    expect(line).toBe(false)
    expect(read(LSR) & 1).toBe(0)
  })
})

it('answers accesses of any size, byte by byte', () => {
  write(SCRATCH, 0x11)
  expect(serial.read(LSR, 2)).toBe(0xb060n)
  serial.write(DATA, 0x00_41n, 2)
  expect(sent).toEqual([0x41])
})

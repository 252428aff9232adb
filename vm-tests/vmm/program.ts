/**
 * Programs for a bare processor: stores and loads of any size at any address, one after another, and
 * a power-off at the end. What no operating system does, in the order that a test wants.
 *
 * Intel SDM 2: MOV with a 64-bit offset (A0 to A3), MOV of an immediate (B0, B8), OUT (EE).
 */
import { POWER_PORTS } from '../../lib/vmm/layout'

export interface Access {
  readonly at: number | bigint
  readonly size: 1 | 2 | 4 | 8
  /** Without it, a load. */
  readonly value?: number | bigint
}

/** Turns of a loop that does nothing: time for who looks on. */
export interface Delay {
  readonly turns: number
}

const WORD = 0x66
const QUAD = 0x48
const SLEEP = 0x34

export function program(accesses: readonly (Access | Delay)[]): Uint8Array {
  const power = POWER_PORTS.base + POWER_PORTS.control
  return Buffer.concat([
    ...accesses.map((one) => ('turns' in one ? delay(one) : instructions(one))),
    // mov dx, port; mov al, value; out dx, al; hlt
    Uint8Array.of(WORD, 0xba, power & 0xff, power >> 8, 0xb0, SLEEP, 0xee, 0xf4),
  ])
}

/** `count` times the same loads or stores: a loop. */
export function loop(accesses: readonly Access[], count: number): Uint8Array {
  const body = Buffer.concat(accesses.map(instructions))
  // mov ecx, count … dec ecx; jnz
  const jump = -(body.length + 2 + 6)
  return Buffer.concat([
    Uint8Array.of(0xb9, ...little(count, 4)),
    body,
    Uint8Array.of(0xff, 0xc9, 0x0f, 0x85, ...little(jump, 4)),
    program([]),
  ])
}

/** A triple fault, and a power-off in the run after it: what tells them apart is kept at `mark`. */
export function dieOnce(mark: number): Uint8Array {
  const first = instructions({ at: mark, size: 1, value: 1 })
  // test al, al; jnz … ud2, for which there is no interrupt table
  return Buffer.concat([
    instructions({ at: mark, size: 1 }),
    Uint8Array.of(0x84, 0xc0, 0x75, first.length + 2),
    first,
    Uint8Array.of(0x0f, 0x0b),
    program([]),
  ])
}

/** mov ecx, turns; dec ecx; jnz */
function delay({ turns }: Delay): Uint8Array {
  return Uint8Array.of(0xb9, ...little(turns, 4), 0xff, 0xc9, 0x75, 0xfc)
}

function instructions({ at, size, value }: Access): Uint8Array {
  const prefix = size === 2 ? [WORD] : size === 8 ? [QUAD] : []
  const one = size === 1 ? 0 : 1
  const address = little(at, 8)
  if (value === undefined) return Uint8Array.of(...prefix, 0xa0 + one, ...address)
  const immediate = size === 1 ? [0xb0] : [...prefix, 0xb8]
  const store = [...prefix, 0xa2 + one, ...address]
  return Uint8Array.of(...immediate, ...little(value, size), ...store)
}

function little(value: number | bigint, bytes: number): number[] {
  const bits = BigInt.asUintN(8 * bytes, BigInt(value))
  return Array.from({ length: bytes }, (_, i) => Number((bits >> BigInt(8 * i)) & 0xffn))
}

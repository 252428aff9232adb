/**
 * AML, as much of it as a machine needs to describe itself: names, packages, devices and resources,
 * without a line of code in them. ACPI 6.5 chapter 20 (AML) and 6.4 (resources).
 */

export type Aml = Uint8Array

const OP = { zero: 0x00, one: 0x01, name: 0x08, byte: 0x0a, word: 0x0b, dword: 0x0c } as const
const STRING = 0x0d
const SCOPE = 0x10
const BUFFER = 0x11
const PACKAGE = 0x12
const EXTENDED = 0x5b
const DEVICE = 0x82
const ROOT = 0x5c

/** 0 to 2^32-1. */
export function integer(value: number): Aml {
  if (value === 0) return Uint8Array.of(OP.zero)
  if (value === 1) return Uint8Array.of(OP.one)
  if (value <= 0xff) return Uint8Array.of(OP.byte, value)
  if (value <= 0xffff) return Uint8Array.of(OP.word, ...little(value, 2))
  return Uint8Array.of(OP.dword, ...little(value, 4))
}

export function text(value: string): Aml {
  return Uint8Array.of(STRING, ...Buffer.from(value, 'ascii'), 0)
}

/** A compressed EISA id, such as `PNP0A08` (19.3.4). */
export function eisaId(id: string): Aml {
  const letter = (i: number): number => id.charCodeAt(i) - 0x40
  const vendor = (letter(0) << 10) | (letter(1) << 5) | letter(2)
  const product = Number.parseInt(id.slice(3), 16)
  const bytes = [vendor >> 8, vendor & 0xff, product >> 8, product & 0xff]
  return Uint8Array.of(OP.dword, ...bytes)
}

/** @param path four characters, or such after a backslash */
export function name(path: string, value: Aml): Aml {
  return concat(Uint8Array.of(OP.name), nameString(path), value)
}

export function device(path: string, ...content: readonly Aml[]): Aml {
  const body = concat(nameString(path), ...content)
  return concat(Uint8Array.of(EXTENDED, DEVICE), packageLength(body.length), body)
}

export function scope(path: string, ...content: readonly Aml[]): Aml {
  const body = concat(nameString(path), ...content)
  return concat(Uint8Array.of(SCOPE), packageLength(body.length), body)
}

export function packageOf(...elements: readonly Aml[]): Aml {
  const body = concat(Uint8Array.of(elements.length), ...elements)
  return concat(Uint8Array.of(PACKAGE), packageLength(body.length), body)
}

export function buffer(bytes: Uint8Array): Aml {
  const body = concat(integer(bytes.length), bytes)
  return concat(Uint8Array.of(BUFFER), packageLength(body.length), body)
}

/** A resource template: descriptors, and the tag that ends them (6.4.2.9). */
export function resources(...descriptors: readonly Uint8Array[]): Aml {
  return buffer(concat(...descriptors, Uint8Array.of(0x79, 0)))
}

/** 6.4.3.5.3: bus numbers that the device produces. */
export function busNumbers(first: number, last: number): Uint8Array {
  const words = [0, first, last, 0, last - first + 1].flatMap((value) => little(value, 2))
  return Uint8Array.of(0x88, ...little(3 + words.length, 2), 2, FIXED, 0, ...words)
}

/** 6.4.3.5.2: memory that the device produces, not cached, below 4 GiB. */
export function memoryWindow(first: number, bytes: number): Uint8Array {
  const words = [0, first, first + bytes - 1, 0, bytes].flatMap((value) => little(value, 4))
  return Uint8Array.of(0x87, ...little(3 + words.length, 2), 0, FIXED, WRITABLE, ...words)
}

/** 6.4.3.4: memory below 4 GiB that the device occupies. */
export function fixedMemory(first: number, bytes: number): Uint8Array {
  return Uint8Array.of(0x86, ...little(9, 2), WRITABLE, ...little(first, 4), ...little(bytes, 4))
}

/** 6.4.2.5: ports that the device consumes. */
export function ports(first: number, count: number): Uint8Array {
  return Uint8Array.of(0x47, 1, ...little(first, 2), ...little(first, 2), 1, count)
}

/** 6.4.3.6: an edge-triggered, active-high interrupt that the device consumes. */
export function edgeInterrupt(gsi: number): Uint8Array {
  return Uint8Array.of(0x89, ...little(6, 2), 0b0011, 1, ...little(gsi, 4))
}

/** Both ends of a range are as they are. */
const FIXED = 0x0c
const WRITABLE = 1

export function concat(...parts: readonly Uint8Array[]): Uint8Array {
  return Uint8Array.from(Buffer.concat(parts))
}

/** 20.2.4: the length counts itself. */
function packageLength(bytes: number): Uint8Array {
  if (bytes + 1 < 0x40) return Uint8Array.of(bytes + 1)
  for (let more = 1; more <= 3; more++) {
    const length = bytes + 1 + more
    if (length >= 2 ** (4 + 8 * more)) continue
    const rest = little(Math.floor(length / 16), more)
    return Uint8Array.of((more << 6) | (length & 0xf), ...rest)
  }
  throw new RangeError('an AML package is smaller than 256 MiB')
}

function nameString(path: string): Uint8Array {
  const root = path.startsWith('\\')
  const segment = (root ? path.slice(1) : path).padEnd(4, '_')
  return Uint8Array.of(...(root ? [ROOT] : []), ...Buffer.from(segment, 'ascii'))
}

function little(value: number, bytes: number): number[] {
  return Array.from({ length: bytes }, (_, i) => Math.floor(value / 256 ** i) & 0xff)
}

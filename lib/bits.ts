/**
 * Bits live in tables, never in expressions: one table says where a field or a register is, and
 * this file turns it into readers, writers, reserved masks and a register file.
 *
 * Structures are arrays of little-endian 32-bit words, because 64-bit words would be BigInts, and
 * those cost a walk ten times its time. Not here: what any of the bits mean.
 */

/** Bits `from` to `to`, both included, counted from bit 0 of the structure. */
export interface Field<Name extends string = string> {
  readonly name: Name
  readonly from: number
  readonly to: number
}

/** Little-endian 32-bit words: a Uint32Array or a plain array. */
export type Words = ArrayLike<number>
export type MutableWords = Uint32Array | number[]

/** What a field has in one 32-bit word. */
interface Part {
  readonly word: number
  readonly shift: number
  /** As many ones as the part has bits. */
  readonly ones: number
  /** What the part counts in the field's value. */
  readonly scale: number
}

/** One field of a structure. Values are plain numbers: a field has at most 53 bits. */
export class BitField {
  readonly width: number
  /** The field's bits in place. */
  readonly bits: bigint
  readonly #parts: readonly Part[]
  // The first part, which is the only one of most fields.
  readonly #word: number
  readonly #shift: number
  readonly #ones: number

  constructor(
    readonly name: string,
    readonly from: number,
    readonly to: number,
  ) {
    if (!(from >= 0 && to >= from)) throw new RangeError(`field ${name}: bits ${to}:${from}`)
    this.width = to - from + 1
    this.bits = ((1n << BigInt(this.width)) - 1n) << BigInt(from)
    this.#parts = partsOf(from, to)
    const { word, shift, ones } = this.#parts[0]
    this.#word = word
    this.#shift = shift
    this.#ones = ones
  }

  /** @param at index of the structure's first word */
  read(words: Words, at = 0): number {
    let value = ((words[at + this.#word] >>> this.#shift) & this.#ones) >>> 0
    for (let i = 1; i < this.#parts.length; i++) {
      const { word, ones, scale } = this.#parts[i]
      value += ((words[at + word] & ones) >>> 0) * scale
    }
    return value
  }

  /** Bits of `value` beyond the field's width are dropped; bits around the field are kept. */
  write(words: MutableWords, value: number, at = 0): void {
    for (const { word, shift, ones, scale } of this.#parts) {
      const part = Math.floor(value / scale) % 0x100000000
      const kept = words[at + word] & ~(ones << shift)
      words[at + word] = (kept | ((part & ones) << shift)) >>> 0
    }
  }

  /** The field's bits inside 32-bit word `word` of the structure, as an unsigned mask. */
  mask(word = 0): number {
    for (const part of this.#parts) {
      if (part.word === word) return (part.ones << part.shift) >>> 0
    }
    return 0
  }

  /** `value` in place, to be or-ed together; bits beyond the width are dropped. */
  of(value: number | bigint | boolean): bigint {
    return (BigInt(value) << BigInt(this.from)) & this.bits
  }

  /** The field out of a whole structure. */
  in(structure: bigint): number {
    return Number((structure & this.bits) >> BigInt(this.from))
  }
}

/** A structure: its fields by name, and what no field names. */
export interface Layout<Name extends string> {
  readonly words: number
  readonly field: Readonly<Record<Name, BitField>>
  /** Per word, the bits that no field names: they must be 0. */
  readonly reserved: Uint32Array
}

/** @throws RangeError for a field outside the structure, or two that overlap or share a name */
export function layout<const T extends readonly Field[]>(
  bits: number,
  table: T,
): Layout<T[number]['name']> {
  let named = 0n
  const field: Record<string, BitField> = {}
  for (const { name, from, to } of table) {
    const made = new BitField(name, from, to)
    if (to >= bits) throw new RangeError(`field ${name} ends beyond bit ${bits - 1}`)
    if ((named & made.bits) !== 0n) throw new RangeError(`field ${name} overlaps another one`)
    if (name in field) throw new RangeError(`two fields have the name ${name}`)
    named |= made.bits
    field[name] = made
  }
  const words = bits / 32
  const reserved = new Uint32Array(words)
  for (let word = 0; word < words; word++) {
    reserved[word] = Number((~named >> BigInt(word * 32)) & 0xffffffffn)
  }
  return { words, field: field as Readonly<Record<T[number]['name'], BitField>>, reserved }
}

/** A register of 4 or 8 bytes. Masks that are left out are 0: read-only, nothing to clear. */
export interface Register<Name extends string = string> {
  readonly name: Name
  /** In bytes from the start of the register window. */
  readonly offset: number
  readonly size: 4 | 8
  readonly reset?: bigint
  /** Bits that software may set and clear. */
  readonly writable?: bigint
  /** Bits that software clears by writing 1. */
  readonly write1clear?: bigint
  /** Bits that read as 0 whatever was written. */
  readonly writeOnly?: bigint
}

/**
 * Registers as software sees them: any size of access at any offset, in or out of the window.
 * Whatever is not in the table reads as 0 and ignores writes, and nothing ever throws.
 */
export class RegisterFile<Name extends string> {
  readonly #value: Uint8Array
  readonly #writable: Uint8Array
  readonly #write1clear: Uint8Array
  readonly #readable: Uint8Array
  readonly #words: Uint32Array
  readonly #clearable: { readonly word: number; readonly mask: number }[] = []
  readonly #registers: readonly Register<Name>[]
  readonly #byName = new Map<string, Register<Name>>()
  /** What an access of some size touches, by `offset * 16 + size`: filled as accesses come. */
  readonly #touched = new Map<number, readonly Register<Name>[]>()

  /** @throws RangeError for a table that overlaps itself or the window's end */
  constructor(table: readonly Register<Name>[], bytes: number) {
    this.#registers = [...table].sort((a, b) => a.offset - b.offset)
    const buffer = new ArrayBuffer(Math.ceil(bytes / 4) * 4)
    this.#value = new Uint8Array(buffer)
    this.#words = new Uint32Array(buffer)
    this.#writable = new Uint8Array(buffer.byteLength)
    this.#write1clear = new Uint8Array(buffer.byteLength)
    this.#readable = new Uint8Array(bytes)
    let end = 0
    for (const register of this.#registers) {
      if (register.offset < end) throw new RangeError(`register ${register.name} overlaps another`)
      end = register.offset + register.size
      if (end > bytes) throw new RangeError(`register ${register.name} is outside the window`)
      this.#byName.set(register.name, register)
      store(this.#writable, register, register.writable ?? 0n)
      store(this.#write1clear, register, register.write1clear ?? 0n)
      store(this.#readable, register, ~(register.writeOnly ?? 0n))
    }
    for (const [word, mask] of new Uint32Array(this.#write1clear.buffer).entries()) {
      if (mask !== 0) this.#clearable.push({ word, mask })
    }
    this.reset()
  }

  reset(): void {
    this.#value.fill(0)
    for (const register of this.#registers) store(this.#value, register, register.reset ?? 0n)
  }

  /** As software reads: write-only bits and bytes outside every register are 0. */
  read(offset: number, size: number): bigint {
    const low = BigInt(this.#readUpTo4(offset, Math.min(size, 4)))
    return size <= 4
      ? low
      : (BigInt(this.#readUpTo4(offset + 4, Math.min(size - 4, 4))) << 32n) | low
  }

  /** As software writes. @returns the registers that the access touched, in order of offset */
  write(offset: number, value: bigint, size: number): readonly Register<Name>[] {
    this.#writeUpTo4(offset, Number(BigInt.asUintN(32, value)), Math.min(size, 4))
    if (size > 4) this.#writeUpTo4(offset + 4, Number(BigInt.asUintN(32, value >> 32n)), size - 4)
    return this.#touches(offset, size)
  }

  /** As `write` of 4 bytes, in numbers. */
  writeWord(offset: number, value: number): readonly Register<Name>[] {
    this.#writeUpTo4(offset, value, 4)
    return this.#touches(offset, 4)
  }

  /** As `read` of 4 bytes at a multiple of 4, in numbers. */
  readWord(offset: number): number {
    return this.#readUpTo4(offset, 4)
  }

  /** Offsets of the 32-bit words in which software can change something. */
  writableWords(): readonly number[] {
    const masks = [this.#writable, this.#write1clear].map((mask) => new Uint32Array(mask.buffer))
    const words = Array.from(this.#words.keys())
    return words.filter((word) => masks.some((mask) => mask[word] !== 0)).map((word) => word * 4)
  }

  /** Whether a bit is set that software clears by writing a one. */
  get pending(): boolean {
    for (const { word, mask } of this.#clearable) if ((this.#words[word] & mask) !== 0) return true
    return false
  }

  /** The device's own view of a whole register. */
  get(name: Name): bigint {
    const { offset, size } = this.#find(name)
    const low = BigInt(this.#words[offset / 4])
    return size === 4 ? low : (BigInt(this.#words[offset / 4 + 1]) << 32n) | low
  }

  set(name: Name, value: bigint): void {
    store(this.#value, this.#find(name), value)
  }

  /** Where a register is in `words`: to be asked once by what runs often. */
  index(name: Name): number {
    return this.#find(name).offset / 4
  }

  /** The device's own view of all registers. */
  get words(): Uint32Array {
    return this.#words
  }

  /** One 32-bit word of a register. */
  word(name: Name, word: 0 | 1 = 0): number {
    return this.#words[this.#find(name).offset / 4 + word]
  }

  setWord(name: Name, value: number, word: 0 | 1 = 0): void {
    this.#words[this.#find(name).offset / 4 + word] = value
  }

  /** A field of a register of the same layout. */
  field(name: Name, field: BitField): number {
    return field.read(this.#words, this.#find(name).offset / 4)
  }

  setField(name: Name, field: BitField, value: number): void {
    field.write(this.#words, value, this.#find(name).offset / 4)
  }

  #readUpTo4(offset: number, size: number): number {
    let value = 0
    for (let i = size - 1; i >= 0; i--) {
      const at = offset + i
      const byte = at >= 0 && at < this.#value.length ? this.#value[at] & this.#readable[at] : 0
      value = (value << 8) | byte
    }
    return value >>> 0
  }

  #writeUpTo4(offset: number, value: number, size: number): void {
    for (let i = 0; i < Math.min(size, 4); i++) {
      const at = offset + i
      if (!(at >= 0 && at < this.#writable.length)) continue
      const byte = (value >>> (8 * i)) & 0xff
      const writable = this.#writable[at]
      const kept = (this.#value[at] & ~writable) | (byte & writable)
      this.#value[at] = kept & ~(this.#write1clear[at] & byte)
    }
  }

  #touches(offset: number, size: number): readonly Register<Name>[] {
    const key = offset * 16 + size
    let touched = this.#touched.get(key)
    if (touched !== undefined) return touched
    touched = this.#registers.filter((r) => r.offset < offset + size && offset < r.offset + r.size)
    // Offsets beyond the window, of which there is no end, are not worth remembering.
    if (offset >= 0 && offset < this.#value.length) this.#touched.set(key, touched)
    return touched
  }

  #find(name: Name): Register<Name> {
    const register = this.#byName.get(name)
    if (register === undefined) throw new RangeError(`no register ${name}`)
    return register
  }
}

function store(bytes: Uint8Array, register: Register, value: bigint): void {
  for (let i = 0; i < register.size; i++) {
    bytes[register.offset + i] = Number((value >> BigInt(8 * i)) & 0xffn)
  }
}

function partsOf(from: number, to: number): readonly Part[] {
  const parts: Part[] = []
  for (let bit = from; bit <= to; bit = (Math.floor(bit / 32) + 1) * 32) {
    const word = Math.floor(bit / 32)
    const bits = Math.min(to, word * 32 + 31) - bit + 1
    const ones = bits === 32 ? -1 : (1 << bits) - 1
    parts.push({ word, shift: bit % 32, ones, scale: 2 ** (bit - from) })
  }
  return parts
}

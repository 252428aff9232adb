/**
 * ACPI tables as bytes: the header that all system description tables share, its checksum, and
 * structures that are laid out by a table of slots.
 *
 * This is not an ACPI interpreter. It knows no AML, and it leaves open where a table is put and who
 * points at it.
 *
 * ACPI 6.5 5.2.6, System Description Table Header.
 */

/** A little-endian number in a structure. `offset` and `size` are bytes. */
export interface Slot {
  readonly name: string
  readonly offset: number
  readonly size: 1 | 2 | 4 | 8
}

/** What a structure holds: numbers, and bigints for slots of eight bytes. */
export type Values<Layout extends readonly Slot[]> = {
  readonly [Name in Layout[number]['name']]: Extract<
    Layout[number],
    { readonly name: Name }
  >['size'] extends 8
    ? bigint
    : number
}

/** One bit of a number of flags. */
export interface Flag {
  readonly name: string
  readonly bit: number
}

/** Who made a table (ACPI 6.5 table 5.4). Text is padded with spaces. */
export interface TableIdentity {
  /** At most 6 printable ASCII characters. */
  readonly oemId?: string
  /** At most 8 printable ASCII characters. */
  readonly oemTableId?: string
  /** 0 to 2^32-1. */
  readonly oemRevision?: number
  /** At most 4 printable ASCII characters. */
  readonly creatorId?: string
  /** 0 to 2^32-1. */
  readonly creatorRevision?: number
}

export interface AcpiTable {
  readonly signature: string
  readonly revision: number
  readonly identity: Required<TableIdentity>
  /** What follows the header; a view of the bytes that were parsed. */
  readonly body: Uint8Array
}

export const TABLE_HEADER_BYTES = 36

const HEADER = [
  { name: 'length', offset: 4, size: 4 },
  { name: 'revision', offset: 8, size: 1 },
  { name: 'checksum', offset: 9, size: 1 },
  { name: 'oemRevision', offset: 24, size: 4 },
  { name: 'creatorRevision', offset: 32, size: 4 },
] as const satisfies readonly Slot[]

const HEADER_TEXT = {
  signature: { offset: 0, size: 4 },
  oemId: { offset: 10, size: 6 },
  oemTableId: { offset: 16, size: 8 },
  creatorId: { offset: 28, size: 4 },
} as const

type TextName = keyof typeof HEADER_TEXT

const IDENTITY: Required<TableIdentity> = {
  oemId: 'VIOTLB',
  oemTableId: 'VHOSTIOT',
  oemRevision: 1,
  creatorId: 'VIOT',
  creatorRevision: 1,
}

/** What must be added to the bytes so that they sum up to 0 modulo 256. */
export function checksum(bytes: Uint8Array): number {
  let sum = 0
  for (const byte of bytes) sum += byte
  return -sum & 0xff
}

/**
 * A whole table: header with length and checksum, then `body`.
 * @throws TypeError for text that is not printable ASCII
 * @throws RangeError for text that is too long and numbers that do not fit
 */
export function buildTable(
  signature: string,
  revision: number,
  body: Uint8Array,
  identity: TableIdentity = {},
): Uint8Array {
  const { oemId, oemTableId, oemRevision, creatorId, creatorRevision } = {
    ...IDENTITY,
    ...identity,
  }
  const bytes = new Uint8Array(TABLE_HEADER_BYTES + body.length)
  if (signature.length !== 4) {
    throw new RangeError(`a table's signature has 4 characters: ${signature}`)
  }
  const text = { signature, oemId, oemTableId, creatorId }
  for (const name of Object.keys(HEADER_TEXT) as TextName[]) writeText(bytes, name, text[name])
  writeSlots(bytes, HEADER, {
    length: bytes.length,
    revision,
    checksum: 0,
    oemRevision,
    creatorRevision,
  })
  bytes.set(body, TABLE_HEADER_BYTES)
  bytes[9] = checksum(bytes)
  return bytes
}

/**
 * The table at the start of `bytes`; what follows its length is ignored.
 * @throws RangeError for bytes that are too short, and for a wrong checksum
 */
export function parseTable(bytes: Uint8Array): AcpiTable {
  if (bytes.length < TABLE_HEADER_BYTES) {
    throw new RangeError(`a table has at least ${TABLE_HEADER_BYTES} bytes: ${bytes.length}`)
  }
  const { length, revision, oemRevision, creatorRevision } = readSlots(bytes, HEADER)
  if (length < TABLE_HEADER_BYTES || length > bytes.length) {
    throw new RangeError(`the table says ${length} bytes, there are ${bytes.length}`)
  }
  const table = bytes.subarray(0, length)
  if (checksum(table) !== 0) throw new RangeError('the bytes of the table do not sum up to 0')
  return {
    signature: readText(table, 'signature'),
    revision,
    identity: {
      oemId: readText(table, 'oemId'),
      oemTableId: readText(table, 'oemTableId'),
      oemRevision,
      creatorId: readText(table, 'creatorId'),
      creatorRevision,
    },
    body: table.subarray(TABLE_HEADER_BYTES),
  }
}

/** @throws RangeError for a value that does not fit its slot, naming the slot */
export function writeSlots<const Layout extends readonly Slot[]>(
  bytes: Uint8Array,
  layout: Layout,
  values: Values<Layout>,
): void {
  const view = viewOf(bytes)
  const numbers = values as Readonly<Record<string, number | bigint>>
  for (const { name, offset, size } of layout) {
    const value = numbers[name]
    if (typeof value === 'number' && !Number.isSafeInteger(value)) {
      throw new RangeError(`${name} must be an integer: ${value}`)
    }
    const number = BigInt(value)
    if (number < 0n || number >> BigInt(8 * size) !== 0n) {
      throw new RangeError(`${name} must fit in ${size} bytes: ${value.toString()}`)
    }
    if (size === 1) view.setUint8(offset, Number(number))
    else if (size === 2) view.setUint16(offset, Number(number), true)
    else if (size === 4) view.setUint32(offset, Number(number), true)
    else view.setBigUint64(offset, number, true)
  }
}

/** `bytes` must be as long as the layout. @throws RangeError where they end before a slot does */
export function readSlots<const Layout extends readonly Slot[]>(
  bytes: Uint8Array,
  layout: Layout,
): Values<Layout> {
  const view = viewOf(bytes)
  const values: Record<string, number | bigint> = {}
  for (const { name, offset, size } of layout) {
    if (size === 1) values[name] = view.getUint8(offset)
    else if (size === 2) values[name] = view.getUint16(offset, true)
    else if (size === 4) values[name] = view.getUint32(offset, true)
    else values[name] = view.getBigUint64(offset, true)
  }
  return values as Values<Layout>
}

/** The number that has the bits of those flags that are true in `values`. */
export function writeFlags<const Flags extends readonly Flag[]>(
  flags: Flags,
  values: Readonly<Partial<Record<Flags[number]['name'], boolean>>>,
): number {
  const set = values as Readonly<Record<string, boolean | undefined>>
  return flags.reduce((number, { name, bit }) => number | (set[name] === true ? 1 << bit : 0), 0)
}

export function readFlags<const Flags extends readonly Flag[]>(
  flags: Flags,
  number: number,
): Record<Flags[number]['name'], boolean> {
  const entries = flags.map(({ name, bit }) => [name, ((number >> bit) & 1) === 1] as const)
  return Object.fromEntries(entries) as Record<Flags[number]['name'], boolean>
}

/** @throws TypeError for anything but printable ASCII (0x20 to 0x7e) */
export function asciiBytes(text: string, what: string): Uint8Array {
  const bytes = Uint8Array.from(text, (character) => {
    const code = character.codePointAt(0)!
    if (code < 0x20 || code > 0x7e) throw new TypeError(`${what} must be printable ASCII: ${text}`)
    return code
  })
  return bytes
}

function writeText(bytes: Uint8Array, name: TextName, text: string): void {
  const { offset, size } = HEADER_TEXT[name]
  const encoded = asciiBytes(text, name)
  if (encoded.length > size) throw new RangeError(`${name} has at most ${size} characters: ${text}`)
  bytes.fill(0x20, offset, offset + size)
  bytes.set(encoded, offset)
}

/** Without the padding, which is spaces here and zeros in tables of others. */
function readText(bytes: Uint8Array, name: TextName): string {
  const { offset, size } = HEADER_TEXT[name]
  return Buffer.from(bytes.subarray(offset, offset + size))
    .toString('latin1')
    .replace(/[ \0]+$/, '')
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
}

/**
 * VT-d's translation once more, from the specification (5.10), in BigInt, as slow and as obvious as can
 * be. It shares no code with the library: what both get wrong, both must have read wrong.
 *
 * Bits are written where they are used, with the section that names them, on purpose.
 */

export interface OracleOptions {
  readonly addressWidth: 39 | 48 | 57
  readonly hostAddressWidth: number
  /** 1, 2 or 3: 4K, 2M or 1G leaves. */
  readonly leafLevel: number
  readonly deviceTlb: boolean
  readonly passThrough: boolean
  readonly snoopControl: boolean
  readonly scalable: boolean
  readonly firstStage: boolean
  readonly secondStage: boolean
  readonly pasid: boolean
}

export interface OracleState {
  readonly enabled: boolean
  /** RTADDR as it was when SRTP was set. */
  readonly rtaddr: bigint
}

export interface OracleRequest {
  readonly source: number
  readonly ats: boolean
  readonly address: bigint
  readonly read: boolean
  readonly write: boolean
}

export interface Granted {
  readonly ok: true
  readonly first: bigint
  readonly last: bigint
  /** Where `first` goes. */
  readonly target: bigint
  readonly read: boolean
  readonly write: boolean
}

export interface Refused {
  readonly ok: false
  readonly code: number
  readonly faultProcessingDisabled: boolean
}

/** Reads 64 bits of guest memory, or undefined where none is. */
export type ReadQuad = (at: bigint) => bigint | undefined

const WINDOW_FIRST = 0xfee00000n
const WINDOW_LAST = 0xfeefffffn
const ALL = (1n << 64n) - 1n
const NOT_MEMORY = 0x100

class Refusal extends Error {
  constructor(readonly code: number) {
    super(`fault 0x${code.toString(16)}`)
  }
}

interface Leaf {
  readonly first: bigint
  readonly size: bigint
  readonly target: bigint
  readonly read: boolean
  readonly write: boolean
}

function bits(value: bigint, high: number, low: number): bigint {
  return (value >> BigInt(low)) & ((1n << BigInt(high - low + 1)) - 1n)
}

function bit(value: bigint, at: number): boolean {
  return bits(value, at, at) === 1n
}

export class VtdOracle {
  #fpd = false
  /** Entries whose accessed or dirty bit a granted request sets: address to bits. */
  marks = new Map<bigint, bigint>()

  constructor(
    private readonly options: OracleOptions,
    private readonly readQuad: ReadQuad,
  ) {}

  translate(state: OracleState, request: OracleRequest): Granted | Refused {
    this.#fpd = false
    this.marks = new Map()
    try {
      return this.#translate(state, request)
    } catch (error) {
      if (!(error instanceof Refusal)) throw error
      return { ok: false, code: error.code, faultProcessingDisabled: this.#fpd }
    }
  }

  #translate(state: OracleState, request: OracleRequest): Granted {
    const { address } = request
    if (address >= WINDOW_FIRST && address <= WINDOW_LAST) throw new Refusal(NOT_MEMORY)
    if (!state.enabled) return this.#granted(request, identity(ALL + 1n))
    const mode = bits(state.rtaddr, 11, 10)
    const root = state.rtaddr & ~0xfffn
    if (mode === 0n) return this.#legacy(root, request)
    if (mode === 1n && this.options.scalable) return this.#scalable(root, request)
    throw new Refusal(0x30)
  }

  // 9.1, 9.3
  #legacy(root: bigint, request: OracleRequest): Granted {
    const { source, address } = request
    const bus = BigInt(source >> 8)
    const devfn = BigInt(source & 255)
    const rootLow = this.#need(root + bus * 16n, 0x08)
    const rootHigh = this.#need(root + bus * 16n + 8n, 0x08)
    if (!bit(rootLow, 0)) throw new Refusal(0x01)
    if (bits(rootLow, 11, 1) !== 0n || this.#beyondHost(rootLow) || rootHigh !== 0n) {
      throw new Refusal(0x0a)
    }
    const table = rootLow & ~0xfffn
    const low = this.#need(table + devfn * 16n, 0x09)
    const high = this.#need(table + devfn * 16n + 8n, 0x09)
    this.#fpd = bit(low, 1)
    if (!bit(low, 0)) throw new Refusal(0x02)
    const type = Number(bits(low, 3, 2))
    if (bits(low, 11, 4) !== 0n || (type !== 2 && this.#beyondHost(low))) throw new Refusal(0x0b)
    if (bit(high, 7) || bits(high, 63, 24) !== 0n) throw new Refusal(0x0b)
    const levels = Number(bits(high, 2, 0)) + 2
    if (!this.#levelsSupported(levels)) throw new Refusal(0x03)
    if (type === 0 && request.ats) throw new Refusal(0x0d)
    if (type === 1 && !this.options.deviceTlb) throw new Refusal(0x03)
    if (type === 2 && !this.options.passThrough) throw new Refusal(0x03)
    if (type === 3) throw new Refusal(0x03)
    const tablesEnd = 1n << BigInt(this.#secondStageWidth(levels))
    const hostEnd = 1n << BigInt(this.options.hostAddressWidth)
    const end = type === 2 && hostEnd < tablesEnd ? hostEnd : tablesEnd
    if (address >= end) throw new Refusal(0x04)
    if (type === 2) return this.#granted(request, identity(end))
    const leaf = this.#secondStage(low & ~0xfffn, levels, address, request, {
      top: 0x03,
      next: 0x07,
      reserved: 0x0c,
      absent: undefined,
      write: 0x05,
      read: 0x06,
    })
    return this.#granted(request, leaf, 0x0e)
  }

  // 9.2, 9.4, 9.5, 9.6
  #scalable(root: bigint, request: OracleRequest): Granted {
    const { source, address } = request
    const device = BigInt((source >> 3) & 31)
    const half = device < 16n ? 0n : 8n
    const rootEntry = this.#need(root + BigInt(source >> 8) * 16n + half, 0x38)
    if (!bit(rootEntry, 0)) throw new Refusal(0x39)
    if (bits(rootEntry, 11, 1) !== 0n || this.#beyondHost(rootEntry)) throw new Refusal(0x3a)
    const contextAt = (rootEntry & ~0xfffn) + BigInt(source & 127) * 32n
    const context = [0n, 8n, 16n, 24n].map((offset) => this.#need(contextAt + offset, 0x40))
    this.#fpd = bit(context[0], 1)
    if (!bit(context[0], 0)) throw new Refusal(0x41)
    const reserved =
      bits(context[0], 8, 4) !== 0n ||
      this.#beyondHost(context[0]) ||
      (bit(context[0], 2) && !this.options.deviceTlb) ||
      (bit(context[0], 3) && !this.options.pasid) ||
      bits(context[1], 63, 20) !== 0n ||
      context[2] !== 0n ||
      context[3] !== 0n
    if (reserved) throw new Refusal(0x42)
    if (request.ats && !bit(context[0], 2)) throw new Refusal(0x44)
    const pasid = bits(context[1], 19, 0)
    const directoryEntries = 1n << (bits(context[0], 11, 9) + 7n)
    if (pasid / 64n >= directoryEntries) throw new Refusal(0x43)
    const directory = this.#need((context[0] & ~0xfffn) + (pasid / 64n) * 8n, 0x50)
    if (bit(directory, 1)) this.#fpd = true
    if (!bit(directory, 0)) throw new Refusal(0x51)
    if (bits(directory, 11, 2) !== 0n || this.#beyondHost(directory)) throw new Refusal(0x52)
    const entryAt = (directory & ~0xfffn) + (pasid % 64n) * 64n
    const entry = [0n, 8n, 16n, 24n, 32n, 40n, 48n, 56n].map((offset) =>
      this.#need(entryAt + offset, 0x58),
    )
    if (bit(entry[0], 1)) this.#fpd = true
    if (!bit(entry[0], 0)) throw new Refusal(0x59)
    const entryReserved =
      bit(entry[0], 5) ||
      bits(entry[0], 11, 9) !== 0n ||
      this.#beyondHost(entry[0]) ||
      (!this.options.secondStage && (bits(entry[0], 4, 2) !== 0n || entry[0] >> 12n !== 0n)) ||
      bits(entry[1], 22, 16) !== 0n ||
      (bit(entry[1], 24) && !this.options.snoopControl) ||
      bits(entry[1], 63, 25) !== 0n ||
      bit(entry[2], 1) ||
      bits(entry[2], 11, 7) !== 0n ||
      this.#beyondHost(entry[2]) ||
      (!this.options.firstStage && (bits(entry[2], 4, 2) !== 0n || entry[2] >> 12n !== 0n)) ||
      entry.slice(3).some((quad) => quad !== 0n)
    if (entryReserved) throw new Refusal(0x5a)
    const type = Number(bits(entry[0], 8, 6))
    const secondLevels = Number(bits(entry[0], 4, 2)) + 2
    const firstLevels = Number(bits(entry[2], 3, 2)) + 4
    const second = this.options.secondStage && this.#levelsSupported(secondLevels)
    const first =
      this.options.firstStage &&
      (firstLevels === 4 || (firstLevels === 5 && this.options.addressWidth === 57))
    const supported =
      (type === 1 && first) ||
      (type === 2 && second) ||
      (type === 3 && first && second) ||
      (type === 4 && this.options.passThrough)
    if (!supported) throw new Refusal(0x5b)
    if (type === 4) {
      const end = 1n << BigInt(this.options.hostAddressWidth)
      if (address >= end) throw new Refusal(0x83)
      return this.#granted(request, identity(end))
    }
    const secondStage = (at: bigint, wants: { read: boolean; write: boolean }): Leaf =>
      this.#secondStage(entry[0] & ~0xfffn, secondLevels, at, wants, {
        top: 0x7b,
        next: 0x78,
        reserved: 0x7a,
        absent: 0x79,
        write: 0x85,
        read: 0x86,
      })
    const secondEnd = 1n << BigInt(this.#secondStageWidth(secondLevels))
    if (type === 2) {
      if (address >= secondEnd) throw new Refusal(0x84)
      return this.#granted(request, secondStage(address, request), 0x87)
    }
    const leaf = this.#firstStage(
      entry[2] & ~0xfffn,
      firstLevels,
      request,
      type === 3 ? { translate: secondStage, end: secondEnd } : undefined,
    )
    return this.#granted(request, leaf, 0x87)
  }

  // 3.7, 9.8
  #secondStage(
    root: bigint,
    levels: number,
    address: bigint,
    wants: { readonly read: boolean; readonly write: boolean },
    codes: {
      readonly top: number
      readonly next: number
      readonly reserved: number
      readonly absent: number | undefined
      readonly write: number
      readonly read: number
    },
  ): Leaf {
    let table = root
    let read = true
    let write = true
    for (let level = levels; level >= 1; level--) {
      const shift = 12 + 9 * (level - 1)
      const index = bits(address, shift + 8, shift)
      const entry = this.#need(table + index * 8n, level === levels ? codes.top : codes.next)
      read &&= bit(entry, 0)
      write &&= bit(entry, 1)
      const refused = (wants.read && !read) || (wants.write && !write) || (!read && !write)
      if (codes.absent !== undefined && !read && !write) {
        throw new Refusal(codes.absent)
      }
      if (wants.write && !write) throw new Refusal(codes.write)
      if (refused) throw new Refusal(codes.read)
      const large = level > 1 && bit(entry, 7)
      if (large && level > this.options.leafLevel) throw new Refusal(codes.reserved)
      const leaf = level === 1 || large
      const snoopAllowed = leaf && this.options.snoopControl
      if (bit(entry, 11) && !snoopAllowed) throw new Refusal(codes.reserved)
      if (bit(entry, 62)) throw new Refusal(codes.reserved)
      const frame = entry & 0x000ffffffffff000n
      if (frame >> BigInt(this.options.hostAddressWidth) !== 0n) throw new Refusal(codes.reserved)
      const size = 1n << BigInt(shift)
      if (leaf) {
        if (frame % size !== 0n) throw new Refusal(codes.reserved)
        return { first: address - (address % size), size, target: frame, read, write }
      }
      table = frame
    }
    throw new Error('a walk ends at level 1')
  }

  // 3.6, 3.8, 9.7
  #firstStage(
    root: bigint,
    levels: number,
    request: OracleRequest,
    nested:
      | {
          readonly translate: (at: bigint, wants: { read: boolean; write: boolean }) => Leaf
          readonly end: bigint
        }
      | undefined,
  ): Leaf {
    const { address } = request
    const width = 12 + 9 * levels
    const upper = address >> BigInt(width - 1)
    if (upper !== 0n && upper !== (1n << BigInt(64 - width + 1)) - 1n) throw new Refusal(0x80)
    const marks: { at: bigint; entry: bigint; writable: boolean; leaf: boolean }[] = []
    let table = root
    let write = true
    for (let level = levels; level >= 1; level--) {
      const top = level === levels
      let writable = true
      let where = table
      if (nested !== undefined) {
        if (table >= nested.end) throw new Refusal(top ? 0x5b : 0x74)
        try {
          const leaf = nested.translate(table, { read: true, write: false })
          where = leaf.target + (table - leaf.first)
          writable = leaf.write
        } catch (error) {
          if (!(error instanceof Refusal)) throw error
          if (error.code === 0x86) throw new Refusal(top ? 0x75 : 0x76)
          throw error
        }
      }
      const shift = 12 + 9 * (level - 1)
      const at = where + bits(address, shift + 8, shift) * 8n
      const entry = this.#need(at, top ? 0x73 : 0x70)
      if (!bit(entry, 0)) throw new Refusal(0x71)
      if (!bit(entry, 2)) throw new Refusal(0x81)
      write &&= bit(entry, 1)
      if (request.write && !write) throw new Refusal(0x85)
      const large = level > 1 && bit(entry, 7)
      const mayBeLarge = level === 2 || (level === 3 && this.options.leafLevel === 3)
      if (this.#beyondHost(entry & 0x000fffffffffffffn)) {
        throw new Refusal(0x72)
      }
      if (large && !mayBeLarge) throw new Refusal(0x72)
      let frame = entry & 0x000ffffffffff000n
      const leaf = level === 1 || large
      marks.push({ at, entry, writable, leaf })
      if (!leaf) {
        table = frame
        continue
      }
      const size = 1n << BigInt(shift)
      if (large) frame &= ~0x1000n
      if (frame % size !== 0n) throw new Refusal(0x72)
      let found: Leaf = {
        first: address - (address % size),
        size,
        target: frame,
        read: true,
        write,
      }
      if (nested !== undefined) found = this.#under(found, request, nested)
      this.#mark(marks, found.write)
      return found
    }
    throw new Error('a walk ends at level 1')
  }

  /** The part of a first-stage leaf that one second-stage leaf carries. */
  #under(
    leaf: Leaf,
    request: OracleRequest,
    nested: {
      readonly translate: (at: bigint, wants: { read: boolean; write: boolean }) => Leaf
      readonly end: bigint
    },
  ): Leaf {
    const middle = leaf.target + (request.address - leaf.first)
    if (middle >= nested.end) throw new Refusal(0x74)
    const second = nested.translate(middle, request)
    const read = leaf.read && second.read
    const write = leaf.write && second.write
    if ((request.read && !read) || (!read && !write)) throw new Refusal(0x86)
    const below = [request.address - leaf.first, middle - second.first]
    const above = [leaf.first + leaf.size - request.address, second.first + second.size - middle]
    const down = below[0] < below[1] ? below[0] : below[1]
    const up = above[0] < above[1] ? above[0] : above[1]
    return {
      first: request.address - down,
      size: down + up,
      target: second.target + (middle - down - second.first),
      read,
      write,
    }
  }

  #mark(
    entries: readonly { at: bigint; entry: bigint; writable: boolean; leaf: boolean }[],
    write: boolean,
  ): void {
    for (const { at, entry, writable, leaf } of entries) {
      const wanted = 0x20n | (leaf && write ? 0x40n : 0n)
      if ((entry & wanted) === wanted) continue
      if (!writable) throw new Refusal(0x77)
      this.marks.set(at, (this.marks.get(at) ?? 0n) | wanted)
    }
  }

  /** Cuts the interrupt window out, on the side of the iova and on the side of the target (3.14). */
  #granted({ address }: OracleRequest, leaf: Leaf, outputCode?: number): Granted {
    const target = leaf.target + (address - leaf.first)
    if (outputCode !== undefined && target >= WINDOW_FIRST && target <= WINDOW_LAST) {
      throw new Refusal(outputCode)
    }
    let first = leaf.first
    let last = leaf.first + leaf.size - 1n
    const holes = [[WINDOW_FIRST, WINDOW_LAST]]
    if (outputCode !== undefined) {
      const shift = leaf.first - leaf.target
      holes.push([WINDOW_FIRST + shift, WINDOW_LAST + shift])
    }
    for (const [holeFirst, holeLast] of holes) {
      if (holeFirst > address && holeFirst <= last) last = holeFirst - 1n
      if (holeLast < address && holeLast >= first) first = holeLast + 1n
    }
    const { read, write } = leaf
    return { ok: true, first, last, target: leaf.target + (first - leaf.first), read, write }
  }

  #need(at: bigint, code: number): bigint {
    const value = this.readQuad(at)
    if (value === undefined) throw new Refusal(code)
    return value
  }

  /** Address bits of an entry, from the host's width up to bit 63. */
  #beyondHost(entry: bigint): boolean {
    return entry >> BigInt(this.options.hostAddressWidth) !== 0n
  }

  #levelsSupported(levels: number): boolean {
    return levels >= 3 && 12 + 9 * levels <= this.options.addressWidth
  }

  #secondStageWidth(levels: number): number {
    return Math.min(12 + 9 * levels, this.options.addressWidth)
  }
}

function identity(end: bigint): Leaf {
  return { first: 0n, size: end, target: 0n, read: true, write: true }
}

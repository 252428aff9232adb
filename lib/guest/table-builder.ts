/**
 * Second-stage paging tables as a guest keeps them (VT-d 4.1, 3.7): map and unmap of 4 KiB, 2 MiB
 * and 1 GiB leaves in guest memory, in plain numbers.
 *
 * It writes tables and nothing else. Telling the IOMMU that an entry is gone is the caller's
 * (`intel-iommu-driver.ts`), and until then a device may go on using it.
 */
import type { InspectOptions } from 'node:util'
import { PAGE_SIZE } from '../address'
import type { AccessBits } from '../address'
import { InvalidState } from '../errors'
import { hex, shown, summary } from '../inspect'
import type { ByteSpace, RegionViews } from '../virtio/dma-view'
import type { PageAllocator } from './page-allocator'
import { SECOND_STAGE_ENTRY } from './intel-formats'

export type Levels = 3 | 4 | 5
/** 1: 4 KiB, 2: 2 MiB, 3: 1 GiB. */
export type LeafLevel = 1 | 2 | 3

const { R, W, PS, ADDR } = SECOND_STAGE_ENTRY.field
const PRESENT = R.mask() | W.mask()
const LARGE = PS.mask()
const ADDRESS_LOW = ADDR.mask(0)
const ADDRESS_HIGH = ADDR.mask(1)
const ENTRIES = 512
const WORDS_PER_TABLE = PAGE_SIZE / 4
/** 4 KiB pages behind one entry of a level. */
const SPAN = [0, 1, 2 ** 9, 2 ** 18, 2 ** 27, 2 ** 36] as const
const PAGES_PER_HIGH_WORD = 2 ** 20

/** A table in memory: its words, and the index of the first. */
class Table {
  words: Uint32Array = new Uint32Array(0)
  base = 0
}

export class TableBuilder {
  readonly levels: Levels
  /** First page that the tables can't name. */
  readonly endPage: number
  /** gpa page of the top table. */
  readonly rootPage: number
  readonly #memory: ByteSpace
  readonly #pages: PageAllocator
  readonly #found = new Table()
  /** The last level-1 table used, and which 2 MiB of the address space it is for. */
  readonly #last = new Table()
  #lastSpan = -1
  #closed = false

  constructor(memory: ByteSpace, pages: PageAllocator, levels: Levels) {
    this.levels = levels
    this.endPage = SPAN[levels] * ENTRIES
    this.#memory = memory
    this.#pages = pages
    this.rootPage = this.#newTable()
  }

  /**
   * Maps one page with a 4 KiB leaf.
   * @throws InvalidState ERR_IN_USE when the page is mapped, ERR_EXHAUSTED without memory for a
   *   table
   */
  mapPage(iovaPage: number, gpaPage: number, access: AccessBits): void {
    const table = this.#leafTable(iovaPage, true)
    const word = table.base + 2 * (iovaPage % ENTRIES)
    if ((table.words[word] & PRESENT) !== 0) throw inUse(iovaPage)
    write(table.words, word, gpaPage, access)
  }

  /**
   * Maps a run of pages with the largest leaves that the alignment of both sides allows. Tables
   * with nothing in them that are in the way are given back, as by `unmapPages` with `freeTables`.
   * @param largest level of the largest leaf to use; default 1 (4 KiB)
   * @throws RangeError for pages beyond the tables' reach; InvalidState as `mapPage`
   */
  mapPages(
    iovaPage: number,
    gpaPage: number,
    count: number,
    access: AccessBits,
    largest: LeafLevel = 1,
  ): void {
    this.#check(iovaPage, count)
    for (let done = 0; done < count;) {
      const level = leafLevel(iovaPage + done, gpaPage + done, count - done, largest)
      if (level === 1) this.mapPage(iovaPage + done, gpaPage + done, access)
      else this.#mapLarge(iovaPage + done, gpaPage + done, level, access)
      done += SPAN[level]
    }
  }

  /** @returns whether the page was mapped by a 4 KiB leaf, and no longer is */
  unmapPage(iovaPage: number): boolean {
    const table = this.#leafTable(iovaPage, false)
    if (table.words.length === 0) return false
    return erase(table.words, table.base + 2 * (iovaPage % ENTRIES))
  }

  /**
   * Unmaps whatever is mapped of a run.
   * @param freeTables give back tables that the run covers as a whole; the caller must invalidate
   *   before they are used again, and not with the leaf-only hint (IH)
   * @returns how many pages were mapped
   * @throws RangeError where the run would cut a 2 MiB or 1 GiB leaf
   */
  unmapPages(iovaPage: number, count: number, freeTables = false): number {
    this.#check(iovaPage, count)
    if (count === 1 && !freeTables) {
      if (this.unmapPage(iovaPage)) return 1
    }
    return this.#unmapIn(this.rootPage, this.levels, 0, iovaPage, iovaPage + count - 1, freeTables)
  }

  /** Gives every table back. Nothing may use them any more. */
  close(): void {
    if (this.#closed) return
    this.#closed = true
    this.#lastSpan = -1
    this.#freeTable(this.rootPage, this.levels)
  }

  [shown](depth: number, options: InspectOptions): string {
    const fields = {
      levels: this.levels,
      rootPage: hex(this.rootPage),
      closed: this.#closed || undefined,
    }
    return summary('TableBuilder', fields, depth, options)
  }

  #check(iovaPage: number, count: number): void {
    if (!(count > 0) || iovaPage < 0 || iovaPage + count > this.endPage) {
      throw new RangeError(
        `${this.levels} levels end at page ${this.endPage}: ${iovaPage} + ${count}`,
      )
    }
  }

  #mapLarge(iovaPage: number, gpaPage: number, level: LeafLevel, access: AccessBits): void {
    const table = this.#table(iovaPage, level, true)
    const word = table.base + 2 * (Math.floor(iovaPage / SPAN[level]) % ENTRIES)
    if ((table.words[word] & PRESENT) !== 0) {
      if ((table.words[word] & LARGE) !== 0 || !this.#dropEmpty(table, word, level - 1)) {
        throw inUse(iovaPage)
      }
    }
    write(table.words, word, gpaPage, access | LARGE)
  }

  /** The level-1 table of a page; without `create`, one of no words where there is none. */
  #leafTable(iovaPage: number, create: boolean): Table {
    const span = Math.floor(iovaPage / ENTRIES)
    if (span === this.#lastSpan) return this.#last
    if (!(iovaPage >= 0 && iovaPage < this.endPage)) this.#check(iovaPage, 1)
    const found = this.#table(iovaPage, 1, create)
    if (found.words.length === 0) return found
    this.#last.words = found.words
    this.#last.base = found.base
    this.#lastSpan = span
    return this.#last
  }

  #table(iovaPage: number, level: number, create: boolean): Table {
    const found = this.#found
    this.#enter(this.rootPage, found)
    for (let at: number = this.levels; at > level; at--) {
      const word = found.base + 2 * (Math.floor(iovaPage / SPAN[at]) % ENTRIES)
      const low = found.words[word]
      if ((low & PRESENT) === 0) {
        if (!create) return none(found)
        const page = this.#newTable()
        write(found.words, word, page, PRESENT)
        this.#enter(page, found)
      } else if ((low & LARGE) !== 0) {
        if (create) throw inUse(iovaPage)
        return none(found)
      } else {
        this.#enter(pageIn(low, found.words[word + 1]), found)
      }
    }
    return found
  }

  #unmapIn(
    tablePage: number,
    level: number,
    start: number,
    first: number,
    last: number,
    freeTables: boolean,
  ): number {
    const { words, base } = this.#enter(tablePage, new Table())
    const span = SPAN[level]
    let unmapped = 0
    const from = Math.max(0, Math.floor((first - start) / span))
    const to = Math.min(ENTRIES - 1, Math.floor((last - start) / span))
    for (let index = from; index <= to; index++) {
      const word = base + 2 * index
      const low = words[word]
      if ((low & PRESENT) === 0) continue
      const begins = start + index * span
      const whole = begins >= first && begins + span - 1 <= last
      if (level === 1 || (low & LARGE) !== 0) {
        if (!whole) throw new RangeError(`a leaf of ${span} pages at ${begins} would be cut`)
        erase(words, word)
        unmapped += span
        continue
      }
      const child = pageIn(low, words[word + 1])
      unmapped += this.#unmapIn(child, level - 1, begins, first, last, freeTables)
      if (!freeTables || !whole) continue
      erase(words, word)
      this.#release(child)
    }
    return unmapped
  }

  /** Takes the table behind an entry away if nothing in it is present. */
  #dropEmpty(parent: Table, word: number, level: number): boolean {
    const page = pageIn(parent.words[word], parent.words[word + 1])
    const child = this.#enter(page, new Table())
    const { words, base } = child
    for (let at = 0; at < ENTRIES; at++) {
      if ((words[base + 2 * at] & PRESENT) === 0) continue
      if (level === 1 || (words[base + 2 * at] & LARGE) !== 0) return false
      if (!this.#dropEmpty(child, base + 2 * at, level - 1)) return false
    }
    erase(parent.words, word)
    this.#release(page)
    return true
  }

  #freeTable(page: number, level: number): void {
    const { words, base } = this.#enter(page, new Table())
    for (let at = 0; level > 1 && at < ENTRIES; at++) {
      const low = words[base + 2 * at]
      if ((low & PRESENT) === 0 || (low & LARGE) !== 0) continue
      this.#freeTable(pageIn(low, words[base + 2 * at + 1]), level - 1)
    }
    this.#release(page)
  }

  #release(page: number): void {
    this.#lastSpan = -1
    this.#pages.free(page)
  }

  #newTable(): number {
    const page = this.#pages.allocate()
    const { words, base } = this.#enter(page, new Table())
    words.fill(0, base, base + WORDS_PER_TABLE)
    return page
  }

  #enter(page: number, table: Table): Table {
    const region: RegionViews | undefined = this.#memory.find(page * PAGE_SIZE)
    if (region === undefined) throw new RangeError(`table page ${page} is not memory`)
    table.words = region.u32
    table.base = (page * PAGE_SIZE - region.start) / 4
    return table
  }
}

/** The largest leaf that fits at both addresses and in what is left. */
function leafLevel(
  iovaPage: number,
  gpaPage: number,
  count: number,
  largest: LeafLevel,
): LeafLevel {
  for (const level of [3, 2] as const) {
    const span = SPAN[level]
    if (level > largest || count < span) continue
    if (iovaPage % span === 0 && gpaPage % span === 0) return level
  }
  return 1
}

const NO_WORDS = new Uint32Array(0)

function none(table: Table): Table {
  table.words = NO_WORDS
  return table
}

/** The half with the present bits last, so that a walker never sees half an address. */
function write(words: Uint32Array, word: number, page: number, bits: number): void {
  const high = Math.floor(page / PAGES_PER_HIGH_WORD)
  words[word + 1] = high
  Atomics.store(words, word, ((page - high * PAGES_PER_HIGH_WORD) * PAGE_SIZE) | bits)
}

/** The half with the present bits first. @returns whether the entry was present */
function erase(words: Uint32Array, word: number): boolean {
  if ((words[word] & PRESENT) === 0) return false
  Atomics.store(words, word, 0)
  words[word + 1] = 0
  return true
}

function pageIn(low: number, high: number): number {
  return (high & ADDRESS_HIGH) * PAGES_PER_HIGH_WORD + ((low & ADDRESS_LOW) >>> 12)
}

function inUse(iovaPage: number): InvalidState {
  return new InvalidState('ERR_IN_USE', `iova page 0x${iovaPage.toString(16)} is mapped already`)
}

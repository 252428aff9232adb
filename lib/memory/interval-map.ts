/**
 * Page ranges that never overlap, found by page, kept in insertion order too.
 *
 * It exists for tables of a few thousand ranges that change with every packet: one sorted array of
 * slot numbers over flat columns, so that nothing is allocated per operation and a removal of
 * neighbours is one move. It holds no values; a caller keeps columns of its own, indexed by slot.
 * It is not a model of the kernel's interval tree, which allows overlaps (`iotlb/shadow.ts`).
 */

const NONE = -1
/** Below this many elements a loop moves them faster than a call of the runtime does. */
const SHORT_MOVE = 48

export class IntervalMap {
  #first: Float64Array
  #last: Float64Array
  /** Slots in the order of their pages; the first `#size` are in use. */
  #sorted: Int32Array
  /** Links in the order of insertion; `#newer` also links the free slots. */
  #older: Int32Array
  #newer: Int32Array
  #free = 0
  #oldest = NONE
  #newest = NONE
  #size = 0
  /** The last answer of `position`: one operation follows another at the same place. */
  #hint = 0
  /** One number, kept in an array because a field would be boxed at each write. */
  readonly #pages = new Float64Array(1)

  /** @param capacity slots to begin with; doubled when they are used up */
  constructor(capacity: number) {
    if (!Number.isInteger(capacity) || capacity < 1) {
      throw new RangeError(`a map's capacity is a positive integer: ${capacity}`)
    }
    this.#first = new Float64Array(capacity)
    this.#last = new Float64Array(capacity)
    this.#sorted = new Int32Array(capacity)
    this.#older = new Int32Array(capacity)
    this.#newer = new Int32Array(capacity)
    this.#linkFree(0)
  }

  /** How many ranges there are. */
  get size(): number {
    return this.#size
  }

  /** How many pages they cover. */
  get pages(): number {
    return this.#pages[0]
  }

  /** Slots are below this; it grows. */
  get capacity(): number {
    return this.#first.length
  }

  /** The slot inserted first among those that are left, or -1. */
  get oldest(): number {
    return this.#oldest
  }

  /** The slot inserted next after `slot`, or -1. */
  newerThan(slot: number): number {
    return this.#newer[slot]
  }

  firstPage(slot: number): number {
    return this.#first[slot]
  }

  lastPage(slot: number): number {
    return this.#last[slot]
  }

  /** The slot of the range that holds a page, or -1. */
  find(page: number): number {
    const position = this.position(page)
    if (position === this.#size) return NONE
    const slot = this.#sorted[position]
    return this.#first[slot] <= page ? slot : NONE
  }

  /** Whether any range has a page of `[firstPage, lastPage]`. */
  touches(firstPage: number, lastPage: number): boolean {
    const position = this.position(firstPage)
    return position < this.#size && this.#first[this.#sorted[position]] <= lastPage
  }

  /**
   * Where the first range that ends at or after a page stands in the order of pages: the range
   * that holds it, or the next one above. `size` when there is none.
   */
  position(page: number): number {
    const last = this.#last
    const sorted = this.#sorted
    const size = this.#size
    const hint = this.#hint
    if (hint <= size && (hint === size || last[sorted[hint]] >= page)) {
      if (hint === 0 || last[sorted[hint - 1]] < page) return hint
    }
    let low = 0
    let high = size
    while (low < high) {
      const middle = (low + high) >>> 1
      if (last[sorted[middle]] < page) low = middle + 1
      else high = middle
    }
    this.#hint = low
    return low
  }

  /** The slot at a position in the order of pages, or -1 past the end. */
  at(position: number): number {
    return position >= 0 && position < this.#size ? this.#sorted[position] : NONE
  }

  /**
   * @returns the slot of the new range, or -1 when it touches a range that is there
   * @throws RangeError when the range is empty
   */
  insert(firstPage: number, lastPage: number): number {
    if (!(firstPage <= lastPage)) {
      throw new RangeError(`a range ends at or after its start: ${firstPage} to ${lastPage}`)
    }
    const position = this.position(firstPage)
    const size = this.#size
    if (position < size && this.#first[this.#sorted[position]] <= lastPage) return NONE
    if (this.#free === NONE) this.#grow()
    const slot = this.#free
    this.#free = this.#newer[slot]
    this.#first[slot] = firstPage
    this.#last[slot] = lastPage
    this.#open(position)
    this.#sorted[position] = slot
    this.#older[slot] = this.#newest
    this.#newer[slot] = NONE
    if (this.#newest === NONE) this.#oldest = slot
    else this.#newer[this.#newest] = slot
    this.#newest = slot
    this.#pages[0] += lastPage - firstPage + 1
    return slot
  }

  /** Takes out the range in a slot that is in use. */
  remove(slot: number): void {
    const position = this.position(this.#first[slot])
    this.#release(slot)
    this.#closeUp(position, position + 1)
  }

  /** Takes out every range with a page of `[firstPage, lastPage]`, whole. @returns how many */
  removeTouching(firstPage: number, lastPage: number): number {
    const from = this.position(firstPage)
    const size = this.#size
    let to = from
    while (to < size && this.#first[this.#sorted[to]] <= lastPage) {
      this.#release(this.#sorted[to])
      to++
    }
    if (to > from) this.#closeUp(from, to)
    return to - from
  }

  clear(): void {
    this.#size = 0
    this.#pages[0] = 0
    this.#oldest = NONE
    this.#newest = NONE
    this.#linkFree(0)
  }

  /** Makes room at a position. */
  #open(position: number): void {
    const sorted = this.#sorted
    const size = this.#size++
    if (size - position > SHORT_MOVE) sorted.copyWithin(position + 1, position, size)
    else for (let i = size; i > position; i--) sorted[i] = sorted[i - 1]
  }

  /** Closes the gap of the positions `from` to `to - 1`. */
  #closeUp(from: number, to: number): void {
    const sorted = this.#sorted
    const size = this.#size
    this.#size = size - (to - from)
    if (size - to > SHORT_MOVE) sorted.copyWithin(from, to, size)
    else for (let i = to; i < size; i++) sorted[from + i - to] = sorted[i]
  }

  #release(slot: number): void {
    const older = this.#older[slot]
    const newer = this.#newer[slot]
    if (older === NONE) this.#oldest = newer
    else this.#newer[older] = newer
    if (newer === NONE) this.#newest = older
    else this.#older[newer] = older
    this.#newer[slot] = this.#free
    this.#free = slot
    this.#pages[0] -= this.#last[slot] - this.#first[slot] + 1
  }

  #linkFree(from: number): void {
    const capacity = this.#newer.length
    for (let slot = from; slot < capacity; slot++) this.#newer[slot] = slot + 1
    this.#newer[capacity - 1] = NONE
    this.#free = from
  }

  #grow(): void {
    const used = this.#first.length
    const capacity = used * 2
    this.#first = widened(this.#first, new Float64Array(capacity))
    this.#last = widened(this.#last, new Float64Array(capacity))
    this.#sorted = widened(this.#sorted, new Int32Array(capacity))
    this.#older = widened(this.#older, new Int32Array(capacity))
    this.#newer = widened(this.#newer, new Int32Array(capacity))
    this.#linkFree(used)
  }
}

/** The old column in the longer new one: for those who keep columns beside the map. */
export function widened<T extends Float64Array | Int32Array | Uint8Array>(from: T, to: T): T {
  to.set(from)
  return to
}

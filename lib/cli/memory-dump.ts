/**
 * Guest memory that was written to files, for those who read tables in it: QEMU's `pmemsave`, a
 * crash dump's raw part, a copy of one's own.
 *
 * Pages are read when they are asked for, into copies, so that a dump may be larger than this
 * process's memory and is never changed.
 */
import { closeSync, fstatSync, openSync, readSync } from 'node:fs'
import { PAGE_SIZE } from '../address'
import type { TableMemory, TableRegion } from '../iommu/table-memory'

export interface DumpPart {
  readonly path: string
  /** Guest-physical address of the file's first byte, page aligned. */
  readonly at: number
}

interface OpenPart {
  readonly fd: number
  readonly start: number
  readonly end: number
}

export class MemoryDump implements TableMemory, Disposable {
  readonly #parts: OpenPart[] = []
  readonly #pages = new Map<number, TableRegion>()

  /**
   * @throws RangeError for a part that is not page aligned, holds no whole page or overlaps another
   * @throws the host's errors for a file that cannot be read
   */
  constructor(parts: readonly DumpPart[]) {
    try {
      for (const part of parts) this.#open(part)
    } catch (error) {
      this.close()
      throw error
    }
  }

  find(at: number): TableRegion | undefined {
    const start = at - (at % PAGE_SIZE)
    const known = this.#pages.get(start)
    if (known !== undefined) return known
    const part = this.#parts.find((one) => start >= one.start && start + PAGE_SIZE <= one.end)
    if (part === undefined) return undefined
    const bytes = new Uint8Array(PAGE_SIZE)
    for (let done = 0; done < PAGE_SIZE;) {
      const read = readSync(part.fd, bytes, done, PAGE_SIZE - done, start - part.start + done)
      if (read === 0) return undefined
      done += read
    }
    const page = { start, end: start + PAGE_SIZE, u32: new Uint32Array(bytes.buffer) }
    this.#pages.set(start, page)
    return page
  }

  close(): void {
    for (const { fd } of this.#parts.splice(0)) closeSync(fd)
  }

  [Symbol.dispose](): void {
    this.close()
  }

  #open({ path, at }: DumpPart): void {
    if (at % PAGE_SIZE !== 0) throw new RangeError(`${path}: no page starts at ${hex(at)}`)
    const fd = openSync(path, 'r')
    // Entered at once, so that whatever is wrong with it, it is closed.
    const end = at + fstatSync(fd).size
    const clash = this.#parts.find((one) => at < one.end && one.start < end)
    this.#parts.push({ fd, start: at, end })
    if (end - at < PAGE_SIZE) throw new RangeError(`${path}: less than a page`)
    if (clash !== undefined) throw new RangeError(`${path}: overlaps another file at ${hex(at)}`)
  }
}

function hex(value: number): string {
  return `0x${value.toString(16)}`
}

/**
 * Writes the archive that Linux unpacks as its first root file system ("newc", described in
 * Documentation/driver-api/early-userspace/buffer-format.rst). It is not a general cpio: owners are
 * root, times are zero, so the same entries always give the same bytes.
 */

export interface CpioFile {
  readonly type: 'file'
  readonly path: string
  readonly content: Uint8Array
  /** Permission bits; 0o644 if left out. */
  readonly mode?: number
}

export interface CpioDirectory {
  readonly type: 'directory'
  readonly path: string
}

export interface CpioLink {
  readonly type: 'symlink'
  readonly path: string
  readonly target: string
}

export type CpioEntry = CpioFile | CpioDirectory | CpioLink

const MAGIC = '070701'
const TRAILER = 'TRAILER!!!'
const KIND = { directory: 0o040755, file: 0o100000, symlink: 0o120777 } as const

/** The archive's bytes in pieces. Entries come out in the order given: parents go first. */
export function* cpioPieces(entries: Iterable<CpioEntry>): Generator<Uint8Array, void, undefined> {
  let inode = 1
  for (const entry of entries) {
    if (entry.path === '' || entry.path.startsWith('/')) {
      throw new RangeError(`path '${entry.path}' is not relative to the root`)
    }
    const content = contentOf(entry)
    yield header(inode++, modeOf(entry), entry.path, content.length)
    yield content
    yield padding(content.length)
  }
  yield header(0, 0, TRAILER, 0)
}

/** The archive in one buffer. */
export function cpioArchive(entries: Iterable<CpioEntry>): Buffer {
  return Buffer.concat([...cpioPieces(entries)])
}

function contentOf(entry: CpioEntry): Uint8Array {
  switch (entry.type) {
    case 'file':
      return entry.content
    case 'symlink':
      return Buffer.from(entry.target)
    case 'directory':
      return new Uint8Array(0)
  }
}

function modeOf(entry: CpioEntry): number {
  return entry.type === 'file' ? KIND.file | (entry.mode ?? 0o644) : KIND[entry.type]
}

function header(inode: number, mode: number, path: string, size: number): Uint8Array {
  const name = Buffer.from(`${path}\0`)
  const links = 1
  // ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
  const fields = [inode, mode, 0, 0, links, 0, size, 0, 0, 0, 0, name.length, 0]
  const head = Buffer.from(MAGIC + fields.map((field) => hex(field)).join(''))
  return Buffer.concat([head, name, padding(head.length + name.length)])
}

function hex(value: number): string {
  if (value > 0xffffffff) throw new RangeError('a cpio file holds at most 4 GiB')
  return value.toString(16).toUpperCase().padStart(8, '0')
}

/** Names and contents each end on a multiple of four bytes. */
function padding(length: number): Uint8Array {
  return new Uint8Array(-length & 3)
}

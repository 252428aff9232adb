import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { cpioArchive, type CpioEntry } from '../../lib/vm/cpio'

interface Member {
  readonly path: string
  readonly mode: number
  readonly inode: number
  readonly content: string
}

/** Reads "newc" as buffer-format.rst lays it out: fixed fields, then name and content, each padded. */
function members(archive: Buffer): Member[] {
  const found: Member[] = []
  for (let at = 0; ;) {
    expect(archive.toString('latin1', at, at + 6)).toBe('070701')
    const field = (index: number) =>
      parseInt(archive.toString('latin1', at + 6 + 8 * index, at + 14 + 8 * index), 16)
    const [inode, mode, size, nameSize] = [field(0), field(1), field(6), field(11)]
    const name = archive.toString('utf8', at + 110, at + 110 + nameSize - 1)
    expect(archive[at + 110 + nameSize - 1]).toBe(0)
    const from = (at + 110 + nameSize + 3) & ~3
    if (name === 'TRAILER!!!') {
      expect(from).toBe(archive.length)
      return found
    }
    found.push({ path: name, mode, inode, content: archive.toString('utf8', from, from + size) })
    at = (from + size + 3) & ~3
  }
}

describe('cpioArchive', () => {
  it('gives files, directories and links their types and permissions', () => {
    const archive = cpioArchive([
      { type: 'directory', path: 'bin' },
      { type: 'file', path: 'bin/sh', content: Buffer.from('#!'), mode: 0o755 },
      { type: 'file', path: 'text', content: Buffer.from('words') },
      { type: 'symlink', path: 'link', target: 'bin/sh' },
    ])
    expect(members(archive)).toEqual([
      { path: 'bin', mode: 0o040755, inode: 1, content: '' },
      { path: 'bin/sh', mode: 0o100755, inode: 2, content: '#!' },
      { path: 'text', mode: 0o100644, inode: 3, content: 'words' },
      { path: 'link', mode: 0o120777, inode: 4, content: 'bin/sh' },
    ])
  })

  it('keeps every content whole, whatever its length and name', () => {
    const name = fc.stringMatching(/^[a-zä]{1,9}$/)
    fc.assert(
      fc.property(fc.array(fc.tuple(name, fc.string({ maxLength: 9 }))), (files) => {
        const entries = files.map(([path, text]): CpioEntry => ({
          type: 'file',
          path,
          content: Buffer.from(text),
        }))
        expect(members(cpioArchive(entries)).map(({ path, content }) => [path, content])).toEqual(
          files,
        )
      }),
    )
  })

  it('gives the same bytes for the same entries', () => {
    const entries: CpioEntry[] = [{ type: 'file', path: 'a', content: Buffer.from('b') }]
    expect(cpioArchive(entries)).toEqual(cpioArchive(entries))
  })

  it.each(['', '/etc'])('refuses the path %j, which is not relative', (path) => {
    expect(() => cpioArchive([{ type: 'directory', path }])).toThrow(RangeError)
  })
})

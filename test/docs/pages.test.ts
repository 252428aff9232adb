import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { examine } from '../../lib/cli/doctor'
import { anchorsOf, linksOf, pages, root, textOf } from './pages'

describe('links in the pages', () => {
  it.each(pages())('%s leads to files and headings that exist', (page) => {
    const broken = linksOf(page).filter(({ path, anchor }) => {
      if (!existsSync(join(root, path))) return true
      return anchor !== undefined && !anchorsOf(path).includes(anchor)
    })
    expect(broken.map(({ target }) => target)).toEqual([])
  })

  it('every page of docs is in its index', () => {
    const listed = linksOf('docs/README.md').map(({ path }) => path)
    const there = pages().filter((page) => page.startsWith('docs/') && page !== 'docs/README.md')
    expect(there.filter((page) => !listed.includes(page))).toEqual([])
  })
})

/** The members of a union of literals, read from its source. */
function members(file: string, union: string): string[] {
  const source = readFileSync(join(root, file), 'utf8')
  const list = new RegExp(`type ${union} =[\\s\\S]*?\n\n`).exec(source)?.[0] ?? ''
  return [...list.matchAll(/'([\w-]+)'/g)].map(([, member]) => member)
}

describe('troubleshooting by symptom', () => {
  const text = textOf('docs/troubleshooting.md')
  const rows = [...text.matchAll(/^\| `?([^|`]+?)`? \|/gm)].map(([, first]) => first)

  it('has each line of doctor', () => {
    const lines = examine().map(({ what }) => what)
    expect(lines.length).toBeGreaterThan(5)
    expect(lines.filter((line) => !rows.includes(line))).toEqual([])
  })

  it.each([
    ['why a chain cannot be read', 'lib/virtio/chain.ts', 'ChainRefusal'],
    ['why a miss stays unanswered', 'lib/iotlb/unanswered.ts', 'MissCause'],
    ['how the nested VM fails', 'lib/vm/vm-error.ts', 'VmErrorCode'],
  ])('has each reason %s', (_, file, union) => {
    const reasons = members(file, union)
    expect(reasons.length).toBeGreaterThan(3)
    expect(reasons.filter((reason) => !rows.includes(reason))).toEqual([])
  })

  it('has each errno that a hint is written for', () => {
    const sources = ['lib/vhost/vhost-device.ts', 'lib/vhost/tap.ts']
    const hints = sources.flatMap((file) => {
      const source = readFileSync(join(root, file), 'utf8')
      return [...source.matchAll(/^\s+(E[A-Z0-9]{3,}):/gm)].map(([, code]) => code)
    })
    expect(hints.length).toBeGreaterThan(5)
    const listed = rows.flatMap((row) => row.split(', '))
    expect([...new Set(hints)].filter((code) => !listed.includes(code))).toEqual([])
  })
})

describe('mapping modes', () => {
  it('each one has a heading of its own', () => {
    const modes = members('lib/guest/dma.ts', 'Mapping')
    expect(modes.length).toBe(5)
    expect(modes.filter((mode) => !anchorsOf('docs/mapping.md').includes(mode))).toEqual([])
  })
})

import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import type { CpioEntry } from '../../lib/vm/cpio'
import { packedRoot, type PackOptions } from '../../lib/vm/packed-root'

let directory: string

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'project-'))
  mkdirSync(join(directory, '.git'))
  writeFileSync(join(directory, '.git/config'), '')
  mkdirSync(join(directory, 'lib'))
  writeFileSync(join(directory, 'lib/script.js'), 'true', { mode: 0o750 })
  symlinkSync('lib/script.js', join(directory, 'link'))
})

afterEach(() => {
  rmSync(directory, { recursive: true })
})

const options = (): PackOptions => ({
  command: ['sh'],
  path: '/usr/bin:/bin',
  busybox: join(directory, 'lib/script.js'),
  directories: [directory],
  limitBytes: 2 ** 30,
})

async function pack(): Promise<Map<string, CpioEntry>> {
  const entries = [...(await packedRoot(options()))]
  const found = new Map(entries.map((entry) => [entry.path, entry]))
  expect(found.size).toBe(entries.length)
  return found
}

describe('packedRoot', () => {
  it("copies the project under its own path, without git's files", async () => {
    const found = await pack()
    const inProject = [...found.values()].filter(({ path }) => path.startsWith(`host${directory}/`))
    expect(inProject.map(({ path }) => path.slice(`host${directory}/`.length)).sort()).toEqual([
      'lib',
      'lib/script.js',
      'link',
    ])
    expect(found.get(`host${directory}/lib/script.js`)).toMatchObject({ mode: 0o750 })
    expect(found.get(`host${directory}/link`)).toMatchObject({ target: 'lib/script.js' })
  })

  it('has node, the command and their loader, each file once', async () => {
    const found = await pack()
    expect(found.get(`host${process.execPath}`)).toMatchObject({ type: 'file' })
    const resolved = (path: string): CpioEntry | undefined => {
      const entry = found.get(`host${path}`)
      return entry?.type === 'symlink' ? resolved(entry.target) : entry
    }
    expect(resolved('/usr/bin/sh')).toMatchObject({ type: 'file' })
    expect(resolved('/lib64/ld-linux-x86-64.so.2')).toMatchObject({ type: 'file' })
  })

  it('makes every directory before what is in it', async () => {
    const seen = new Set(['.'])
    for (const path of (await pack()).keys()) {
      expect(seen).toContain(dirname(path))
      seen.add(path)
    }
  })

  it('refuses what the memory cannot take', async () => {
    await expect(packedRoot({ ...options(), limitBytes: 2 ** 20 })).rejects.toMatchObject({
      code: 'ERR_VM_UNSUPPORTED',
    })
  })
})

import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  utimesSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { defaultCacheDirectory, entry, unfinishedDirectory } from '../../lib/vm/cache'

let cache: string

beforeEach(() => {
  cache = mkdtempSync(join(tmpdir(), 'cache-'))
})

afterEach(() => {
  rmSync(cache, { recursive: true })
})

const writing = (text: string) => (directory: string) => {
  writeFileSync(join(directory, 'file'), text)
  return Promise.resolve()
}

describe('entry', () => {
  it('is made once', async () => {
    expect(await entry(cache, 'a', writing('first'))).toEqual({
      path: join(cache, 'a'),
      made: true,
    })
    expect(await entry(cache, 'a', writing('second'))).toMatchObject({ made: false })
    expect(readFileSync(join(cache, 'a/file'), 'utf8')).toBe('first')
  })

  it('is one of the two when two are made at once, and the other is gone', async () => {
    await Promise.all([entry(cache, 'a', writing('one')), entry(cache, 'a', writing('two'))])
    expect(readFileSync(join(cache, 'a/file'), 'utf8')).toMatch(/^(one|two)$/)
    expect(readdirSync(cache)).toEqual(['a'])
  })

  it('does not appear when making it fails', async () => {
    const failing = async (directory: string) => {
      await writing('half')(directory)
      throw new Error('no more')
    }
    await expect(entry(cache, 'a', failing)).rejects.toThrow('no more')
    expect(readdirSync(cache)).toEqual([])
  })
})

describe('unfinishedDirectory', () => {
  it('removes what a dead process left more than an hour ago, and nothing else', () => {
    const old = new Date(Date.now() - 2 * 60 * 60 * 1000)
    for (const name of ['unfinished-old', 'unfinished-new', 'kernel-old']) {
      mkdirSync(join(cache, name))
      if (name.endsWith('old')) utimesSync(join(cache, name), old, old)
    }
    const made = unfinishedDirectory(cache)
    expect(existsSync(made)).toBe(true)
    const others = readdirSync(cache).filter((name) => join(cache, name) !== made)
    expect(others.sort()).toEqual(['kernel-old', 'unfinished-new'])
  })
})

describe('defaultCacheDirectory', () => {
  it('follows XDG_CACHE_HOME if it is absolute', () => {
    expect(defaultCacheDirectory({ XDG_CACHE_HOME: '/c' })).toBe('/c/vhost-iotlb')
    expect(defaultCacheDirectory({ XDG_CACHE_HOME: 'c' })).toMatch(/\/\.cache\/vhost-iotlb$/)
  })
})

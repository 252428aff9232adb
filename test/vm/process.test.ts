import { existsSync } from 'node:fs'
import { basename } from 'node:path'
import { expect, it } from 'vitest'
import { librariesOf } from '../../lib/vm/process'

it('names the shared libraries of a program by their paths, with the loader', async () => {
  const libraries = await librariesOf(process.execPath)
  expect(libraries.filter((path) => !existsSync(path))).toEqual([])
  expect(libraries.map((path) => basename(path))).toEqual(
    expect.arrayContaining([expect.stringMatching(/^libc\.so/), expect.stringMatching(/^ld-/)]),
  )
})

it('names none for what is no program', async () => {
  expect(await librariesOf(import.meta.filename)).toEqual([])
})

import { execFileSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { tmpdir } from 'node:os'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { runInVm } from '../../lib/vm/run-in-vm'

/**
 * The package as a user gets it: packed, installed in an empty folder elsewhere, and the README's
 * script run there against the real kernel.
 */
const root = resolve(__dirname, '../..')
let folder: string

function npm(directory: string, ...args: readonly string[]): string {
  return execFileSync('npm', args, {
    cwd: directory,
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'pipe'],
  })
}

/** The README's script, its open ends closed: one ARP request out, its answer in. */
function readmeScript(style: 'esm' | 'cjs'): string {
  const readme = readFileSync(join(root, 'README.md'), 'utf8')
  const [, script] = /## A script\n\n```ts\n([\s\S]*?)```/.exec(readme)!
  const [importLine, ...rest] = script.split('\n')
  const names = /\{(.*)\}/.exec(importLine)![1]
  const plain = rest
    .join('\n')
    // Node 20 has no `using`: the script's own way out is at its end.
    .replaceAll('using ', 'const ')
    .replace('await driver.start()', 'await driver.start()\nsetAddress()')
    .replace(/console\.log\((.*)\).*\n/, 'finish(frame)\n')
  const head =
    style === 'esm'
      ? `import { execFileSync } from 'node:child_process'\nimport {${names}} from 'vhost-iotlb'`
      : `const { execFileSync } = require('node:child_process')\nconst {${names}} = require('vhost-iotlb')`
  const body = `
const us = [2, 0, 0, 0, 0, 2, 192, 0, 2, 2]
const frame = Uint8Array.from([
  ...[255, 255, 255, 255, 255, 255, 2, 0, 0, 0, 0, 2, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1],
  ...us, ...[0, 0, 0, 0, 0, 0, 192, 0, 2, 1], ...new Array(18).fill(0),
])
const setAddress = () => execFileSync('ip', ['addr', 'add', '192.0.2.1/24', 'dev', 'tap0'])
const finish = (answer) => {
  if (answer[12] !== 8 || answer[13] !== 6 || answer[21] !== 2) return
  const { misses, invalidates } = nic.stats()
  console.log(JSON.stringify({ target: [...answer.subarray(28, 32)], misses, invalidates }))
  for (const each of [driver, nic, memory, tap]) each.close()
}
${plain}`
  return style === 'esm' ? `${head}\n${body}` : `${head}\n;(async () => {${body}})()`
}

beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'vhost-iotlb-package-'))
  const packed = join(folder, 'packed')
  mkdirSync(packed)
  npm(root, 'pack', '--pack-destination', packed)
  const [tarball] = readdirSync(packed)
  writeFileSync(join(folder, 'package.json'), '{ "name": "empty", "private": true }')
  npm(folder, 'install', '--no-audit', '--no-fund', join(packed, tarball))
  writeFileSync(join(folder, 'script.mjs'), readmeScript('esm'))
  writeFileSync(join(folder, 'script.cjs'), readmeScript('cjs'))
})

afterAll(() => {
  rmSync(folder, { recursive: true, force: true })
})

describe('the packed package', () => {
  it.each(['script.mjs', 'script.cjs'])('runs the script of the README: %s', async (script) => {
    const result = await runInVm({
      command: [process.execPath, script],
      projectDirectory: folder,
      stdout: 'capture',
      stderr: 'capture',
      timeoutSeconds: 60,
    })
    expect(result.stderr).toBe('')
    expect(result.status).toBe(0)
    const seen = JSON.parse(result.stdout) as Record<string, unknown>
    expect(seen).toMatchObject({ target: [192, 0, 2, 1] })
    expect(seen['misses']).toBeGreaterThan(0)
    expect(seen['invalidates']).toBeGreaterThan(0)
  })

  it('holds the built library, the sources that its maps name, and a prebuilt addon', () => {
    const inside = join(folder, 'node_modules', 'vhost-iotlb')
    expect(readdirSync(inside).sort()).toEqual([
      'LICENSE',
      'README.md',
      'binding.gyp',
      'dist',
      'lib',
      'native',
      'package.json',
      'prebuilds',
    ])
    expect(readdirSync(join(inside, 'prebuilds'))).toEqual([`linux-${process.arch}`])
  })
})

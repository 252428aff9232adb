import { readFileSync, readdirSync, writeFileSync } from 'node:fs'
import { join, relative } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { runInVm } from '../../lib/vm/run-in-vm'
import { PackedPackage, root } from '../support/packed'

/**
 * The package as a user gets it: packed, installed in an empty folder elsewhere, and the README's
 * script run there against the real kernel.
 */
let packed: PackedPackage

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
  packed = new PackedPackage({ scripts: true })
  packed.install()
  writeFileSync(join(packed.folder, 'script.mjs'), readmeScript('esm'))
  writeFileSync(join(packed.folder, 'script.cjs'), readmeScript('cjs'))
})

afterAll(() => {
  packed[Symbol.dispose]()
})

/** Files below a folder of the repository, as paths from the repository's root. */
function filesIn(folder: string): string[] {
  return readdirSync(join(root, folder), { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => relative(root, join(entry.parentPath, entry.name)))
}

describe('the packed package', () => {
  it.each(['script.mjs', 'script.cjs'])('runs the script of the README: %s', async (script) => {
    const result = await runInVm({
      command: [process.execPath, script],
      projectDirectory: packed.folder,
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

  it('holds the library, its sources, the addon prebuilt and its sources, and no more', () => {
    const sources = filesIn('lib')
    const built = sources.flatMap((path) =>
      ['.js', '.js.map', '.d.ts', '.d.ts.map'].map((end) =>
        path.replace(/^lib/, 'dist').replace(/\.ts$/, end),
      ),
    )
    const single = ['CHANGELOG.md', 'LICENSE', 'README.md', 'binding.gyp', 'package.json']
    const prebuilds = filesIn('prebuilds')
    expect(prebuilds).toContain(`prebuilds/linux-${process.arch}/node.napi.glibc.node`)
    const expected = [...sources, ...built, ...filesIn('native'), ...prebuilds]
    const others = [...filesIn('wireshark'), ...single]
    expect(packed.contents().sort()).toEqual([...expected, ...others].sort())
  })

  it('runs no script when it is installed', () => {
    const { scripts, gypfile } = JSON.parse(
      readFileSync(join(packed.folder, 'node_modules/vhost-iotlb/package.json'), 'utf8'),
    ) as { readonly scripts: Record<string, string>; readonly gypfile: boolean }
    const atInstall = ['preinstall', 'install', 'postinstall']
    expect(Object.keys(scripts).filter((name) => atInstall.includes(name))).toEqual([])
    // npm would otherwise run node-gyp by itself where it sees a binding.gyp.
    expect(gypfile).toBe(false)
  })
})

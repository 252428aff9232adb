/** Commands of the README that no other test runs, as somebody on this machine would run them. */
import { execFile } from 'node:child_process'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { expect, test } from 'vitest'

const CLI = join(import.meta.dirname, '../../dist/cli/main.js')

/** @returns what it printed @throws Error where its status is not 0 */
async function printed(...args: readonly string[]): Promise<unknown> {
  const { stdout } = await promisify(execFile)(process.execPath, [CLI, ...args, '--json'])
  return JSON.parse(stdout)
}

test('doctor finds nothing missing here', async () => {
  const findings = (await printed('doctor')) as readonly { readonly ok: boolean }[]
  expect(findings.length).toBeGreaterThan(3)
})

test('bench: rows, and each target that they decide', async () => {
  const args = ['bench', '--where', 'host', '--quick', '--only', 'walk']
  const { env, rows, targets } = (await printed(...args)) as Record<string, readonly object[]>
  expect(env).toMatchObject({ effort: 'quick' })
  expect(rows.map((row) => (row as { section: string }).section)).toContain('walk')
  const named = targets.map((target) => (target as { name: string }).name)
  expect(named).toContain('walk-ns')
  for (const target of targets) {
    expect(Object.keys(target)).toEqual(['name', 'value', 'unit', 'target', 'met'])
  }
})

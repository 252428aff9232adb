import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, expect, test } from 'vitest'
import { moduleParameter } from '../../lib/vhost/module-parameters'

const root = mkdtempSync(join(tmpdir(), 'parameters-'))
afterAll(() => {
  rmSync(root, { recursive: true })
})

function written(text: string): number {
  const folder = join(root, 'vhost', 'parameters')
  mkdirSync(folder, { recursive: true })
  writeFileSync(join(folder, 'max_iotlb_entries'), text)
  return moduleParameter('vhost/max_iotlb_entries', root)
}

test('what the module was loaded with', () => {
  expect(written('64\n')).toBe(64)
  expect(written('0\n')).toBe(0)
})

test('booleans as the kernel writes them', () => {
  expect([written('Y\n'), written('N\n')]).toEqual([1, 0])
})

test("the kernel's default where sysfs does not say, or says what is no number", () => {
  expect(written('many\n')).toBe(2048)
  expect(moduleParameter('vhost/max_mem_regions', root)).toBe(64)
  expect(moduleParameter('vhost_net/experimental_zcopytx', '/nowhere')).toBe(0)
})

import { readFileSync, readdirSync } from 'node:fs'
import { dirname, join, relative, resolve } from 'node:path'
import { describe, expect, it } from 'vitest'

const lib = resolve(__dirname, '../lib')

/** The layers of the library, lowest first; a file outside any folder is named itself. */
const LAYERS: readonly (readonly string[])[] = [
  ['address.ts', 'bits.ts', 'errors.ts', 'inspect.ts', 'native.ts'],
  ['memory'],
  ['iommu', 'virtio'],
  ['iotlb', 'pci', 'acpi'],
  ['vhost', 'trace', 'testing', 'guest', 'raw.ts'],
  ['monitor'],
  ['cli', 'vm', 'vmm', 'index.ts'],
]
const NATIVE_USERS = [
  'memory/guest-memory.ts',
  'memory/region.ts',
  'vhost/',
  'raw.ts',
  'vmm/kvm.ts',
]

const files = readdirSync(lib, { recursive: true, encoding: 'utf8' }).filter((f) =>
  f.endsWith('.ts'),
)

function layerOf(file: string): number {
  const [top] = file.split('/')
  return LAYERS.findIndex((names) => names.includes(top))
}

function importsOf(file: string): string[] {
  const text = readFileSync(join(lib, file), 'utf8')
  const found = [...text.matchAll(/(?:from|import|require\()\s*['"](\.[^'"]+)['"]/g)]
  return found.map(([, path]) => `${relative(lib, resolve(dirname(join(lib, file)), path))}.ts`)
}

describe('the layers of lib', () => {
  it('has a place for each file', () => {
    expect(files.filter((file) => layerOf(file) < 0)).toEqual([])
  })

  it('imports point down or sideways, never up', () => {
    const up = files.flatMap((file) =>
      importsOf(file)
        .filter((to) => layerOf(to) > layerOf(file))
        .map((to) => `${file} imports ${to}`),
    )
    expect(up).toEqual([])
  })

  it('the miss loop knows no IOMMU by name, and IOMMUs do not know vhost', () => {
    const wrong = files.flatMap((file) =>
      importsOf(file)
        .filter((to) => file.startsWith('iotlb/') && to.startsWith('iommu/'))
        .map((to) => `${file} imports ${to}`),
    )
    expect(wrong).toEqual([])
  })

  it('native is used where memory and descriptors are owned, nowhere else', () => {
    const users = files.filter((file) => importsOf(file).includes('native.ts'))
    expect(users.filter((file) => !NATIVE_USERS.some((user) => file.startsWith(user)))).toEqual([])
  })
})

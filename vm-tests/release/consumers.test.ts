import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { PackedPackage, run } from '../support/packed'

/** A user's first lines, with each way to load the package, each Node, each way to resolve types. */
const NODES = [20, 22, 24, 26]
const NAMES = 'GuestMemory, IntelIommu, IntelIommuDriver, MiB, gpa'
const BODY = `
const memory = GuestMemory.allocate(16 * MiB)
const iommu = new IntelIommu(memory)
const driver = new IntelIommuDriver(iommu, memory, { requester: '00:03.0', mode: 'strict' })
driver.enable()
const at = driver.map(gpa(0x5000n), 4096, 'read')
const space = iommu.addressSpace('00:03.0')
const before = space.translate(at, 'read').ok
driver.unmap(at)
console.log(before, space.translate(at, 'read').ok)
driver.disable()
memory.close()
`
const WORKER = `const { Worker, isMainThread } = require('node:worker_threads')
if (isMainThread) new Worker(__filename)
else { const { ${NAMES} } = require('vhost-iotlb')
${BODY} }`
const SCRIPTS = {
  'script.cjs': `const { ${NAMES} } = require('vhost-iotlb')\n${BODY}`,
  'script.mjs': `import { ${NAMES} } from 'vhost-iotlb'\n${BODY}`,
  'worker.cjs': WORKER,
} as const

let packed: PackedPackage

beforeAll(() => {
  packed = new PackedPackage({ scripts: false })
  const nodes = NODES.map((major) => `node-${major}@npm:node-linux-${process.arch}@${major}`)
  packed.install(...nodes, 'typescript', '@types/node@20', 'publint', '@arethetypeswrong/cli')
  for (const [name, text] of Object.entries(SCRIPTS)) writeFileSync(join(packed.folder, name), text)
})
afterAll(() => {
  packed[Symbol.dispose]()
})

describe.each(NODES)('on Node %i', (major) => {
  it.each(Object.keys(SCRIPTS))('%s runs', (script) => {
    const node = join(packed.folder, `node_modules/node-${major}/bin/node`)
    expect(run(packed.folder, node, ['--version'])).toMatch(new RegExp(`^v${major}\\.`))
    expect(run(packed.folder, node, ['--no-warnings', script]).trim()).toBe('true false')
  })

  it('the command says what it can do', () => {
    const node = join(packed.folder, `node_modules/node-${major}/bin/node`)
    const command = join(packed.folder, 'node_modules/.bin/vhost-iotlb')
    expect(run(packed.folder, node, [command, '--help'])).toContain('doctor')
  })
})

describe('TypeScript', () => {
  it.each([
    ['node16', 'node16', 'commonjs'],
    ['node16', 'node16', 'module'],
    ['esnext', 'bundler', 'module'],
  ])(
    'with module %s, resolution %s and a package of type %s compiles',
    (module, resolution, type) => {
      const folder = join(packed.folder, `ts-${resolution}-${type}`)
      mkdirSync(folder)
      writeFileSync(join(folder, 'package.json'), JSON.stringify({ type }))
      writeFileSync(join(folder, 'script.ts'), `import { ${NAMES} } from 'vhost-iotlb'\n${BODY}`)
      const options = ['--strict', '--noEmit', '--target', 'es2022', '--lib', 'esnext']
      options.push('--types', 'node', '--module', module, '--moduleResolution', resolution)
      run(folder, process.execPath, [tool('typescript', 'tsc'), ...options, 'script.ts'])
    },
  )
})

describe('the tools that judge packages', () => {
  it('publint has nothing to say', () => {
    const said = run(packed.folder, process.execPath, [tool('publint'), '--strict', packed.tarball])
    expect(said).toContain('All good!')
  })

  it('attw has nothing to say', () => {
    run(packed.folder, process.execPath, [tool('@arethetypeswrong/cli', 'attw'), packed.tarball])
  })
})

/** The program of an installed package. */
function tool(name: string, program = name): string {
  const directory = join(packed.folder, 'node_modules', name)
  const { bin } = JSON.parse(readFileSync(join(directory, 'package.json'), 'utf8')) as {
    readonly bin: string | Record<string, string>
  }
  return join(directory, typeof bin === 'string' ? bin : bin[program])
}

// `npm test`: format, lint, types, unit tests, then the VM tests on each kernel; one line at the end
// adds everything up. Where the host itself has /dev/vhost-net and root, the VM tests run on it.
//   node test/run.mjs [static] [unit] [vm] [6.12] [6.1]     no name: all of them
import {
  count,
  finish,
  hostHas,
  hostHasVhost,
  inVm,
  node,
  run,
  suite,
  transform,
} from './suites.mjs'

const wanted = process.argv.slice(2)
const all = wanted.length === 0
const wants = (name) => all || wanted.includes(name)
const kernels = ['6.12', '6.1'].filter((kernel) => all || wanted.includes(kernel))

async function check(title, args) {
  console.log(`\n== ${title}`)
  const ok = (await run(node, args)) === 0
  count(title, { passed: ok ? 1 : 0, failed: ok ? 0 : 1 })
}

if (wants('static')) {
  await check('format', ['node_modules/prettier/bin/prettier.cjs', '--check', '.'])
  await check('lint', [
    'node_modules/eslint/bin/eslint.js',
    ...['-c', 'test/eslint.config.mjs', '--max-warnings', '0', 'lib', 'test', 'vm-tests'],
  ])
  await check('types', ['node_modules/typescript/bin/tsc', '-p', 'test/tsconfig.json'])
}
if (wants('unit')) await suite('unit tests', 'test/vitest.config.mts')
if (wants('vm')) {
  await suite('the nested VM itself', 'vm-tests/vm/vitest.config.mts')
  if (hostHasVhost()) {
    await suite('VM tests on this host', 'vm-tests/vitest.config.mts')
    if (hostHas('/dev/kvm')) await suite('guests on this host', 'vm-tests/vmm/vitest.config.mts')
  } else {
    await transform('vm-tests/vitest.config.mts')
    await transform('vm-tests/vmm/vitest.config.mts')
    for (const kernel of kernels) {
      await suite(`VM tests on Linux ${kernel}`, 'vm-tests/vitest.config.mts', {
        prefix: inVm(kernel, 600),
      })
      await suite(`guests on Linux ${kernel}`, 'vm-tests/vmm/vitest.config.mts', {
        prefix: inVm(kernel, 900, ['--nested', '--module', 'pktgen']),
      })
    }
  }
}

finish()

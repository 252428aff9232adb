// `npm test`: format, lint, types, unit tests, then the VM tests on each kernel; one line at the end
// adds everything up. Where the host itself has /dev/vhost-net and root, the VM tests run on it.
//   node test/run.mjs [static] [unit] [vm] [6.12] [6.1]     no name: all of them
import { spawn } from 'node:child_process'
import { accessSync, constants, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { join } from 'node:path'

const root = new URL('..', import.meta.url).pathname
const node = process.execPath
const vitest = join(root, 'node_modules/vitest/vitest.mjs')
const wanted = process.argv.slice(2)
const all = wanted.length === 0
const wants = (name) => all || wanted.includes(name)
const kernels = ['6.12', '6.1'].filter((kernel) => all || wanted.includes(kernel))
const total = { passed: 0, failed: 0, skipped: 0 }
const failures = []

function run(command, args) {
  return new Promise((resolve) => {
    const child = spawn(command, args, { cwd: root, stdio: ['ignore', 'inherit', 'inherit'] })
    child.on('error', (error) => {
      console.error(error.message)
      resolve(1)
    })
    child.on('close', (code) => resolve(code ?? 1))
  })
}

function count(title, { passed, failed, skipped = 0 }) {
  total.passed += passed
  total.failed += failed
  total.skipped += skipped
  if (failed > 0) failures.push(`${title}: ${failed} failed`)
}

async function check(title, args) {
  console.log(`\n== ${title}`)
  const ok = (await run(node, args)) === 0
  count(title, { passed: ok ? 1 : 0, failed: ok ? 0 : 1 })
}

/** A run of vitest counts by its own report; one without a report, or that died, is a failure. */
async function suite(title, config, prefix = []) {
  console.log(`\n== ${title}`)
  // Inside the project, so that a nested VM sees it.
  const folder = mkdtempSync(join(root, 'build', 'report-'))
  const report = join(folder, 'report.json')
  const reporters = ['--reporter=default', '--reporter=json', `--outputFile.json=${report}`]
  const [command, ...args] = [...prefix, node, vitest, 'run', '--config', config, ...reporters]
  const started = Date.now()
  const status = await run(command, args)
  let counted = { passed: 0, failed: 1 }
  try {
    const json = JSON.parse(readFileSync(report, 'utf8'))
    const broken = json.testResults.filter(
      (file) => file.status === 'failed' && file.assertionResults.length === 0,
    ).length
    counted = {
      passed: json.numPassedTests,
      failed: json.numFailedTests + broken,
      skipped: json.numPendingTests + json.numTodoTests,
    }
  } catch {
    console.error(`${title}: no report was written`)
  }
  if (status !== 0 && counted.failed === 0) counted.failed = 1
  if (status === 0 && counted.passed === 0) counted.failed += 1
  count(title, counted)
  rmSync(folder, { recursive: true, force: true })
  console.log(`== ${title}: ${Math.round((Date.now() - started) / 1000)} s`)
}

function hostHasVhost() {
  try {
    accessSync('/dev/vhost-net', constants.R_OK | constants.W_OK)
    return process.getuid() === 0
  } catch {
    return false
  }
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
  } else {
    for (const kernel of kernels) {
      const inside = [node, 'dist/cli/main.js', 'vm', '--kernel', kernel, '--timeout', '600', '--']
      await suite(`VM tests on Linux ${kernel}`, 'vm-tests/vitest.config.mts', inside)
    }
  }
}

for (const failure of failures) console.log(failure)
const skipped = total.skipped > 0 ? `, ${total.skipped} skipped` : ''
console.log(`${total.passed} passed, ${total.failed} failed${skipped}`)
process.exit(total.failed === 0 ? 0 : 1)

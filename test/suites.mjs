// What runs of the tests have in common: suites of vitest, counted by their own reports.
import { spawn } from 'node:child_process'
import { accessSync, constants, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { join } from 'node:path'

const root = new URL('..', import.meta.url).pathname
export const node = process.execPath
const vitest = join(root, 'node_modules/vitest/vitest.mjs')
const total = { passed: 0, failed: 0, skipped: 0 }
const failures = []

export function run(command, args) {
  return new Promise((resolve) => {
    const child = spawn(command, args, { cwd: root, stdio: ['ignore', 'inherit', 'inherit'] })
    child.on('error', (error) => {
      console.error(error.message)
      resolve(1)
    })
    child.on('close', (code) => resolve(code ?? 1))
  })
}

export function count(title, { passed, failed, skipped = 0 }) {
  total.passed += passed
  total.failed += failed
  total.skipped += skipped
  if (failed > 0) failures.push(`${title}: ${failed} failed`)
}

/** A run of vitest counts by its own report; one without a report, or that died, is a failure. */
export async function suite(title, config, { prefix = [], files = [] } = {}) {
  console.log(`\n== ${title}`)
  // Inside the project, so that a nested VM sees it.
  const folder = mkdtempSync(join(root, 'build', 'report-'))
  const report = join(folder, 'report.json')
  const reporters = ['--reporter=default', '--reporter=json', `--outputFile.json=${report}`]
  const [command, ...args] = [
    ...prefix,
    node,
    vitest,
    'run',
    '--config',
    config,
    ...reporters,
    ...files,
  ]
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
  const seconds = Math.round((Date.now() - started) / 1000)
  console.log(`== ${title}: ${seconds} s`)
  return { ...counted, seconds }
}

/**
 * Has the modules of a suite transformed here, and kept for its runs in the nested VM
 * (`fsModuleCache`), where each would do that anew on emulated processors. What cannot be loaded is
 * left for those runs to say.
 */
export async function transform(config) {
  const listing = ['--config', config, `--json=${join(root, 'build', 'tests.json')}`]
  await run(node, [vitest, 'list', ...listing])
}

/** Whether the VM tests can run on this host itself. */
export function hostHasVhost() {
  return hostHas('/dev/vhost-net')
}

/** Whether root may use a device of this host. */
export function hostHas(device) {
  try {
    accessSync(device, constants.R_OK | constants.W_OK)
    return process.getuid() === 0
  } catch {
    return false
  }
}

/** What runs a command in the nested VM; `seconds` with its boot. */
export function inVm(kernel, seconds, options = []) {
  const limits = ['--kernel', kernel, '--timeout', `${seconds}`]
  return [node, 'dist/cli/main.js', 'vm', ...limits, ...options, '--']
}

/** Says what failed, then how much did, and ends the process. */
export function finish() {
  for (const failure of failures) console.log(failure)
  const skipped = total.skipped > 0 ? `, ${total.skipped} skipped` : ''
  console.log(`${total.passed} passed, ${total.failed} failed${skipped}`)
  process.exit(total.failed === 0 ? 0 : 1)
}

// What takes too long for each change: the random tests with a million cases, and the isolation with
// a hundred thousand frames in each mapping mode on both kernels.
//   node test/nightly.mjs [oracle] [hostile] [differential] [poison] [6.12] [6.1]   no name: all
// One line each at the end, then `N passed, N failed`. Each night has a seed of its own, its date;
// it is printed, and SEED= repeats it. CASES=, STEPS= and FRAMES= are the numbers of cases of the
// oracle and the hostile guest, of steps against QEMU (which must be 7.2, or that is skipped), and
// of frames. Four hours at most, of which the frames take three.
import { finish, hostHasVhost, inVm, suite } from './suites.mjs'

const SUITES = {
  oracle: ['CASES', 1_000_000, 'test/iommu/intel/oracle.test.ts'],
  hostile: ['CASES', 1_000_000, 'test/iommu/intel/hostile.test.ts'],
  differential: ['STEPS', 60_000, 'test/differential/qemu.test.ts'],
}
const VM_SECONDS = 2 * 3600
const wanted = process.argv.slice(2)
const names = [...Object.keys(SUITES), 'poison', '6.12', '6.1']
const unknown = wanted.filter((name) => !names.includes(name))
if (unknown.length > 0) {
  console.error(`no such part: ${unknown.join(' ')}; there are ${names.join(' ')}`)
  process.exit(2)
}
const kernels = ['6.12', '6.1'].filter((name) => wanted.includes(name))
const parts = wanted.filter((name) => !kernels.includes(name))
const wants = (name) => parts.length === 0 || parts.includes(name)
const lines = []

async function night(title, config, options) {
  const { passed, failed, skipped = 0, seconds } = await suite(title, config, options)
  const rest = skipped > 0 ? `, ${skipped} skipped` : ''
  lines.push(`${title}: ${passed} passed, ${failed} failed${rest}, ${seconds} s`)
}

process.env.SEED ??= new Date().toISOString().slice(0, 10).replaceAll('-', '')
for (const [name, [variable, usual, file]] of Object.entries(SUITES)) {
  if (!wants(name)) continue
  process.env.RUNS = process.env[variable] ?? `${usual}`
  await night(`${name}, ${process.env.RUNS}`, 'test/vitest.config.mts', { files: [file] })
}
if (wants('poison')) {
  process.env.POISON_FRAMES = process.env.FRAMES ?? '100000'
  const config = 'vm-tests/vitest.config.mts'
  const files = ['vm-tests/net/poison.test.ts']
  const what = `poison, ${process.env.POISON_FRAMES} frames a mode`
  if (hostHasVhost()) {
    await night(`${what}, this host`, config, { files })
  } else {
    for (const kernel of kernels.length === 0 ? ['6.12', '6.1'] : kernels) {
      await night(`${what}, Linux ${kernel}`, config, { files, prefix: inVm(kernel, VM_SECONDS) })
    }
  }
}

console.log(`\nseed ${process.env.SEED}`)
for (const line of lines) console.log(line)
finish()

// What takes too long for each change, each part on its own or all of them:
//   node test/nightly.mjs [PART…] [6.12] [6.1]
//
//   oracle, hostile   random tables and a hostile guest: CASES= each (1000000)
//   differential      against QEMU, which must be 7.2, or it is skipped: STEPS= (60000)
//   poison            isolation, frames in each mapping mode: FRAMES= (100000)
//   fuzz              the kernel against the fake: SEQUENCES= (1000)
//   soak              everything at random: MINUTES= (30)
//   cycles            opened, started, stopped, closed: CYCLES= (10000)
//   faults            each kind of fault: ROUNDS= of frames (200)
//   stalls            silent stalls that heal: HEALS= (480)
//   unmapped          addresses that nobody maps: UNMAPPED= (100000)
//
// From poison on it is the real kernel's turn, both versions in the VM. One line each at the end,
// then `N passed, N failed`. Each night has a seed of its own, its date; it is printed, and SEED=
// repeats it. Eight hours at most, of which poison takes three.
import { finish, hostHasVhost, inVm, suite } from './suites.mjs'

const SUITES = {
  oracle: ['CASES', 1_000_000, 'test/iommu/intel/oracle.test.ts'],
  hostile: ['CASES', 1_000_000, 'test/iommu/intel/hostile.test.ts'],
  differential: ['STEPS', 60_000, 'test/differential/qemu.test.ts'],
}
/** What the night calls it and how much of it there is, what the test calls it, and where. */
const IN_VM = {
  poison: ['FRAMES', 100_000, 'POISON_FRAMES', 'net/poison.test.ts'],
  fuzz: ['SEQUENCES', 1000, 'FUZZ', 'conformance/fuzz.test.ts'],
  soak: ['MINUTES', 30, 'SOAK_MINUTES', 'net/flat.test.ts'],
  cycles: ['CYCLES', 10_000, 'CYCLES', 'net/flat.test.ts'],
  faults: ['ROUNDS', 200, 'ROUNDS', 'net/faults.test.ts'],
  stalls: ['HEALS', 480, 'HEALS', 'net/doctor.test.ts'],
  unmapped: ['UNMAPPED', 100_000, 'UNMAPPED', 'net/bounded.test.ts'],
}
const VM_SECONDS = 2 * 3600
const wanted = process.argv.slice(2)
const names = [...Object.keys(SUITES), ...Object.keys(IN_VM), '6.12', '6.1']
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
const config = 'vm-tests/vitest.config.mts'
const amounts = Object.entries(IN_VM).map(([name, [variable, usual]]) => {
  return [name, process.env[variable] ?? `${usual}`]
})
for (const [name, amount] of amounts) {
  if (!wants(name)) continue
  const [, , setting, file] = IN_VM[name]
  const files = [`vm-tests/${file}`]
  // Of two tests in one file, this part's alone.
  Object.assign(process.env, { CYCLES: '0', SOAK_MINUTES: '0', [setting]: amount })
  const what = `${name}, ${amount}`
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

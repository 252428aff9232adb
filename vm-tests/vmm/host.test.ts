/** What the emulated machine is that these guests run in: the kernel in it is patched for them once. */
import { readFileSync, readdirSync } from 'node:fs'
import { expect, it } from 'vitest'

const emulated = readFileSync('/proc/cmdline', 'latin1').includes('tsc=reliable')

it.runIf(emulated)('has a machine of KVM that was there before them', () => {
  // One folder a machine, named by the process that holds it and its descriptor.
  const machines = readdirSync('/sys/kernel/debug/kvm').filter((name) => /^\d+-\d+$/.test(name))
  expect(machines).toHaveLength(1)
  const [holder] = machines[0].split('-')
  expect(readFileSync(`/proc/${holder}/cmdline`, 'latin1')).toContain('idle-machine')
})

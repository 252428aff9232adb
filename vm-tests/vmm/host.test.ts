/** What the emulated machine is that these guests run in: the kernel in it is patched for them once. */
import { readFileSync, readdirSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { expect, it } from 'vitest'

const emulated = readFileSync('/proc/cmdline', 'latin1').includes('maxcpus=1')

it.runIf(emulated)('all processors are up, and a machine of KVM was there before them', () => {
  expect(availableParallelism()).toBe(2)
  // One folder a machine, named by the process that holds it and its descriptor.
  const machines = readdirSync('/sys/kernel/debug/kvm').filter((name) => /^\d+-\d+$/.test(name))
  expect(machines).toHaveLength(1)
  const [holder] = machines[0].split('-')
  expect(readFileSync(`/proc/${holder}/cmdline`, 'latin1')).toContain('idle-machine')
})

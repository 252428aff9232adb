import { expect, it } from 'vitest'
import { GUEST_MODES, KERNELS } from '../../lib/cli/choices'
import { KERNEL_LINES } from '../../lib/vm/kernel'
import { GUEST_MODES as DEBIAN_MODES } from '../../lib/vmm/debian-guest'

it('has every mode of a guest, and every kernel', () => {
  expect(GUEST_MODES).toEqual(Object.keys(DEBIAN_MODES))
  expect(KERNELS).toEqual([...KERNEL_LINES, 'both'])
})

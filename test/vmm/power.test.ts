import { expect, it } from 'vitest'
import { Power } from '../../lib/vmm/power'

it.each([
  ['S5 with the enable bit powers off', 0, 0x34, 'off'],
  ['another sleeping state is ignored', 0, 0x24, ''],
  ['S5 without the enable bit is ignored', 0, 0x14, ''],
  ['the reset value resets', 2, 1, 'reset'],
  ['another value there is ignored', 2, 6, ''],
  ['the sleep status only reads', 1, 0x80, ''],
])('%s', (_, offset, value, expected) => {
  let said = ''
  const power = new Power(
    () => (said += 'off'),
    () => (said += 'reset'),
  )
  power.write(offset, BigInt(value))
  expect(said).toBe(expected)
})

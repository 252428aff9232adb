import { expect, it } from 'vitest'
import { KeyboardReset, Power, RESET_CODE } from '../../lib/vmm/power'

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

it('the keyboard controller is always ready, and resets by its pulse alone', () => {
  let resets = 0
  const keyboard = new KeyboardReset(() => resets++)
  expect(keyboard.read()).toBe(0n)
  keyboard.write(0, 0xaen)
  expect(resets).toBe(0)
  keyboard.write(0, 0xfen)
  expect(resets).toBe(1)
})

it('the reset vector holds a write to the reset register, and fits below the first mebibyte', () => {
  const { at, bytes } = RESET_CODE
  expect(at).toBe(0xffff0)
  expect(at + bytes.length).toBeLessThanOrEqual(0x100000)
  // mov dx, 0x602; mov al, 1; out dx, al
  expect([...bytes.subarray(0, 6)]).toEqual([0xba, 0x02, 0x06, 0xb0, 0x01, 0xee])
})

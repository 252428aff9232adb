import { expect, test } from 'vitest'
import { FakeClock } from '../../lib/testing/fake-clock'

test('calls what is due, in the order of time', () => {
  const clock = new FakeClock()
  const calls: [string, number][] = []
  clock.every(10, () => calls.push(['ten', clock.now()]))
  const seven = clock.every(7, () => calls.push(['seven', clock.now()]))
  clock.advance(20)
  expect(calls).toEqual([
    ['seven', 7],
    ['ten', 10],
    ['seven', 14],
    ['ten', 20],
  ])
  expect(clock.now()).toBe(20)
  seven[Symbol.dispose]()
  expect(clock.timers).toBe(1)
  clock.advance(1)
  expect(calls).toHaveLength(4)
})

test('a period of nothing would never end, and time does not go back', () => {
  const clock = new FakeClock()
  expect(() => clock.every(0, () => undefined)).toThrow(RangeError)
  expect(() => {
    clock.advance(-1)
  }).toThrow(RangeError)
})

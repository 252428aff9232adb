import { expect, test } from 'vitest'
import { Standstill } from '../../lib/vhost/watchdog'

/** The looks, counted from 1, at which a ring is examined. */
function examined(looks: number, look: (still: Standstill) => boolean): number[] {
  const still = new Standstill()
  const at: number[] = []
  for (let i = 1; i <= looks; i++) if (look(still)) at.push(i)
  return at
}

test('a ring that moves, or owes nothing, is never examined', () => {
  let used = 0
  expect(examined(100, (still) => still.look(used++ & 0xffff, true, 0, true))).toEqual([])
  expect(examined(100, (still) => still.look(7, false, 0, true))).toEqual([])
})

test('one that owes work is examined at its second look, then ever more seldom', () => {
  const at = examined(200, (still) => still.look(7, true, 0, true))
  expect(at).toEqual([2, 3, 5, 9, 17, 33, 65, 129, 193])
})

test('one that receives is examined only where something was asked since', () => {
  expect(examined(10, (still) => still.look(7, true, 5, false))).toEqual([2])
  let asked = 0
  expect(examined(10, (still) => still.look(7, true, asked++, false))).toEqual([3, 4, 6, 10])
})

test('what was offered just before a look is not examined at that look', () => {
  const still = new Standstill()
  for (let i = 0; i < 5; i++) expect(still.look(7, false, 0, true)).toBe(false)
  expect(still.look(7, true, 0, true)).toBe(false)
  expect(still.look(7, true, 0, true)).toBe(true)
})

test('work that was done in between was not owed twice', () => {
  const still = new Standstill()
  for (let i = 0; i < 5; i++) {
    expect(still.look(7, true, 0, true)).toBe(false)
    expect(still.look(7, false, 0, true)).toBe(false)
  }
})

test('what was asked between two looks is not overlooked because the ring moved then, too', () => {
  const still = new Standstill()
  still.look(1, true, 0, false)
  still.look(1, true, 0, false)
  expect(still.look(2, true, 1, false)).toBe(false)
  expect(still.look(2, true, 1, false)).toBe(true)
  expect(still.look(2, true, 1, false)).toBe(false)
})

test('a move begins it all again', () => {
  const still = new Standstill()
  still.look(1, true, 0, true)
  expect(still.look(1, true, 0, true)).toBe(true)
  still.baffled = 2
  still.told = 'fault'
  still.look(2, true, 0, true)
  expect([still.baffled, still.told]).toEqual([0, undefined])
  expect(still.look(2, true, 0, true)).toBe(true)
})

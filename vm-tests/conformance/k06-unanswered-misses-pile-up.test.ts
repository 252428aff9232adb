/** K6: the kernel keeps each question until it is read, however many there are. */
import { expect, test } from 'vitest'
import { BUFFERS, Bench, TX } from '../support/bench'
import { frame } from '../support/frames'
import { FakeDevice } from '../support/operations'

const KICKS = 200

test('each kick of a queue that waits asks again, and every question is kept', () => {
  using bench = new Bench()
  const ring = bench.runningRing(TX)
  ring.send(0, frame(1, 60))
  for (let i = 0; i < KICKS; i++) ring.kick()
  const questions = bench.questions()
  // Kernels that bound the questions of a queue keep fewer; none loses the first.
  expect(questions.length).toBeGreaterThanOrEqual(1)
  expect(questions.length).toBeLessThanOrEqual(KICKS)
  expect(new Set(questions.map(({ iova }) => iova))).toEqual(new Set([BUFFERS]))
  bench.mapBuffers(0, 1, 'read')
  bench.flush()
  expect(ring.completed).toBe(1)
  expect(bench.questions()).toEqual([])

  const fake = new FakeDevice()
  fake.perform({ do: 'read', page: 0 })
  for (let i = 1; i < KICKS; i++) fake.perform({ do: 'kick', queue: 'read' })
  const { asked } = fake.perform({ do: 'drain' })
  if (questions.length === KICKS) expect(asked).toEqual(Array(KICKS).fill('read 0'))
})

test('a queue has one hole at a time: the second is asked when the first is filled', () => {
  using bench = new Bench()
  const ring = bench.runningRing(TX)
  for (let i = 0; i < 4; i++) ring.send(i, frame(i, 60))
  ring.kick()
  for (let i = 0; i < 4; i++) {
    expect(bench.questions().map(({ iova }) => Number((iova - BUFFERS) >> 12n))).toEqual([i])
    bench.mapBuffers(i, 1, 'read')
    bench.flush()
  }
  expect(ring.completed).toBe(4)
})

/** K5: the table evicts in the order of insertion; hits do not refresh, duplicates count. */
import { expect, test } from 'vitest'
import { Shadow } from '../../lib/iotlb/shadow'
import { BUFFERS, BUFFERS_GPA, Bench, PAGE, TX } from '../support/bench'
import type { BenchRing } from '../support/bench'
import { frame } from '../support/frames'

/** Far from everything else. */
const FILLER = 0x9_0000_0000n

function fill(bench: Bench, count: number, from = 0): void {
  const first = Number(FILLER >> 12n) + from
  const hvaPage = Number(bench.memory.hva(0) >> 12n)
  for (let i = 0; i < count; i++) bench.channel.updatePages(first + i, first + i, hvaPage, 1)
}

/** Sends one frame of buffer page 0, answering each question. @returns what was asked, in words */
function answered(bench: Bench, ring: BenchRing): string[] {
  ring.push(BUFFERS, 72)
  ring.kick()
  const asked: string[] = []
  for (;;) {
    const questions = bench.questions()
    if (questions.length === 0) return asked
    for (const { iova } of questions) {
      const name = nameOf(ring, iova)
      if (asked.at(-1) !== name) asked.push(name)
      if (name === 'buffer') bench.mapBuffers(0, 1, 'read')
      else ring.mapPart(name)
    }
    bench.flush()
  }
}

function nameOf(ring: BenchRing, iova: bigint): 'desc' | 'avail' | 'used' | 'buffer' {
  if (iova < ring.desc || iova >= BUFFERS) return 'buffer'
  return iova < ring.avail ? 'desc' : iova < ring.used ? 'avail' : 'used'
}

test('a full table keeps everything; one more takes the oldest, which are the rings', () => {
  using bench = new Bench()
  const ring = bench.runningRing(TX)
  bench.mapBuffers(0, 1, 'read')
  bench.memory.view(BUFFERS_GPA, 72).set(frame(1, 60), 12)
  expect(answered(bench, ring)).toEqual([])

  const { limit } = bench.channel
  fill(bench, limit - 4)
  expect(answered(bench, ring)).toEqual([])

  fill(bench, 1, limit)
  // Each answer evicts what was inserted next: the hits of every frame have refreshed nothing.
  expect(answered(bench, ring)).toEqual(['desc', 'avail', 'used', 'buffer'])
  expect(answered(bench, ring)).toEqual([])
  expect(ring.completed).toBe(4)
})

test('an entry that is there already counts again', () => {
  using bench = new Bench()
  const ring = bench.runningRing(TX)
  bench.mapBuffers(0, 1, 'read')
  const { limit } = bench.channel
  fill(bench, limit - 4)
  const page = Number(FILLER >> 12n)
  bench.channel.updatePages(page, page, Number(bench.memory.hva(0) >> 12n), 1)
  expect(answered(bench, ring)[0]).toBe('desc')
})

test('the shadow evicts the entries that the kernel evicts, in its order', () => {
  using bench = new Bench()
  const ring = bench.runningRing(TX)
  const { limit } = bench.channel
  const shadow = new Shadow(limit)
  const pages = [ring.desc, ring.avail, ring.used].map((iova) => Number(iova >> 12n))
  for (const page of pages) shadow.insert(page, page + 15, 0, 1)
  const buffer = Number(BUFFERS >> 12n)
  for (let i = 0; i < 8; i++) {
    bench.mapBuffers(i, 1, 'read')
    shadow.insert(buffer + i, buffer + i, 0, 1)
  }
  // An INVALIDATE in the middle of the order makes room without an eviction.
  bench.invalidate(BUFFERS + BigInt(3 * PAGE), PAGE)
  shadow.remove(buffer + 3, buffer + 3)
  const filler = Number(FILLER >> 12n)
  fill(bench, limit - 10 + 5)
  for (let i = 0; i < limit - 10 + 5; i++) shadow.insert(filler + i, filler + i, 0, 1)
  expect(shadow.evictions).toBe(5)

  // What the shadow says is gone is asked for, and nothing else is. The rings went first.
  const kept = [0, 1, 2, 3, 4, 5, 6, 7].filter((i) => shadow.granted(buffer + i) !== 0)
  expect(kept).toEqual([2, 4, 5, 6, 7])
  ring.map()
  for (const page of pages) shadow.insert(page, page + 15, 0, 1)
  const now = [0, 1, 2, 3, 4, 5, 6, 7].filter((i) => shadow.granted(buffer + i) !== 0)
  expect(now).toEqual([6, 7])
  for (const page of now) ring.push(BUFFERS + BigInt(page * PAGE), 72)
  ring.kick()
  expect(bench.questions()).toEqual([])
  ring.push(BUFFERS + BigInt(5 * PAGE), 72)
  ring.kick()
  expect(bench.questions()).toEqual([{ iova: BUFFERS + BigInt(5 * PAGE), access: 1 }])
})

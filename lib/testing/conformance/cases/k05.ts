/** K5: the table evicts in the order of insertion; hits do not refresh, duplicates count. */
import { Shadow } from '../../../iotlb/shadow'
import { BUFFERS, BUFFERS_GPA, PAGE, TX, done } from '../bench'
import type { Bench, BenchRing } from '../bench'
import { fact } from '../case'
import type { Case } from '../case'
import { testFrame } from '../frames'
import { listed } from '../script'

/** Far from everything else. */
const FILLER = 0x9_0000_0000n
const RING_ENTRIES = 3

export const k05: readonly Case[] = [
  fact(
    'K5',
    'a full table keeps everything; one more takes the oldest, which are the rings',
    'nothing, full nothing, over desc avail used buffer, then nothing, completed 4',
    (open) => {
      const bench = open()
      const ring = bench.runningRing(TX)
      bench.mapBuffers(0, 1, 'read')
      bench.memory.view(BUFFERS_GPA, 72).set(testFrame(1), 12)
      const first = answered(bench, ring)
      const { limit } = bench.device
      fill(bench, limit - RING_ENTRIES - 1)
      const full = answered(bench, ring)
      // Each answer evicts what was inserted next: the hits of every frame have refreshed nothing.
      fill(bench, 1, limit)
      const over = answered(bench, ring)
      const after = answered(bench, ring)
      return `${first}, full ${full}, over ${over}, then ${after}, completed ${ring.completed}`
    },
  ),
  fact('K5', 'an entry that is there already counts again', 'desc', (open) => {
    const bench = open()
    const ring = bench.runningRing(TX)
    bench.mapBuffers(0, 1, 'read')
    fill(bench, bench.device.limit - RING_ENTRIES - 1)
    fill(bench, 1)
    return answered(bench, ring).split(' ')[0]
  }),
  fact(
    'K5',
    'the shadow evicts the entries that the device evicts, in its order',
    'evicted 5, kept 2 4 5 6 7, then 6 7, asked nothing, of 5 read 5',
    shadowAndDevice,
  ),
]

function shadowAndDevice(open: () => Bench): string {
  const bench = open()
  const ring = bench.runningRing(TX)
  const { limit } = bench.device
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
  const { evictions } = shadow

  // What the shadow says is gone is asked for, and nothing else is. The rings went first.
  const held = (): number[] =>
    [0, 1, 2, 3, 4, 5, 6, 7].filter((i) => shadow.granted(buffer + i) !== 0)
  const kept = held()
  ring.map()
  for (const page of pages) shadow.insert(page, page + 15, 0, 1)
  const now = held()
  for (const page of now) ring.offer(page)
  ring.kick()
  const asked = listed(bench.asked())
  ring.offer(5)
  ring.kick()
  const gone = listed(bench.asked())
  return `evicted ${evictions}, kept ${kept.join(' ')}, then ${now.join(' ')}, asked ${asked}, of 5 ${gone}`
}

function fill(bench: Bench, count: number, from = 0): void {
  for (let i = 0; i < count; i++) {
    done(bench.update(FILLER + BigInt((from + i) * PAGE), PAGE, 0, 'read'))
  }
}

/** Sends one frame of buffer page 0, answering each question. @returns what was asked */
function answered(bench: Bench, ring: BenchRing): string {
  ring.offer(0)
  ring.kick()
  const asked: string[] = []
  for (;;) {
    const questions = bench.questions()
    if (questions.length === 0) return listed(asked)
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

/** K8: NET_SET_BACKEND needs the used ring, asks to read it, and writes it. */
import { TX } from '../bench'
import type { Bench } from '../bench'
import { fact } from '../case'
import type { Case, OpenBench } from '../case'
import { testFrame } from '../frames'
import { listed } from '../script'

export const k08: readonly Case[] = [
  fact(
    'K8',
    'with nothing mapped: EFAULT, and one question, to read the used ring',
    'EFAULT, asked used 1, to read',
    (open) => {
      const bench = open()
      const started = bench.ring(TX).tryStart()
      const questions = bench.questions()
      const places = questions.map(({ iova, access }) => bench.place(iova, access))
      const ways = questions.map(({ access }) => (access === 1 ? 'to read' : 'to write'))
      return `${started}, asked ${listed(places)}, ${ways.join(' ')}`
    },
  ),
  fact(
    'K8',
    'with all three parts mapped it starts, and asks nothing',
    'nothing, errors 0',
    (open) => {
      const bench = open()
      const ring = bench.runningRing(TX)
      return `${asked(bench)}, errors ${ring.errors()}`
    },
  ),
  fact(
    'K8',
    'with the used ring alone it starts, and asks for the rest before any kick',
    'desc 1, then avail 1',
    (open) => {
      const bench = open()
      const ring = bench.ring(TX)
      ring.mapPart('used')
      ring.start()
      const first = asked(bench)
      ring.mapPart('desc')
      return `${first}, then ${asked(bench)}`
    },
  ),
  fact('K8', 'a used ring without permission: EFAULT, and no question', 'EFAULT, nothing', (open) =>
    usedRing(open, 'none'),
  ),
  fact('K8', 'a used ring to write only: EFAULT, and no question', 'EFAULT, nothing', (open) =>
    usedRing(open, 'write'),
  ),
  // Why our answer is what the tables grant, and why a used ring that is read-only is refused.
  fact(
    'K8',
    'a used ring to read only: written all the same, and then stops in silence',
    'ok, flags written, completed 0, asked nothing, errors 0',
    (open) => {
      const bench = open()
      const ring = bench.ring(TX)
      ring.map()
      bench.invalidate(ring.used, 1)
      ring.mapPart('used', 'read')
      ring.usedFlags = 0x55aa
      const started = ring.tryStart()
      bench.flush()
      const flags = ring.usedFlags === 0x55aa ? 'kept' : 'written'
      bench.mapBuffers(0, 1, 'read')
      ring.send(0, testFrame(1))
      ring.kick()
      const { completed } = ring
      const after = `completed ${completed}, asked ${asked(bench)}, errors ${ring.errors()}`
      return `${started}, flags ${flags}, ${after}`
    },
  ),
  fact('K8', 'the same backend again changes nothing', 'ok', (open) => {
    const bench = open()
    const ring = bench.runningRing(TX)
    bench.invalidate(ring.used, 1)
    return ring.tryStart()
  }),
]

function asked(bench: Bench): string {
  bench.flush()
  return listed(bench.asked())
}

function usedRing(open: OpenBench, access: 'none' | 'write'): string {
  const bench = open()
  const ring = bench.ring(TX)
  ring.map()
  bench.invalidate(ring.used, 1)
  ring.mapPart('used', access)
  return `${ring.tryStart()}, ${listed(bench.asked())}`
}

/** K6: the kernel keeps each question until it is read, however many there are. */
import { TX } from '../bench'
import { fact } from '../case'
import type { Case } from '../case'
import { testFrame } from '../frames'
import { listed } from '../script'

const KICKS = 200

export const k06: readonly Case[] = [
  {
    about: 'K6',
    name: 'each kick of a queue that waits asks again, and every question is kept',
    expected: [
      { seen: '200 questions, all read 0, completed 1, then nothing' },
      {
        seen: 'fewer questions, all read 0, completed 1, then nothing',
        where: 'with a limit of misses for each ring (69d4a65c4e92, 2026)',
      },
    ],
    observe: (open) => {
      const bench = open()
      const ring = bench.runningRing(TX)
      ring.send(0, testFrame(1))
      for (let i = 0; i < KICKS; i++) ring.kick()
      const questions = bench.asked()
      const kinds = [...new Set(questions)]
      bench.mapBuffers(0, 1, 'read')
      bench.flush()
      const kept = questions.length === KICKS ? String(KICKS) : 'fewer'
      const then = listed(bench.asked())
      return `${kept} questions, all ${listed(kinds)}, completed ${ring.completed}, then ${then}`
    },
  },
  fact(
    'K6',
    'a queue has one hole at a time: the second is asked when the first is filled',
    'read 0, read 1, read 2, read 3, completed 4',
    (open) => {
      const bench = open()
      const ring = bench.runningRing(TX)
      for (let i = 0; i < 4; i++) ring.send(i, testFrame(i))
      ring.kick()
      const asked: string[] = []
      for (let i = 0; i < 4; i++) {
        asked.push(listed(bench.asked()))
        bench.mapBuffers(i, 1, 'read')
        bench.flush()
      }
      return `${asked.join(', ')}, completed ${ring.completed}`
    },
  ),
]

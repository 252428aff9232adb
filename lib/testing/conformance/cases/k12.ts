/** K12: a ring part that one entry covers is looked up once; a part in pieces costs a walk each. */
import { BUFFERS, PAGE, TX, done } from '../bench'
import { fact } from '../case'
import type { Case } from '../case'
import { testFrame } from '../frames'
import { listed } from '../script'

/** Descriptor table 4 pages, available ring 1, used ring 3 (its end holds avail_event). */
const SIZE = 1024

export const k12: readonly Case[] = [
  fact(
    'K12',
    'a ring answered page by page asks once for each, one after the other, before it does anything',
    'desc 1, desc 1+0x1000, desc 1+0x2000, desc 1+0x3000, avail 1, used 1+0x1000, used 1+0x2000, completed 1',
    (open) => {
      const bench = open()
      const ring = bench.ring(TX, SIZE)
      const gpaOf = (iova: bigint): number => ring.gpa + Number(iova - ring.desc)
      done(bench.update(ring.used, PAGE, gpaOf(ring.used), 'readwrite'))
      ring.start()
      bench.flush()
      const asked: string[] = []
      for (let round = 0; round < 20; round++) {
        const questions = bench.questions()
        if (questions.length === 0) break
        // Kicks and answers can meet: the same question twice is one question.
        const places = new Set(questions.map(({ iova, access }) => bench.place(iova, access)))
        asked.push([...places].join(' and '))
        const at = questions[0].iova & ~0xfffn
        done(bench.update(at, PAGE, gpaOf(at), 'readwrite'))
        bench.flush()
      }
      bench.mapBuffers(0, 1, 'read')
      ring.send(0, testFrame(1))
      ring.kick()
      return `${asked.join(', ')}, completed ${ring.completed}`
    },
  ),
  fact(
    'K12',
    'a two-byte field in two entries is an error of the ring, and asks nothing',
    'completed 0, asked nothing, an error',
    (open) => {
      const bench = open()
      const ring = bench.ring(TX)
      ring.mapPart('desc')
      ring.mapPart('used')
      const gpa = ring.gpaOf('avail')
      done(bench.update(ring.avail, 3, gpa, 'read'))
      done(bench.update(ring.avail + 3n, PAGE, gpa + 3, 'read'))
      ring.start()
      bench.mapBuffers(0, 1, 'read')
      ring.push(BUFFERS, 72)
      ring.kick()
      const errors = ring.errors() > 0 ? 'an error' : 'no error'
      return `completed ${ring.completed}, asked ${listed(bench.asked())}, ${errors}`
    },
  ),
]

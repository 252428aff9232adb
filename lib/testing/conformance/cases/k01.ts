/** K1: an UPDATE wakes only misses that were already read. */
import { TX } from '../bench'
import { fact, scripted } from '../case'
import { testFrame } from '../frames'
import { listed } from '../script'
import type { Case } from '../case'

const PAGE_0 = { first: 0, last: 0, access: 'read' } as const

export const k01: readonly Case[] = [
  scripted(
    'K1',
    'read first: the UPDATE wakes the queue',
    [{ do: 'read', page: 0 }, { do: 'drain' }, { do: 'update', ...PAGE_0 }],
    [
      'read 0, wrote 0, errors 0/0',
      'read 0, wrote 0, errors 0/0, asked read 0',
      'read 1, wrote 0, errors 0/0',
    ],
  ),
  scripted(
    'K1',
    'unread: the queue sleeps although its page is there, until the same UPDATE comes again',
    [
      { do: 'read', page: 0 },
      { do: 'update', ...PAGE_0 },
      { do: 'drain' },
      { do: 'update', ...PAGE_0 },
    ],
    [
      'read 0, wrote 0, errors 0/0',
      'read 0, wrote 0, errors 0/0',
      'read 0, wrote 0, errors 0/0, asked read 0',
      'read 1, wrote 0, errors 0/0',
    ],
  ),
  scripted(
    'K1',
    'an UPDATE of another page wakes nobody',
    [
      { do: 'read', page: 0 },
      { do: 'drain' },
      { do: 'update', first: 1, last: 1, access: 'read' },
      { do: 'update', ...PAGE_0 },
    ],
    [
      'read 0, wrote 0, errors 0/0',
      'read 0, wrote 0, errors 0/0, asked read 0',
      'read 0, wrote 0, errors 0/0',
      'read 1, wrote 0, errors 0/0',
    ],
  ),
  scripted(
    'K1',
    'an INVALIDATE wakes nobody, and takes no question back',
    [
      { do: 'read', page: 0 },
      { do: 'drain' },
      { do: 'invalidate', first: 0, last: 0 },
      { do: 'update', ...PAGE_0 },
    ],
    [
      'read 0, wrote 0, errors 0/0',
      'read 0, wrote 0, errors 0/0, asked read 0',
      'read 0, wrote 0, errors 0/0',
      'read 1, wrote 0, errors 0/0',
    ],
  ),
  scripted(
    'K1',
    'a larger UPDATE that covers the page wakes the queue',
    [
      { do: 'read', page: 5 },
      { do: 'drain' },
      { do: 'update', first: 0, last: 15, access: 'read' },
    ],
    [
      'read 0, wrote 0, errors 0/0',
      'read 0, wrote 0, errors 0/0, asked read 5',
      'read 1, wrote 0, errors 0/0',
    ],
  ),
  scripted(
    'K1',
    'an answer without permission wakes, and the queue asks nothing',
    [
      { do: 'read', page: 0 },
      { do: 'drain' },
      { do: 'update', first: 0, last: 0, access: 'none' },
      { do: 'drain' },
    ],
    [
      'read 0, wrote 0, errors 0/0',
      'read 0, wrote 0, errors 0/0, asked read 0',
      'read 0, wrote 0, errors 0/1',
      'read 0, wrote 0, errors 0/1, asked nothing',
    ],
  ),
  fact(
    'K1',
    'what is left unread is not lost: read late, it can still be answered',
    'completed 0, asked read 0, completed 1',
    (open) => {
      const bench = open()
      const ring = bench.runningRing(TX)
      ring.send(0, testFrame(1))
      ring.kick()
      bench.mapBuffers(0, 1, 'read')
      bench.flush()
      const before = ring.completed
      const asked = listed(bench.asked())
      bench.mapBuffers(0, 1, 'read')
      bench.flush()
      return `completed ${before}, asked ${asked}, completed ${ring.completed}`
    },
  ),
]

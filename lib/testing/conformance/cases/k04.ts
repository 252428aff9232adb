/** K4: an INVALIDATE drops every entry that it touches, whole. */
import { BUFFERS, PAGE, TX, done } from '../bench'
import { fact, scripted } from '../case'
import { listed } from '../script'
import type { Case } from '../case'

const WIDE = { do: 'update', first: 0, last: 15, access: 'readwrite' } as const

export const k04: readonly Case[] = [
  scripted(
    'K4',
    'one page of sixteen: all sixteen go',
    [WIDE, { do: 'invalidate', first: 5, last: 5 }, { do: 'read', page: 0 }, { do: 'drain' }],
    [
      'read 0, wrote 0, errors 0/0',
      'read 0, wrote 0, errors 0/0',
      'read 0, wrote 0, errors 0/0',
      'read 0, wrote 0, errors 0/0, asked read 0',
    ],
  ),
  scripted(
    'K4',
    'what is beside it stays',
    [
      { do: 'update', first: 0, last: 3, access: 'read' },
      { do: 'update', first: 4, last: 7, access: 'read' },
      { do: 'invalidate', first: 4, last: 4 },
      { do: 'read', page: 3 },
      { do: 'read', page: 5 },
      { do: 'drain' },
    ],
    [
      'read 0, wrote 0, errors 0/0',
      'read 0, wrote 0, errors 0/0',
      'read 0, wrote 0, errors 0/0',
      'read 1, wrote 0, errors 0/0',
      'read 1, wrote 0, errors 0/0',
      'read 1, wrote 0, errors 0/0, asked read 5',
    ],
  ),
  scripted(
    'K4',
    'nothing there, nothing happens',
    [{ do: 'invalidate', first: 20, last: 30 }, WIDE, { do: 'read', page: 15 }, { do: 'drain' }],
    [
      'read 0, wrote 0, errors 0/0',
      'read 0, wrote 0, errors 0/0',
      'read 1, wrote 0, errors 0/0',
      'read 1, wrote 0, errors 0/0, asked nothing',
    ],
  ),
  scripted(
    'K4',
    'a range that reaches over several',
    [
      { do: 'update', first: 0, last: 3, access: 'read' },
      { do: 'update', first: 4, last: 7, access: 'read' },
      { do: 'update', first: 8, last: 11, access: 'read' },
      { do: 'invalidate', first: 3, last: 8 },
      { do: 'read', page: 11 },
      { do: 'drain' },
    ],
    [
      'read 0, wrote 0, errors 0/0',
      'read 0, wrote 0, errors 0/0',
      'read 0, wrote 0, errors 0/0',
      'read 0, wrote 0, errors 0/0',
      'read 0, wrote 0, errors 0/0',
      'read 0, wrote 0, errors 0/0, asked read 11',
    ],
  ),
  fact('K4', 'a single byte is enough to drop an entry', 'read 0', (open) => {
    const bench = open()
    const ring = bench.runningRing(TX)
    bench.mapBuffers(0, 16, 'read')
    done(bench.invalidate(BUFFERS + BigInt(9 * PAGE + 7), 1))
    ring.offer(0)
    ring.kick()
    return listed(bench.asked())
  }),
]

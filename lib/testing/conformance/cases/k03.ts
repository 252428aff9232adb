/** K3: of overlapping entries the one with the lower start counts, of equal starts the older. */
import { BUFFERS, BUFFERS_GPA, PAGE, TX, done } from '../bench'
import { fact, scripted } from '../case'
import { frameNumber, testFrame } from '../frames'
import { listed } from '../script'
import type { Case } from '../case'

export const k03: readonly Case[] = [
  scripted(
    'K3',
    'an upgrade by UPDATE alone does nothing',
    [
      { do: 'update', first: 1, last: 1, access: 'read' },
      { do: 'update', first: 1, last: 1, access: 'readwrite' },
      { do: 'write', page: 1 },
      { do: 'kick', queue: 'write' },
    ],
    [
      'read 0, wrote 0, errors 0/0',
      'read 0, wrote 0, errors 0/0',
      'read 0, wrote 0, errors 1/0',
      'read 0, wrote 0, errors 2/0',
    ],
  ),
  scripted(
    'K3',
    'a wider entry that starts lower is found first',
    [
      { do: 'update', first: 1, last: 1, access: 'read' },
      { do: 'write', page: 1 },
      { do: 'update', first: 0, last: 2, access: 'readwrite' },
      { do: 'kick', queue: 'write' },
    ],
    [
      'read 0, wrote 0, errors 0/0',
      'read 0, wrote 0, errors 1/0',
      'read 0, wrote 0, errors 1/0',
      'read 0, wrote 1, errors 1/0',
    ],
  ),
  scripted(
    'K3',
    'one that starts at the same page is found second',
    [
      { do: 'update', first: 1, last: 1, access: 'read' },
      { do: 'update', first: 1, last: 3, access: 'readwrite' },
      { do: 'write', page: 1 },
      { do: 'write', page: 2 },
    ],
    [
      'read 0, wrote 0, errors 0/0',
      'read 0, wrote 0, errors 0/0',
      'read 0, wrote 0, errors 1/0',
      'read 0, wrote 0, errors 2/0',
    ],
  ),
  scripted(
    'K3',
    'an INVALIDATE drops all that overlap',
    [
      { do: 'update', first: 1, last: 1, access: 'read' },
      { do: 'update', first: 0, last: 2, access: 'readwrite' },
      { do: 'invalidate', first: 1, last: 1 },
      { do: 'write', page: 0 },
      { do: 'drain' },
    ],
    [
      'read 0, wrote 0, errors 0/0',
      'read 0, wrote 0, errors 0/0',
      'read 0, wrote 0, errors 0/0',
      'read 0, wrote 0, errors 0/0',
      'read 0, wrote 0, errors 0/0, asked write 0',
    ],
  ),
  fact(
    'K3',
    'the older of two equal entries is where bytes come from',
    'asked read 1, completed 3, frames 2 1 1',
    (open) => {
      const bench = open()
      const ring = bench.runningRing(TX)
      done(bench.update(BUFFERS, PAGE, BUFFERS_GPA, 'read'))
      done(bench.update(BUFFERS, PAGE, BUFFERS_GPA + PAGE, 'read'))
      ring.send(1, testFrame(2))
      ring.send(0, testFrame(1))
      ring.offer(0)
      ring.kick()
      const asked = listed(bench.asked())
      bench.mapBuffers(1, 1, 'read')
      bench.flush()
      const frames = bench.device.sent().map(frameNumber).join(' ')
      return `asked ${asked}, completed ${ring.completed}, frames ${frames}`
    },
  ),
]

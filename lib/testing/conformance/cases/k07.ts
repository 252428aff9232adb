/** K7: the same MISS is queued several times: drain, coalesce by page, then answer. */
import { scripted } from '../case'
import type { Case } from '../case'

export const k07: readonly Case[] = [
  scripted(
    'K7',
    'three passes, three questions; one answer serves them all',
    [
      { do: 'read', page: 0 },
      { do: 'kick', queue: 'read' },
      { do: 'kick', queue: 'read' },
      { do: 'drain' },
      { do: 'update', first: 0, last: 0, access: 'read' },
      { do: 'drain' },
    ],
    [
      'read 0, wrote 0, errors 0/0',
      'read 0, wrote 0, errors 0/0',
      'read 0, wrote 0, errors 0/0',
      'read 0, wrote 0, errors 0/0, asked read 0 read 0 read 0',
      'read 1, wrote 0, errors 0/0',
      'read 1, wrote 0, errors 0/0, asked nothing',
    ],
  ),
]

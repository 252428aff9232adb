/** K2: a page with too little permission asks nothing; the error eventfd ticks, and that is all. */
import { scripted } from '../case'
import type { Case } from '../case'

export const k02: readonly Case[] = [
  scripted(
    'K2',
    'a write to a page that may be read',
    [
      { do: 'update', first: 0, last: 0, access: 'read' },
      { do: 'write', page: 0 },
      { do: 'drain' },
      { do: 'kick', queue: 'write' },
      { do: 'drain' },
    ],
    [
      'read 0, wrote 0, errors 0/0',
      'read 0, wrote 0, errors 1/0',
      'read 0, wrote 0, errors 1/0, asked nothing',
      'read 0, wrote 0, errors 2/0',
      'read 0, wrote 0, errors 2/0, asked nothing',
    ],
  ),
  scripted(
    'K2',
    'a read of a page that may be written',
    [
      { do: 'update', first: 0, last: 0, access: 'write' },
      { do: 'read', page: 0 },
      { do: 'drain' },
    ],
    [
      'read 0, wrote 0, errors 0/0',
      'read 0, wrote 0, errors 0/1',
      'read 0, wrote 0, errors 0/1, asked nothing',
    ],
  ),
  scripted(
    'K2',
    'INVALIDATE, UPDATE and a kick mend it',
    [
      { do: 'update', first: 0, last: 0, access: 'read' },
      { do: 'write', page: 0 },
      { do: 'invalidate', first: 0, last: 0 },
      { do: 'update', first: 0, last: 0, access: 'readwrite' },
      { do: 'drain' },
      { do: 'kick', queue: 'write' },
    ],
    [
      'read 0, wrote 0, errors 0/0',
      'read 0, wrote 0, errors 1/0',
      'read 0, wrote 0, errors 1/0',
      'read 0, wrote 0, errors 1/0',
      'read 0, wrote 0, errors 1/0, asked nothing',
      'read 0, wrote 1, errors 1/0',
    ],
  ),
  scripted(
    'K2',
    'what is granted in full is not touched by it: the other queue goes on',
    [
      { do: 'update', first: 0, last: 0, access: 'read' },
      { do: 'write', page: 0 },
      { do: 'read', page: 0 },
    ],
    ['read 0, wrote 0, errors 0/0', 'read 0, wrote 0, errors 1/0', 'read 1, wrote 0, errors 1/0'],
  ),
  scripted(
    'K2',
    'an INVALIDATE alone turns silence into a question, at the next kick',
    [
      { do: 'update', first: 0, last: 0, access: 'read' },
      { do: 'write', page: 0 },
      { do: 'invalidate', first: 0, last: 0 },
      { do: 'drain' },
      { do: 'kick', queue: 'write' },
      { do: 'drain' },
      { do: 'update', first: 0, last: 0, access: 'write' },
    ],
    [
      'read 0, wrote 0, errors 0/0',
      'read 0, wrote 0, errors 1/0',
      'read 0, wrote 0, errors 1/0',
      'read 0, wrote 0, errors 1/0, asked nothing',
      'read 0, wrote 0, errors 1/0',
      'read 0, wrote 0, errors 1/0, asked write 0',
      'read 0, wrote 1, errors 1/0',
    ],
  ),
]

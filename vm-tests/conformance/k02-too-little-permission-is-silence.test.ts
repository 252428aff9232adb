/** K2: a page with too little permission asks nothing; the error eventfd ticks, and that is all. */
import { expect, test } from 'vitest'
import { FakeDevice, KernelDevice, tell } from '../support/operations'
import type { Operation } from '../support/operations'

const SCRIPTS: readonly (readonly [string, readonly Operation[]])[] = [
  [
    'a write to a page that may be read',
    [
      { do: 'update', first: 0, last: 0, access: 'read' },
      { do: 'write', page: 0 },
      { do: 'drain' },
      { do: 'kick', queue: 'write' },
      { do: 'drain' },
    ],
  ],
  [
    'a read of a page that may be written',
    [
      { do: 'update', first: 0, last: 0, access: 'write' },
      { do: 'read', page: 0 },
      { do: 'drain' },
    ],
  ],
  [
    'INVALIDATE, UPDATE and a kick mend it',
    [
      { do: 'update', first: 0, last: 0, access: 'read' },
      { do: 'write', page: 0 },
      { do: 'invalidate', first: 0, last: 0 },
      { do: 'update', first: 0, last: 0, access: 'readwrite' },
      { do: 'drain' },
      { do: 'kick', queue: 'write' },
    ],
  ],
  [
    'what is granted in full is not touched by it: the other queue goes on',
    [
      { do: 'update', first: 0, last: 0, access: 'read' },
      { do: 'write', page: 0 },
      { do: 'read', page: 0 },
    ],
  ],
  [
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
  ],
]

test.each(SCRIPTS)('%s', async (_, script) => {
  const kernel = await KernelDevice.open()
  try {
    const told = tell(kernel, script)
    expect(tell(new FakeDevice(), script)).toEqual(told)
    expect(told).toMatchSnapshot()
  } finally {
    kernel.close()
  }
})

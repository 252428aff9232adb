/**
 * K1 to K4 and K7 together: whatever is asked, answered, taken back and kicked in whatever order,
 * kernel and fake tell the same.
 */
import fc from 'fast-check'
import { afterAll, beforeAll, expect, test } from 'vitest'
import type { Access } from '../../lib/address'
import { FakeDevice, KernelDevice, tellOnce } from '../support/operations'
import type { Operation } from '../support/operations'

const SEED = 20160615
const RUNS = 12
const PAGES = 6

const page = fc.nat(PAGES - 1)
const access = fc.constantFrom<Access>('none', 'read', 'write', 'readwrite')
const range = fc
  .tuple(page, page)
  .map(([a, b]) => ({ first: Math.min(a, b), last: Math.max(a, b) }))
const operation: fc.Arbitrary<Operation> = fc.oneof(
  { weight: 3, arbitrary: page.map((page) => ({ do: 'read', page }) as const) },
  { weight: 3, arbitrary: page.map((page) => ({ do: 'write', page }) as const) },
  {
    weight: 4,
    arbitrary: fc
      .tuple(range, access)
      .map(([{ first, last }, access]) => ({ do: 'update', first, last, access }) as const),
  },
  { weight: 2, arbitrary: range.map((range) => ({ do: 'invalidate', ...range }) as const) },
  { weight: 3, arbitrary: fc.constant({ do: 'drain' } as const) },
  {
    weight: 2,
    arbitrary: fc
      .constantFrom<'read' | 'write'>('read', 'write')
      .map((queue) => ({ do: 'kick', queue }) as const),
  },
)

const devices: KernelDevice[] = []
beforeAll(async () => {
  for (let i = 0; i < RUNS; i++) devices.push(await KernelDevice.open())
})
afterAll(() => {
  for (const device of devices.splice(0)) device.close()
})

test('forty operations in any order', () => {
  const script = fc.array(operation, { minLength: 20, maxLength: 40 })
  const scripts = fc.sample(script, { seed: SEED, numRuns: RUNS })
  for (const [i, operations] of scripts.entries()) {
    const told = tellOnce(devices[i], operations)
    expect(tellOnce(new FakeDevice(), operations), `script ${i}`).toEqual(told)
  }
})

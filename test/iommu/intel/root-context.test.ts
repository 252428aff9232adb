import { describe, expect, it } from 'vitest'
import { MiB } from '../../../lib/address'
import { capabilities } from '../../../lib/iommu/intel/capabilities'
import { CODE } from '../../../lib/iommu/intel/faults'
import { LegacyContext } from '../../../lib/iommu/intel/root-context'
import { GuestMemory } from '../../../lib/memory/guest-memory'

const ROOT = 0x1000
const CONTEXT = 4 * MiB + 0x2000
const SOURCE = 0x18
const ENTRY = CONTEXT + SOURCE * 16

/** The root table in one region, the context table in another. */
function tables(): GuestMemory {
  const memory = GuestMemory.fromRegions([
    { gpa: 0, bytes: 1 * MiB },
    { gpa: 4 * MiB, bytes: 1 * MiB },
  ])
  memory.setU64(ROOT, BigInt(CONTEXT) | 1n)
  memory.setU64(ENTRY, 0x5001n)
  memory.setU64(ENTRY + 8, 0x702n)
  return memory
}

describe('a lookup after the same one', () => {
  it('answers the same without working it out again', () => {
    using memory = tables()
    const context = new LegacyContext(memory, capabilities({}))
    for (let i = 0; i < 3; i++) {
      expect(context.lookup(1, SOURCE, false)).toBe(0)
      expect([context.tableRoot, context.levels, context.domain]).toEqual([5, 4, 7])
    }
  })

  const changes: readonly (readonly [
    string,
    number,
    bigint,
    (context: LegacyContext) => number,
  ])[] = [
    ['the tables', ENTRY, 0x6001n, ({ tableRoot }) => tableRoot],
    ['the upper word of the tables', ENTRY, 0x1_0000_5001n, ({ tableRoot }) => tableRoot],
    ['the domain and the levels', ENTRY + 8, 0x901n, ({ domain, levels }) => domain * 10 + levels],
  ]
  it.each(changes)('sees %s that changed, with nothing invalidated', (_, at, value, told) => {
    using memory = tables()
    const context = new LegacyContext(memory, capabilities({}))
    context.lookup(1, SOURCE, false)
    const before = told(context)
    memory.setU64(at, value)
    expect(context.lookup(1, SOURCE, false)).toBe(0)
    const fresh = new LegacyContext(memory, capabilities({}))
    fresh.lookup(1, SOURCE, false)
    expect(told(context)).toBe(told(fresh))
    expect(told(context)).not.toBe(before)
  })

  it('sees an entry that is gone, reserved bits, and what comes back', () => {
    using memory = tables()
    const context = new LegacyContext(memory, capabilities({}))
    const look = (): number => context.lookup(1, SOURCE, false)
    expect(look()).toBe(0)
    memory.setU64(ENTRY, 0n)
    expect([look(), look()]).toEqual([CODE['context-not-present'], CODE['context-not-present']])
    memory.setU64(ENTRY, 0x5001n)
    expect(look()).toBe(0)
    memory.setU64(ENTRY + 8, 0x702n | (1n << 63n))
    expect(look()).toBe(CODE['context-reserved'])
    memory.setU64(ENTRY + 8, 0x702n)
    memory.setU64(ROOT + 8, 1n)
    expect(look()).toBe(CODE['root-reserved'])
    memory.setU64(ROOT + 8, 0n)
    memory.setU64(ROOT, 0n)
    expect(look()).toBe(CODE['root-not-present'])
  })

  it('is another one for another table, requester or kind of request', () => {
    using memory = tables()
    const context = new LegacyContext(memory, capabilities({}))
    expect(context.lookup(1, SOURCE, false)).toBe(0)
    expect(context.lookup(1, SOURCE, true)).toBe(CODE['type-blocked'])
    expect(context.lookup(1, SOURCE + 1, false)).toBe(CODE['context-not-present'])
    expect(context.lookup(2, SOURCE, false)).toBe(CODE['root-not-present'])
    expect(context.lookup(1, SOURCE, false)).toBe(0)
  })

  it('finds nothing in memory that was taken out, and what is there when some is put back', () => {
    using memory = tables()
    const context = new LegacyContext(memory, capabilities({}))
    expect(context.lookup(1, SOURCE, false)).toBe(0)
    memory.remove(4 * MiB)
    expect(context.lookup(1, SOURCE, false)).toBe(CODE['context-access'])
    memory.add({ gpa: 4 * MiB, bytes: 1 * MiB })
    expect(context.lookup(1, SOURCE, false)).toBe(CODE['context-not-present'])
  })
})

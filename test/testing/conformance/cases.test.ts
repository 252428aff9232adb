import { describe, expect, it } from 'vitest'
import { examined, fact } from '../../../lib/testing/conformance/case'
import { CASES } from '../../../lib/testing/conformance/cases'
import { FAKE_BUGS } from '../../../lib/testing/fake-iotlb'
import type { FakeBug } from '../../../lib/testing/fake-iotlb'
import { FakeVhostNet } from '../../../lib/testing/fake-vhost-net'

describe('the fake shows what a right kernel shows', () => {
  it.each(CASES)('$about: $name', (one) => {
    const { verdict, seen } = examined(one, () => new FakeVhostNet())
    expect(one.expected.map((outcome) => outcome.seen)).toContain(seen)
    // It works in turns, so nothing is ever in the middle of frames.
    expect(verdict).toBe(one.about === 'K11' ? 'differs' : 'right')
  })
})

/** The case that finds each mistake, by a part of its name, and what it says then. */
const FOUND_BY: Readonly<Record<FakeBug, readonly [string, 'wrong' | 'affected']>> = {
  'zero-size-update': ['an UPDATE of size 0 is refused', 'wrong'],
  'translation-range': ['at the end of the address space', 'wrong'],
  'cache-outlives-move': ['a running ring that is moved', 'affected'],
  'cache-outlives-table': ['SET_FEATURES with the same bits', 'wrong'],
  'wake-misses-last-byte': ['wakes who asked for its last byte', 'wrong'],
  'short-write': ['a write of fewer than 40 bytes', 'wrong'],
  'read-leaks-padding': ['sizes and host addresses of a question are zero', 'wrong'],
  'log-by-iova': ['the dirty log is kept', 'wrong'],
  'messages-outlive-backend': ['SET_BACKEND -1 drops questions that nobody read', 'wrong'],
  'rings-checked-as-host-addresses': ['a running ring can be placed at any iova', 'wrong'],
  'few-buffers-livelock': ['a frame with too few buffers', 'affected'],
  'table-outlives-feature': ['clearing ACCESS_PLATFORM drops the IOTLB', 'affected'],
  'rings-outlive-feature': ['addresses before features', 'affected'],
}

describe('a mistake that a kernel had, put back into the fake, is found', () => {
  const bugs = Object.keys(FAKE_BUGS) as FakeBug[]
  it.each(bugs)('%s', (bug) => {
    const [name, verdict] = FOUND_BY[bug]
    const one = CASES.filter((each) => each.name.includes(name))
    expect(one).toHaveLength(1)
    expect(examined(one[0], () => new FakeVhostNet()).verdict).toBe('right')
    expect(examined(one[0], () => new FakeVhostNet({ bugs: [bug] })).verdict).toBe(verdict)
  })
})

describe('a case', () => {
  it('has a name of its own', () => {
    const names = CASES.map(({ name }) => name)
    expect(new Set(names).size).toBe(names.length)
  })

  it.each(['K1', 'K2', 'K3', 'K4', 'K5', 'K6', 'K7', 'K8', 'K9', 'K10', 'K11', 'K12'])(
    'is there for %s',
    (about) => {
      expect(CASES.some((one) => one.about === about)).toBe(true)
    },
  )

  it('that throws is seen as wrong, and its devices are closed', () => {
    const devices: FakeVhostNet[] = []
    const throwing = fact('K0', 'throws', 'never', (open) => {
      open()
      throw new Error('no luck')
    })
    const finding = examined(throwing, () => {
      const made = new FakeVhostNet()
      devices.push(made)
      return made
    })
    expect(finding).toMatchObject({ verdict: 'wrong', seen: 'no luck' })
    expect(devices.map(({ memory }) => memory.closed)).toEqual([true])
  })
})

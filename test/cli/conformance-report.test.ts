import { describe, expect, it } from 'vitest'
import { report, sound } from '../../lib/cli/conformance-report'
import type { Examined } from '../../lib/cli/conformance-report'
import type { Finding } from '../../lib/testing/conformance/case'

const right: Finding = { about: 'K1', name: 'wakes', verdict: 'right', seen: 'yes' }
const other: Finding = { about: 'K10', name: 'zero', verdict: 'right', seen: '72' }
const differs: Finding = { ...other, verdict: 'differs', seen: 'EINVAL', where: 'from 7.3 on' }
const wrong: Finding = { ...other, verdict: 'wrong', seen: 'a\nb' }

const kernel = (name: string, ...findings: Finding[]): Examined => ({
  kernel: name,
  findings,
  detected: [{ what: 'limit', found: '2048', so: 'the shadow knows' }],
})

describe('the table of kernels and cases', () => {
  const text = report([kernel('Linux 1', right, other), kernel('Linux 2', right, differs)])

  it('has a column for each kernel and a line for each case', () => {
    const lines = text.split('\n')
    expect(lines[0].split(/\s{2,}/)).toEqual(['Linux 1', 'Linux 2'])
    expect(lines[1].trim().split(/\s+/)).toEqual(['ok', 'ok', 'K1', 'wakes'])
    expect(lines[2].trim().split(/\s+/)).toEqual(['ok', 'differs', 'K10', 'zero'])
  })

  it('says of a difference what was seen, and where that is documented', () => {
    expect(text).toContain('Linux 2: 1 ok, 1 differs, 0 affected, 0 WRONG')
    expect(text).toContain('seen: EINVAL\n    as from 7.3 on')
  })

  it('lists what is found at start', () => {
    expect(text).toContain('limit  2048: the shadow knows')
  })
})

describe('random sequences', () => {
  const result = { seed: 7, sequences: 3, steps: 60, kinds: { kick: 20, drain: 40 }, unsteady: 1 }
  const same = { ...kernel('Linux', right), fuzz: { ...result, differences: [] } }
  const difference = { sequence: 2, text: 'kick tx\n  tx 1/0\n', other: 'tx 0/0' }
  const other = { ...same, fuzz: { ...result, differences: [difference] } }

  it('are counted, by kinds of steps, the commonest first', () => {
    expect(report([same])).toContain('3 random sequences from seed 7, 60 steps, 0 differ')
    expect(report([same])).toContain('drain 40, kick 20')
    expect(sound(same)).toBe(true)
  })

  it('that differ are shown, and make a kernel unsound', () => {
    expect(report([other])).toContain('    kick tx\n      tx 1/0')
    expect(report([other])).toContain('the fake says "tx 0/0"')
    expect(sound(other)).toBe(false)
  })
})

describe('a kernel', () => {
  it('is sound with documented differences, and not without documents', () => {
    expect(sound(kernel('Linux', right, differs))).toBe(true)
    const broken = kernel('Linux', right, wrong)
    expect(sound(broken)).toBe(false)
    expect(report([broken])).toContain('documented nowhere')
  })
})

import { readFileSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import {
  corpusText,
  fuzz,
  parseCorpus,
  shrunk,
  tellings,
} from '../../../lib/testing/conformance/fuzz/fuzz'
import { Random, sequence } from '../../../lib/testing/conformance/fuzz/random'
import { parseStep, stepText } from '../../../lib/testing/conformance/fuzz/step'
import type { FakeBug } from '../../../lib/testing/fake-iotlb'
import { FakeVhostNet } from '../../../lib/testing/fake-vhost-net'

const CORPUS = join(__dirname, '../../corpus/vhost-net')
const SEED = 20170131

const devices: FakeVhostNet[] = []
afterAll(() => {
  for (const device of devices) device[Symbol.dispose]()
})
function made(...bugs: FakeBug[]): FakeVhostNet {
  const device = new FakeVhostNet({ bugs })
  devices.push(device)
  return device
}

describe('a sequence', () => {
  const steps = Array.from({ length: 100 }, (_, i) => sequence(new Random(i))).flat()

  it('is text, and what is read from it is the same', () => {
    expect(steps.map((step) => parseStep(stepText(step)))).toEqual(steps)
  })

  it('has all kinds of steps', () => {
    const kinds = new Set(steps.map((step) => step.do))
    expect(kinds.size).toBe(17)
  })

  it('follows from its seed', () => {
    expect(sequence(new Random(7))).toEqual(sequence(new Random(7)))
    expect(sequence(new Random(7))).not.toEqual(sequence(new Random(8)))
  })

  it('is kept with what was told, and read back', () => {
    const some = sequence(new Random(3))
    const told = tellings(made(), some)
    expect(parseCorpus(`# a remark\n${corpusText(some, told)}`)).toEqual({ steps: some, told })
  })

  it('that cannot be read is refused', () => {
    for (const line of ['jump', 'offer middle 1', 'kick', 'update here 1 read', 'receive -1']) {
      expect(() => parseStep(line), line).toThrow(RangeError)
    }
    expect(() => parseCorpus('drain\n')).toThrow(RangeError)
  })
})

describe('shrinking', () => {
  it('leaves what is needed, in its order', () => {
    const all = Array.from({ length: 40 }, (_, i) => i)
    const fails = (part: readonly number[]): boolean => part.includes(5) && part.includes(33)
    expect(shrunk(all, fails)).toEqual([5, 33])
  })

  it('leaves all where all is needed', () => {
    expect(shrunk([1, 2, 3], (part) => part.length === 3)).toEqual([1, 2, 3])
  })
})

describe('two devices under the same sequences', () => {
  it('that are the same tell the same', () => {
    const { differences, steps, unsteady } = fuzz(made(), made(), SEED, 60)
    expect({ differences, unsteady }).toEqual({ differences: [], unsteady: 0 })
    expect(steps).toBeGreaterThan(600)
  })

  /** Those that sequences of this kind come across, and how many steps show them. */
  it.each([
    ['cache-outlives-table', 12],
    ['wake-misses-last-byte', 12],
    ['messages-outlive-backend', 12],
  ] as const)('differ by %s, in at most %i steps', (bug, most) => {
    const { differences } = fuzz(made(), made(bug), SEED, 150)
    expect(differences.length).toBeGreaterThan(0)
    const lengths = differences.map(({ text }) => parseCorpus(text).steps.length)
    expect(Math.min(...lengths)).toBeLessThanOrEqual(most)
  })
})

describe('of a kept sequence', () => {
  const files = readdirSync(CORPUS).filter((file) => file.endsWith('.txt'))
  it.each(files)(
    'the fake tells what is kept with it, and something else with its mistake: %s',
    (file) => {
      const text = readFileSync(join(CORPUS, file), 'utf8')
      const { steps, told } = parseCorpus(text)
      expect(tellings(made(), steps)).toEqual(told)
      const bug = /^# Shows ([a-z-]+):/.exec(text)?.[1]
      if (bug !== undefined) expect(tellings(made(bug as FakeBug), steps)).not.toEqual(told)
    },
  )
})

/**
 * K1 to K4 and K7 together: whatever is asked, answered, taken back and kicked in whatever order,
 * the fake that the miss loop is tested with and the one with rings tell the same. The second is
 * compared with the kernel (`vm-tests/conformance`), so both are.
 */
import fc from 'fast-check'
import { expect, test } from 'vitest'
import { iovaRange } from '../../../lib/address'
import type { Access, Hva } from '../../../lib/address'
import { BUFFERS, BUFFERS_GPA, Bench, PAGE, RX, TX } from '../../../lib/testing/conformance/bench'
import { ScriptedBench, listed } from '../../../lib/testing/conformance/script'
import type { Operation, ScriptedDevice, Telling } from '../../../lib/testing/conformance/script'
import { FakeVhost } from '../../../lib/testing/fake-channel'
import { FakeVhostNet } from '../../../lib/testing/fake-vhost-net'

const SEED = 20160615
const RUNS = 150
const PAGES = 6
const QUEUES = { write: RX, read: TX } as const

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

/** The fake without rings: it is told what the device accesses. */
class ScriptedFake implements ScriptedDevice {
  readonly #fake = new FakeVhost()
  readonly #made: { readonly kind: 'read' | 'write'; readonly state: () => string }[] = []

  constructor() {
    for (const queue of [RX, TX]) {
      const page = 0x10000 + queue * 0x1000
      for (const [i, access] of ([1, 1, 3] as const).entries()) {
        this.#fake.updatePages(page + i * 16, page + i * 16 + 15, 0x1000, access)
      }
      const at = (part: number): { at: bigint; length: number } => ({
        at: BigInt(page + part * 16) << 12n,
        length: 4096,
      })
      this.#fake.setBackend(queue, { desc: at(0), avail: at(1), used: at(2) })
    }
  }

  perform(operation: Operation): Telling {
    const fake = this.#fake
    const errors = (): [number, number] => [fake.errors(RX), fake.errors(TX)]
    const state = (): Telling => ({
      read: this.#count('read'),
      wrote: this.#count('write'),
      errors: errors(),
    })
    switch (operation.do) {
      case 'update': {
        const hva = BigInt(BUFFERS_GPA + operation.first * PAGE) as Hva
        fake.update(buffers(operation), hva, operation.access)
        break
      }
      case 'invalidate':
        fake.invalidate(buffers(operation))
        break
      case 'read':
      case 'write': {
        const { do: kind, page } = operation
        const queue = QUEUES[kind]
        const made = fake.access(BUFFERS + BigInt(page * PAGE), kind, { queue })
        this.#made.push({ kind, state: () => made.state })
        break
      }
      case 'kick':
        fake.kick(QUEUES[operation.queue])
        break
      case 'drain':
        return { ...state(), asked: this.#drained() }
    }
    return state()
  }

  #drained(): string[] {
    const all: string[] = []
    for (let read = this.#fake.drain(); read.length > 0; read = this.#fake.drain()) {
      for (const { iova, access } of read) {
        const page = (iova - BUFFERS) / BigInt(PAGE)
        all.push(`${['nothing', 'read', 'write', 'both'][access]} ${page.toString()}`)
      }
    }
    return all
  }

  #count(kind: 'read' | 'write'): number {
    return this.#made.filter((made) => made.kind === kind && made.state() === 'done').length
  }
}

function buffers({ first, last }: { readonly first: number; readonly last: number }) {
  const page = Number(BUFFERS >> 12n)
  return iovaRange(page + first, page + last)
}

/**
 * What is told, without how often: a queue that is woken twice at a time makes one pass or two, so
 * only whether a question or an error comes counts.
 */
function tellOnce(device: ScriptedDevice, script: readonly Operation[]): string[] {
  let ticked: readonly [number, number] = [0, 0]
  return script.map((operation) => {
    const { read, wrote, errors, asked } = device.perform(operation)
    const fresh = errors.map((count, queue) => (count > ticked[queue] ? 'yes' : 'no'))
    ticked = errors
    const questions = asked === undefined ? '' : `, asked ${listed([...new Set(asked)])}`
    const did = JSON.stringify(operation)
    return `${did}: read ${read}, wrote ${wrote}, errors ${fresh.join('/')}${questions}`
  })
}

test('forty operations in any order', () => {
  const script = fc.array(operation, { minLength: 20, maxLength: 40 })
  fc.assert(
    fc.property(script, (operations) => {
      using bench = new Bench(new FakeVhostNet())
      const told = tellOnce(new ScriptedBench(bench), operations)
      expect(tellOnce(new ScriptedFake(), operations)).toEqual(told)
    }),
    { seed: SEED, numRuns: RUNS },
  )
})

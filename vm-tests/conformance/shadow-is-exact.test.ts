/**
 * The shadow's promise: after whatever a guest maps, unmaps and lets its device ask, the kernel
 * holds what the shadow says, page by page: nothing more (R3), and nothing less (no needless miss).
 */
import fc from 'fast-check'
import { expect, test } from 'vitest'
import { MissHandler } from '../../lib/iotlb/miss-handler'
import type { MissHandlerOptions } from '../../lib/iotlb/miss-handler'
import { exact, merged } from '../../lib/iotlb/reply-policy'
import { PageTranslation } from '../../lib/memory/address-space'
import { FakeAddressSpace } from '../../lib/testing/fake-address-space'
import { BUFFERS, BUFFERS_GPA, FEATURES, PAGE, TX } from '../../lib/testing/conformance/bench'
import type { BenchRing } from '../../lib/testing/conformance/bench'
import { LoopBench } from '../support/loop-bench'

const SEED = 20161010
const PAGES = 16
const FIRST = Number(BUFFERS >> 12n)

type Step =
  | { readonly do: 'map'; readonly first: number; readonly last: number; readonly access: 1 | 3 }
  | { readonly do: 'unmap'; readonly first: number; readonly last: number }
  | { readonly do: 'access'; readonly page: number }
  | { readonly do: 'preload'; readonly first: number; readonly last: number }
  | { readonly do: 'features' }

const page = fc.nat(PAGES - 1)
const range = fc
  .tuple(page, page)
  .map(([a, b]) => ({ first: Math.min(a, b), last: Math.max(a, b) }))
const access = fc.constantFrom<1 | 3>(1, 3)
const step: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 3,
    arbitrary: fc
      .tuple(range, access)
      .map(([at, access]) => ({ do: 'map', ...at, access }) as const),
  },
  { weight: 2, arbitrary: range.map((at) => ({ do: 'unmap', ...at }) as const) },
  { weight: 5, arbitrary: page.map((page) => ({ do: 'access', page }) as const) },
  { weight: 1, arbitrary: range.map((at) => ({ do: 'preload', ...at }) as const) },
  { weight: 1, arbitrary: fc.constant({ do: 'features' } as const) },
)

const POLICIES: readonly (readonly [string, Partial<MissHandlerOptions>])[] = [
  ['exact', { reply: exact, split: false }],
  ['merged', { reply: merged(4 * PAGE), split: false }],
  [
    'merged, with what is beside an invalidation granted again',
    { reply: merged(64 * PAGE), split: true },
  ],
]

test.each(POLICIES)('with the reply policy %s', (_, policy) => {
  using bench = new LoopBench()
  const ring = bench.runningRing(TX)
  const space = new FakeAddressSpace()
  const { channel, memory } = bench
  using handler = new MissHandler({ channel, memory, addressSpace: space, ...policy })
  mapRing(bench, ring, space, handler)

  const scripts = fc.sample(fc.array(step, { minLength: 15, maxLength: 30 }), {
    seed: SEED,
    numRuns: 4,
  })
  for (const [i, steps] of scripts.entries()) {
    for (const each of steps) perform(each, { bench, ring, space, handler })
    const all = Array.from({ length: PAGES }, (_, page) => page)
    const shadow = all.filter((page) => handler.shadow.granted(FIRST + page) !== 0)
    expect(held(bench, ring), `script ${i}`).toEqual(shadow)
    // The probe has put entries of its own where there were none.
    handler.flush()
    space.unmapPages(FIRST, FIRST + PAGES - 1)
    mapRing(bench, ring, space, handler)
  }
})

interface Parts {
  readonly bench: LoopBench
  readonly ring: BenchRing
  readonly space: FakeAddressSpace
  readonly handler: MissHandler
}

function perform(step: Step, { bench, ring, space, handler }: Parts): void {
  switch (step.do) {
    case 'map': {
      // A guest unmaps before it maps anew, and says so.
      const [first, last] = [FIRST + step.first, FIRST + step.last]
      space.unmapPages(first, last)
      space.invalidatePages(first, last)
      space.mapPages(first, last, BUFFERS_GPA / PAGE + step.first, step.access)
      break
    }
    case 'unmap':
      space.unmapPages(FIRST + step.first, FIRST + step.last)
      space.invalidatePages(FIRST + step.first, FIRST + step.last)
      break
    case 'access':
      if (!space.translatePage(FIRST + step.page, 0, scratch)) break
      ring.push(BUFFERS + BigInt(step.page * PAGE), 72)
      answer(bench, ring, handler)
      while (ring.queue.collect());
      break
    case 'preload':
      handler.preload(FIRST + step.first, FIRST + step.last, 1)
      break
    case 'features':
      bench.kernel.setFeatures(FEATURES)
      handler.reset()
      mapRing(bench, ring, space, handler)
      break
  }
}

const scratch = new PageTranslation()

/** Kicks, and answers until the chain is done. */
function answer(bench: LoopBench, ring: BenchRing, handler: MissHandler): void {
  const wanted = ring.queue.availIndex
  ring.kick()
  for (let i = 0; i < 10 && ring.completed !== wanted; i++) {
    handler.handle()
    bench.flush()
  }
  expect(ring.completed).toBe(wanted)
}

function mapRing(
  bench: LoopBench,
  ring: BenchRing,
  space: FakeAddressSpace,
  handler: MissHandler,
): void {
  const first = Number(ring.desc >> 12n)
  bench.channel.invalidatePages(first, first + 47)
  space.mapPages(first, first + 47, ring.gpa / PAGE, 3)
  expect(handler.preload(first, first + 47, 3)).toBe(true)
}

/** Asks the kernel, page by page: what it holds it sends without a question. */
function held(bench: LoopBench, ring: BenchRing): number[] {
  const pages: number[] = []
  for (let page = 0; page < PAGES; page++) {
    bench.questions()
    ring.push(BUFFERS + BigInt(page * PAGE), 72)
    ring.kick()
    if (bench.questions().length === 0) pages.push(page)
    else bench.mapBuffers(page, 1, 'read')
    bench.flush()
    while (ring.queue.collect());
  }
  return pages
}

/** K11: when the write of an INVALIDATE returns, no worker still uses the old translation. */
import { BUFFERS, BUFFERS_GPA, HEADER, PAGE, TX, done } from '../bench'
import type { Bench } from '../bench'
import type { Case } from '../case'
import { testFrame } from '../frames'

const ROUNDS = 40
const FRAMES = 128
const CLEAN = 0x11
const POISON = 0xee
const LENGTH = 600
/** Looks at the ring while the worker begins, at most. */
const SPINS = 4000

/**
 * Two pages take turns behind one iova. While the worker is busy with frames of it, the translation
 * is taken back, and in the same breath the old page is poisoned. A frame that was read after that
 * would carry the poison. Without a round in the middle of the frames nothing was seen.
 */
export const k11: readonly Case[] = [
  {
    about: 'K11',
    name: 'no frame carries what was written to its page after the INVALIDATE returned',
    expected: [
      { seen: 'poisoned 0, left 0, in the middle of frames' },
      { seen: 'poisoned 0, left 0, between frames', where: 'a device that works in turns' },
    ],
    observe: (open) => {
      const bench = open()
      const { poisoned, left, atWork } = poisonedFrames(bench)
      return `poisoned ${poisoned}, left ${left}, ${atWork > 0 ? 'in the middle of' : 'between'} frames`
    },
  },
]

interface Seen {
  readonly poisoned: number
  readonly left: number
  /** INVALIDATEs during which frames were completed. */
  readonly atWork: number
}

function poisonedFrames(bench: Bench): Seen {
  const ring = bench.runningRing(TX)
  const frames: Uint8Array[] = []
  let atWork = 0
  let current = BUFFERS_GPA
  grant(bench, current)
  for (let round = 0; round < ROUNDS; round++) {
    while (ring.queue.collect());
    while (ring.queue.free > 0 && ring.queue.inFlight < FRAMES) ring.push(BUFFERS, HEADER + LENGTH)
    ring.kickOnly()
    // In every second round the worker is in the middle of its frames, else before the first.
    const start = ring.completed
    for (let i = 0; round % 2 === 1 && i < SPINS && ring.completed === start; i++);
    const before = ring.completed
    done(bench.invalidate(BUFFERS, PAGE))
    const old = current
    bench.memory.view(old, PAGE).fill(POISON)
    if (ring.completed !== before) atWork++
    current = old === BUFFERS_GPA ? BUFFERS_GPA + PAGE : BUFFERS_GPA
    grant(bench, current)
    ring.kickOnly()
    frames.push(...bench.device.sent())
  }
  bench.flush()
  for (let i = 0; i < 100 && ring.queue.inFlight > 0; i++) {
    grant(bench, current)
    ring.kick()
    while (ring.queue.collect());
  }
  frames.push(...bench.device.sent())
  const poisoned = frames.filter((frame) => frame.includes(POISON)).length
  return { poisoned, left: ring.queue.inFlight, atWork }
}

function grant(bench: Bench, gpa: number): void {
  const bytes = bench.memory.view(gpa, HEADER + LENGTH)
  bytes.fill(0, 0, HEADER)
  bytes.set(testFrame(1, LENGTH, CLEAN), HEADER)
  bench.questions()
  done(bench.update(BUFFERS, PAGE, gpa, 'read'))
}

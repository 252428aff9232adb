/** K9: SET_FEATURES and RESET_OWNER drop the whole IOTLB; SET_BACKEND -1 drops all questions. */
import { FEATURES, RX, TX, WITHOUT_IOTLB, done } from '../bench'
import type { Bench, BenchRing } from '../bench'
import { fact } from '../case'
import type { Case } from '../case'
import { testFrame } from '../frames'
import { listed } from '../script'

export const k09: readonly Case[] = [
  fact(
    'K9',
    'SET_FEATURES with the same bits, on a running device: the table is empty',
    'desc 1, then read 0',
    (open) => {
      const bench = open()
      const ring = warm(bench)
      done(bench.device.setFeatures(FEATURES))
      ring.send(0, testFrame(2))
      ring.kick()
      const first = listed(bench.asked())
      ring.mapAgain()
      return `${first}, then ${listed(bench.asked())}`
    },
  ),
  fact(
    'K9',
    'SET_FEATURES keeps the questions: one that was read before is answered after',
    'read 0, completed 0, then 1',
    (open) => {
      const bench = open()
      const ring = bench.runningRing(TX)
      ring.send(0, testFrame(1))
      ring.kick()
      const asked = listed(bench.asked())
      done(bench.device.setFeatures(FEATURES))
      ring.map()
      const before = ring.completed
      bench.mapBuffers(0, 1, 'read')
      bench.flush()
      return `${asked}, completed ${before}, then ${ring.completed}`
    },
  ),
  fact('K9', 'features before addresses: an order that works on every kernel', 'ok', (open) => {
    const bench = open()
    const ring = bench.ring(TX)
    done(bench.device.setFeatures(FEATURES))
    ring.place()
    ring.map()
    return ring.tryStart()
  }),
  {
    about: 'K9',
    name: 'addresses before features, with ACCESS_PLATFORM new: kept, or forgotten as a whole',
    expected: [
      { seen: 'EFAULT, asked read 0x0, placed again ok' },
      { seen: 'ok', where: 'before 6.12.114 (be7b5722a9d4, CVE-2026-97988)', bug: true },
    ],
    observe: (open) => {
      const bench = open({ features: WITHOUT_IOTLB })
      const ring = bench.ring(TX)
      done(bench.device.setFeatures(FEATURES))
      ring.map()
      const started = ring.tryStart()
      if (started !== 'EFAULT') return started
      const asked = listed(bench.asked())
      ring.place()
      return `EFAULT, asked ${asked}, placed again ${ring.tryStart()}`
    },
  },
  fact(
    'K9',
    'RESET_OWNER empties table, questions and rings',
    'questions nothing, EFAULT, asked used 1',
    (open) => {
      const bench = open()
      const ring = warm(bench)
      ring.offer(8)
      ring.kick()
      done(bench.device.resetOwner())
      const left = listed(bench.asked())
      done(bench.device.setFeatures(FEATURES))
      done(bench.device.setMemory([]))
      ring.place(ring.completed)
      const started = ring.tryStart()
      return `questions ${left}, ${started}, asked ${listed(bench.asked())}`
    },
  ),
  fact(
    'K9',
    'SET_BACKEND -1 on one queue forgets what the other asked; a kick asks again',
    'read 0, completed 0, kicked 1',
    (open) => {
      const bench = open()
      const ring = bench.runningRing(TX)
      ring.send(0, testFrame(1))
      ring.kick()
      const asked = listed(bench.asked())
      done(bench.device.setBackend(RX, false))
      bench.mapBuffers(0, 1, 'read')
      bench.flush()
      const before = ring.completed
      ring.kick()
      return `${asked}, completed ${before}, kicked ${ring.completed}`
    },
  ),
  fact(
    'K9',
    'SET_BACKEND -1 drops questions that nobody read, and keeps the table',
    'left nothing, restarted ok, asked read 8',
    (open) => {
      const bench = open()
      const ring = warm(bench)
      ring.offer(8)
      ring.kick()
      ring.stop()
      const left = listed(bench.asked())
      ring.place(1)
      const started = ring.tryStart()
      bench.flush()
      return `left ${left}, restarted ${started}, asked ${listed(bench.asked())}`
    },
  ),
]

/** A ring that has sent one frame. */
function warm(bench: Bench): BenchRing {
  const ring = bench.runningRing(TX)
  bench.mapBuffers(0, 1, 'read')
  ring.send(0, testFrame(1))
  ring.kick()
  return ring
}

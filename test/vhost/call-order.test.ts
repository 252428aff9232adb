/**
 * Every wrong order of calls has an error of its own: whatever is called when, by whom, the answer is
 * a typed error or a success, the process lives, and nothing stays open at the end.
 */
import fc from 'fast-check'
import { afterEach, beforeEach, expect, test, vi } from 'vitest'
import { KiB } from '../../lib/address'
import { InvalidState, SystemError } from '../../lib/errors'
import { NetDriver } from '../../lib/guest/net-driver'
import { IntelIommu } from '../../lib/iommu/intel/intel-iommu'
import { GuestMemory } from '../../lib/memory/guest-memory'
import { native as addon } from '../../lib/native'
import type { Native } from '../../lib/native'
import { VhostNet } from '../../lib/vhost/net'
import { Tap } from '../../lib/vhost/tap'
import { FakeKernel, PLAIN, TRANSLATED } from './fake-kernel'

const current = vi.hoisted(() => ({ native: undefined as Native | undefined }))
vi.mock(import('../../lib/native'), async (original) => {
  const { native } = await original()
  return { native: () => current.native ?? native() }
})

const SEED = Number(process.env['SEED'] ?? 2016)
const RUNS = Number(process.env['RUNS'] ?? 150)
const REQUESTER = '00:03.0'
const RING = { size: 16, desc: 0x1000n, avail: 0x2000n, used: 0x3000n }

let kernel: FakeKernel

beforeEach(() => {
  kernel = new FakeKernel(addon())
  current.native = kernel.native(addon())
})

afterEach(() => {
  current.native = undefined
})

/** What exists so far; a call on what does not exist opens nothing and does nothing. */
class Program {
  readonly memories: GuestMemory[] = []
  readonly taps: Tap[] = []
  readonly nics: VhostNet[] = []
  readonly drivers: NetDriver[] = []
  readonly iommus: IntelIommu[] = []

  /** A driver whose tables were written over says so; what it held is free all the same. */
  close(): void {
    for (const driver of this.drivers) {
      try {
        driver.close()
      } catch (error) {
        if (!isTyped(error)) throw error
      }
    }
    for (const list of [this.nics, this.taps, this.memories]) for (const one of list) one.close()
  }
}

type Call = (program: Program, n: number, flag: boolean) => unknown

const of = <T>(list: readonly T[], n: number): T | undefined => list[n % Math.max(1, list.length)]

const CALLS: Readonly<Record<string, Call>> = {
  allocate: ({ memories, iommus }) => {
    const memory = GuestMemory.allocate(512 * KiB)
    memories.push(memory)
    iommus.push(new IntelIommu(memory))
  },
  openTap: ({ taps }) => taps.push(Tap.open('tap0', { up: false })),
  openNic: ({ memories, iommus, taps, nics }, n, flag) => {
    const memory = of(memories, n)
    const tap = of(taps, n)
    if (memory === undefined || tap === undefined) return
    const addressSpace = iommus[memories.indexOf(memory)].addressSpace(REQUESTER)
    nics.push(VhostNet.open({ memory, backend: tap, ...(flag ? { addressSpace } : {}) }))
  },
  attach: ({ memories, iommus, nics, drivers }, n, flag) => {
    const memory = of(memories, n)
    const nic = of(nics, n)
    if (memory === undefined || nic === undefined) return
    const iommu = iommus[memories.indexOf(memory)]
    const options = { memory, requester: REQUESTER, queueSize: 16, sendBuffers: 4 }
    const mapping = flag ? { mapping: 'strict' as const, iommu } : { mapping: 'off' as const }
    drivers.push(NetDriver.attach(nic, { ...options, ...mapping }))
  },
  setFeatures: ({ nics }, n, flag) => of(nics, n)?.setFeatures(flag ? TRANSLATED : PLAIN),
  setQueue: ({ nics }, n, flag) => of(nics, n)?.setQueue(n % 3, { ...RING, size: flag ? 16 : 15 }),
  queueState: ({ nics }, n) => of(nics, n)?.queueState(n % 3),
  resetQueue: ({ nics }, n) => of(nics, n)?.resetQueue(n % 3),
  start: ({ nics }, n) => of(nics, n)?.start(),
  stop: ({ nics }, n) => of(nics, n)?.stop(),
  kick: ({ nics }, n) => of(nics, n)?.kick(n % 3),
  offering: ({ nics }, n) => of(nics, n)?.offering(n % 3, n),
  onCall: ({ nics }, n) => of(nics, n)?.onCall(n % 3, () => undefined),
  references: ({ nics }, n, flag) => (flag ? of(nics, n)?.ref() : of(nics, n)?.unref()),
  stats: ({ nics }, n) => of(nics, n)?.stats(),
  closeNic: ({ nics }, n) => of(nics, n)?.close(),
  startDriver: ({ drivers }, n) => of(drivers, n)?.start(),
  send: ({ drivers }, n) => of(drivers, n)?.send(new Uint8Array(n % 100)),
  sendPair: ({ drivers }, n) => of(drivers, n)?.sendBatch([new Uint8Array(60)], { pair: n % 2 }),
  ready: ({ drivers }, n) => of(drivers, n)?.ready(n),
  flush: ({ drivers }, n, flag) => (flag ? of(drivers, n)?.dma.flush() : undefined),
  frames: ({ drivers }, n) => of(drivers, n)?.frames(),
  closeDriver: ({ drivers }, n) => of(drivers, n)?.close(),
  readTap: ({ taps }, n) => of(taps, n)?.hold({})[Symbol.dispose](),
  headerBytes: ({ taps }, n) => of(taps, n)?.setHeaderBytes(n % 20),
  offload: ({ taps }, n) => of(taps, n)?.setOffload(n % 8),
  closeTap: ({ taps }, n) => of(taps, n)?.close(),
  view: ({ memories }, n) => of(memories, n)?.view(n * 4096, 4096),
  word: ({ memories }, n) => of(memories, n)?.setU64(n * 4096, 1n),
  pin: ({ memories }, n) => of(memories, n)?.pin({})[Symbol.dispose](),
  closeMemory: ({ memories }, n) => of(memories, n)?.close(),
}

const call = fc.record({
  name: fc.constantFrom(...Object.keys(CALLS)),
  n: fc.nat(200),
  flag: fc.boolean(),
})

function isTyped(error: unknown): boolean {
  return (
    error instanceof InvalidState ||
    error instanceof SystemError ||
    error instanceof RangeError ||
    (error instanceof TypeError && !/undefined|null|not a function/.test(error.message))
  )
}

test('any calls in any order: a typed error or none, and nothing is left', async () => {
  const outcomes = new Map<string, number>()
  const seen = (outcome: string): void => {
    outcomes.set(outcome, (outcomes.get(outcome) ?? 0) + 1)
  }
  const failed = (name: string, error: unknown): void => {
    if (!isTyped(error)) throw error
    const { code, constructor } = error as { code?: string; constructor: { name: string } }
    seen(`${name}: ${code ?? constructor.name}`)
  }
  const opening = ['allocate', 'openTap', 'openNic', 'attach'].map((name) => ({ name, n: 0 }))
  await fc.assert(
    fc.asyncProperty(
      fc.array(call, { maxLength: 50, size: 'max' }),
      fc.boolean(),
      async (calls, flag) => {
        kernel.opened.length = 0
        const program = new Program()
        const pending: Promise<unknown>[] = []
        for (const { name, n, ...rest } of [
          ...opening.map((one) => ({ ...one, flag })),
          ...calls,
        ]) {
          try {
            const result = CALLS[name](program, n, rest.flag)
            // A promise that is rejected is an answer, too; one that is open is closed with its driver.
            if (result instanceof Promise) {
              pending.push(
                result.catch((error: unknown) => {
                  failed(name, error)
                }),
              )
            }
            seen(`${name}: done`)
          } catch (error) {
            failed(name, error)
          }
        }
        program.close()
        await Promise.all(pending)
        expect(kernel.opened.filter(({ fd }) => fd >= 0)).toEqual([])
      },
    ),
    { numRuns: RUNS, seed: SEED },
  )
  for (const code of ['ERR_CLOSED', 'ERR_IN_USE', 'ERR_NOT_STARTED', 'ERR_ALREADY_STARTED']) {
    expect([...outcomes.keys()].some((outcome) => outcome.endsWith(code))).toBe(true)
  }
  for (const name of Object.keys(CALLS)) expect(outcomes.get(`${name}: done`), name).toBeDefined()
})

test('a driver whose tables were written over says so when it closes, and holds nothing', async () => {
  const program = new Program()
  for (const name of ['allocate', 'openTap', 'openNic', 'attach']) CALLS[name](program, 0, true)
  await CALLS['startDriver'](program, 0, true)
  const [memory] = program.memories
  const [{ range }] = memory.regions
  memory.view(range.first, Number(range.last - range.first) + 1).fill(0)
  expect(() => {
    program.drivers[0].close()
  }).toThrow(/not mapped/)
  program.close()
  expect(kernel.opened.filter(({ fd }) => fd >= 0)).toEqual([])
})

/**
 * Our VT-d, with `compat: 'qemu'`, against the VT-d of an installed QEMU 7.2: random programs of
 * register writes, table edits, descriptors and DMA by three devices. `RUNS` sets the number of
 * steps (1,500), `SEED` the first seed.
 */
import { spawnSync } from 'node:child_process'
import { describe, expect, it } from 'vitest'
import type { IntelIommuOptions } from '../../lib/iommu/intel/capabilities'
import { IntelIommu } from '../../lib/iommu/intel/intel-iommu'
import { PlainMemory } from '../iommu/plain-memory'
import { Program } from './program'
import { Qtest } from './qtest'

const RUNS = Number(process.env['RUNS'] ?? 1500)
const SEED = Number(process.env['SEED'] ?? 72)

function installedVersion(): string | undefined {
  const { error, stdout } = spawnSync('qemu-system-x86_64', ['--version'], { encoding: 'utf8' })
  return error === undefined ? /version (\d+\.\d+)/.exec(stdout)?.[1] : undefined
}

const version = installedVersion()

const CONFIGURATIONS: readonly (readonly [string, IntelIommuOptions])[] = [
  ['intremap=off,aw-bits=39', { addressWidth: 39, deviceTlb: false }],
  ['intremap=off,aw-bits=48,device-iotlb=on', { addressWidth: 48, deviceTlb: true }],
  [
    'intremap=off,aw-bits=48,pt=off,dma-drain=off,snoop-control=on',
    { addressWidth: 48, deviceTlb: false, passThrough: false, drain: false, snoopControl: true },
  ],
]

async function withMachine(iommu: string, use: (machine: Qtest) => Promise<void>): Promise<void> {
  const machine = await Qtest.start(iommu)
  try {
    await use(machine)
  } finally {
    await machine.stop()
  }
}

describe.skipIf(version !== '7.2')(`QEMU 7.2 (here: ${version ?? 'none'})`, () => {
  it.each<readonly [string, IntelIommuOptions]>([
    ...CONFIGURATIONS,
    [
      'intremap=off,aw-bits=39,caching-mode=on',
      { addressWidth: 39, deviceTlb: false, cachingMode: true },
    ],
    ['intremap=off,aw-bits=48,x-scalable-mode=on', { deviceTlb: false, scalableMode: true }],
    [
      'intremap=off,aw-bits=48,x-scalable-mode=on,x-pasid-mode=on',
      { deviceTlb: false, scalableMode: true, pasid: true },
    ],
  ])('%s: the same registers after a reset', { timeout: 60_000 }, async (iommu, options) => {
    await withMachine(iommu, async (machine) => {
      const theirs = await machine.registers()
      const ours = new IntelIommu(PlainMemory.of(4096), { ...options, compat: 'qemu' })
      for (let offset = 0; offset < theirs.length; offset += 4) {
        const at = `0x${offset.toString(16)}`
        expect([at, Number(ours.read(offset, 4))]).toEqual([at, theirs.readUInt32LE(offset)])
      }
    })
  })

  it.each(CONFIGURATIONS)(
    `%s: no difference in ${RUNS / 3} random steps`,
    { timeout: 0 },
    async (iommu, options) => {
      const total: Record<string, number> = {}
      const perMachine = 500
      for (let done = 0; done < RUNS / 3; done += perMachine) {
        await withMachine(iommu, async (machine) => {
          const program = new Program(machine, options, SEED + done)
          await program.run(Math.min(perMachine, RUNS / 3 - done))
          for (const [name, count] of Object.entries(program.counts)) {
            total[name] = (total[name] ?? 0) + count
          }
          for (const [reason, count] of program.reasons) {
            const name = `reason 0x${reason.toString(16)}`
            total[name] = (total[name] ?? 0) + count
          }
        })
      }
      if (process.env['SEEN'] !== undefined) console.log(iommu, total)
      for (const name of ['granted', 'refused', 'records', 'descriptors', 'errors']) {
        expect([name, total[name] > 0]).toEqual([name, true])
      }
    },
  )
})

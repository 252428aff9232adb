/**
 * Random sequences done to the kernel and to the fake: both tell the same at each step.
 *
 * `FUZZ` says how many, `SEED` which ones. `vhost-iotlb conformance --fuzz` does the same, and shrinks
 * and keeps what differs.
 */
import { readFileSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { fuzz, parseCorpus, tellings } from '../../lib/testing/conformance/fuzz/fuzz'
import { KernelDevice } from '../../lib/testing/conformance/kernel-device'
import { FakeVhostNet } from '../../lib/testing/fake-vhost-net'

const CORPUS = join(import.meta.dirname, '../../test/corpus/vhost-net')
const SEQUENCES = Number(process.env['FUZZ'] ?? 10)
const SEED = Number(process.env['SEED'] ?? 20160615)

describe('the kernel and the fake', () => {
  let kernel: KernelDevice
  let fake: FakeVhostNet
  beforeAll(() => {
    kernel = new KernelDevice()
    fake = new FakeVhostNet({ limit: kernel.limit })
  })
  afterAll(() => {
    kernel[Symbol.dispose]()
    fake[Symbol.dispose]()
  })

  test(
    `${SEQUENCES} random sequences`,
    () => {
      const { sequences, differences } = fuzz(kernel, fake, SEED, SEQUENCES)
      expect({ sequences, differences }).toEqual({ sequences: SEQUENCES, differences: [] })
    },
    60_000 + SEQUENCES * 1000,
  )

  const files = readdirSync(CORPUS).filter((file) => file.endsWith('.txt'))
  test.each(files)('kept: %s', (file) => {
    const { steps, told } = parseCorpus(readFileSync(join(CORPUS, file), 'utf8'))
    expect(tellings(kernel, steps)).toEqual(told)
  })
})

/**
 * The same guest with each way to use its IOMMU, and what its frames cost in each. As many frames as
 * the figures of the manual need take minutes, and have to be asked for:
 *
 *   GUEST_PACKETS=100000 vhost-iotlb vm --nested --module pktgen --timeout 3600 -- \
 *     npx vitest run --config vm-tests/vmm/vitest.config.mts vm-tests/vmm/modes.test.ts
 */
import { describe, expect, it } from 'vitest'
import { guestExperiment } from '../../lib/cli/guest/experiment'
import type { GuestExperiment } from '../../lib/cli/guest/experiment'
import { sameLine } from './guest'

const asked = process.env['GUEST_PACKETS']
const packets = Number(asked ?? 300)
const TIMEOUT_MS = 600_000 + 20 * packets

const run = (options: Pick<GuestExperiment, 'mode' | 'ats'>) =>
  guestExperiment({ line: sameLine(), packets, print: console.log, ...options })

describe('a stock guest', { timeout: TIMEOUT_MS }, () => {
  // Briefly, `linux.test.ts` shows it.
  if (asked !== undefined) {
    it('strict: loses nothing, and its misses are few because each answers for many', async () => {
      const result = await run({ mode: 'strict' })
      expect(result).toMatchObject({ ok: true, deviceIotlb: true, lost: 0, faults: 0 })
      expect(result.out.invalidates).toBeGreaterThanOrEqual(packets)
      expect(result.missesPer1000).toBeLessThanOrEqual(100)
    })
  }

  it('lazy: loses nothing, and invalidates in batches', async () => {
    const result = await run({ mode: 'lazy' })
    expect(result).toMatchObject({ ok: true, deviceIotlb: true, lost: 0, faults: 0 })
    expect(result.invalidates).toBeLessThan(packets)
  })

  it('passed through: neither misses nor invalidates once it runs', async () => {
    const result = await run({ mode: 'passthrough' })
    expect(result).toMatchObject({ ok: true, lost: 0, misses: 0, invalidates: 0 })
  })

  it('without ATS: loses nothing, by the invalidations of the IOTLB', async () => {
    const result = await run({ mode: 'strict', ats: false })
    expect(result).toMatchObject({ ok: true, deviceIotlb: false, lost: 0, faults: 0 })
    expect(result.out.invalidates).toBeGreaterThanOrEqual(packets)
    expect(result.out.served).toBeGreaterThan(packets / 2)
  })
})

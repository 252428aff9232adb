/**
 * The machine in another shape: several processors, and the network card as a part of the chip, which is
 * on the root bus, without a link, and named by the DMAR's SATC structure instead of a root port in
 * its ATSR.
 */
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { Guest, PINGS } from './guest'

/** GUEST_PROCESSORS=4 by hand: on two emulated processors, such a guest stands still in some runs. */
const PROCESSORS = Number(process.env['GUEST_PROCESSORS'] ?? 2)

describe('Linux with several processors and an integrated network card', () => {
  let guest: Guest

  beforeAll(async () => {
    guest = await Guest.boot('strict', { integrated: true, processors: PROCESSORS })
  }, 240_000)

  afterAll(async () => {
    await guest[Symbol.asyncDispose]()
  })

  it('reads the SATC, and complains of nothing', async () => {
    const messages = await guest.run(`dmesg | grep -iE 'dmar|iommu|firmware|bios|pci 0000'`)
    expect(messages).toMatch(/DMAR: SATC flags: 0x0/)
    expect(messages).toMatch(/pci 0000:00:02\.0: \[1af4:1041\].*/)
    expect(messages).not.toMatch(/BIOS is broken|Firmware (Bug|Warn)|DMAR: \[|handling fault/)
  })

  it('runs on all of its processors', async () => {
    expect(await guest.run('nproc')).toBe(String(PROCESSORS))
    const last = `taskset -c ${PROCESSORS - 1} cut -d ' ' -f 39 /proc/self/stat`
    expect(await guest.run(last)).toBe(String(PROCESSORS - 1))
  })

  it('switches ATS on, and translates for a source id of the root bus', async () => {
    const { machine } = guest
    expect(machine.net.pci.ats?.enabled).toBe(true)
    expect(machine.net.root.requester).toBe(0x0010)
    expect(await guest.ping()).toBe(PINGS)
    const { nic, recordedFaults } = machine.stats()
    expect({ faults: nic.faults, recordedFaults }).toEqual({ faults: 0, recordedFaults: 0 })
    expect(nic.misses).toBeGreaterThan(0)
    expect(nic.invalidates).toBeGreaterThanOrEqual(PINGS)
  })
})

import { describe, expect, it } from 'vitest'
import { MiB } from '../../lib/address'
import { NetDriver } from '../../lib/guest/net-driver'
import { GuestMemory } from '../../lib/memory/guest-memory'
import { LoopbackDevice } from '../../lib/testing/loopback-device'

describe('NetDriver', () => {
  it('gets back what a loopback device was sent', async () => {
    using memory = GuestMemory.allocate(8 * MiB)
    using nic = new LoopbackDevice({ memory })
    using driver = NetDriver.attach(nic, { memory, mapping: 'off' })
    await driver.start()
    const sizes = [14, 60, 64, 1514, 4083, 4084, 4085, 4096, 9000, 20000, 65535]
    const frames = sizes.map((n, i) =>
      Uint8Array.from({ length: n }, (_, at) => (at * 7 + i) & 255),
    )
    for (const frame of frames) expect(driver.send(frame)).toBe(true)
    await driver.flush()
    let i = 0
    for await (const frame of driver.frames()) {
      expect(frame.length).toBe(frames[i].length)
      expect(Buffer.compare(frame, frames[i])).toBe(0)
      if (++i === frames.length) break
    }
    expect(driver.stats()).toMatchObject({
      sent: sizes.length,
      completed: sizes.length,
      received: sizes.length,
      dropped: 0,
    })
  })
})

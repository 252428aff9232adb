import { once } from 'node:events'
import { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { describe, expect, it } from 'vitest'
import { frameStream, webFrameStreams } from '../../lib/guest/frame-ports'
import { NetDriver } from '../../lib/guest/net-driver'
import { Guest, expectFrames, frameOf } from './net-guest'

/** A driver on a device that sends every frame back. */
async function started(guest: Guest, queueSize = 4): Promise<NetDriver> {
  const driver = guest.attach(guest.loopback(), { queueSize })
  await driver.start()
  return driver
}

const FRAMES = Array.from({ length: 50 }, (_, i) => frameOf(60 + i, i))

describe('frames as a Node stream', () => {
  it('a pipeline sends more frames than the ring holds, and they come back in order', async () => {
    using guest = new Guest()
    using driver = await started(guest)
    const port = frameStream(driver)
    const came: Uint8Array[] = []
    port.on('data', (frame: Uint8Array) => came.push(frame))
    for (const frame of FRAMES) if (!port.write(frame)) await once(port, 'drain')
    while (came.length < FRAMES.length) await once(port, 'data')
    expectFrames(came, FRAMES)
    port.destroy()
  })

  it('ends writing only when every frame has completed', async () => {
    using guest = new Guest()
    using driver = await started(guest)
    const port = frameStream(driver)
    port.resume()
    port.end(FRAMES[0])
    await once(port, 'finish')
    expect(driver.stats()).toMatchObject({ sent: 1, completed: 1 })
    port.destroy()
  })

  it('a signal ends the reading side without an error', async () => {
    using guest = new Guest()
    using driver = await started(guest)
    const stop = new AbortController()
    const port = frameStream(driver, { signal: stop.signal })
    port.resume()
    stop.abort()
    await once(port, 'end')
    expect(port.errored).toBe(null)
    port.destroy()
  })

  it('a frame that no frame can be fails the pipeline, not the driver', async () => {
    using guest = new Guest()
    using driver = await started(guest)
    await expect(pipeline(Readable.from([new Uint8Array(3)]), frameStream(driver))).rejects.toThrow(
      RangeError,
    )
    expect(driver.send(FRAMES[0])).toBe(true)
  })
})

describe('frames as Web streams', () => {
  it('what is written comes back', async () => {
    using guest = new Guest()
    using driver = await started(guest)
    const stop = new AbortController()
    const { readable, writable } = webFrameStreams(driver, { signal: stop.signal })
    const writer = writable.getWriter()
    const reader = readable.getReader()
    for (const frame of FRAMES.slice(0, 10)) {
      await writer.write(frame)
      const { value } = await reader.read()
      expectFrames([value!], [frame])
    }
    await writer.close()
    await reader.cancel()
    expect(driver.stats()).toMatchObject({ completed: 10, received: 10 })
  })
})

describe('signals', () => {
  it('a signal that is aborted already keeps the driver from starting', async () => {
    using guest = new Guest()
    using driver = guest.attach(guest.loopback())
    const reason = new Error('not today')
    await expect(driver.start({ signal: AbortSignal.abort(reason) })).rejects.toBe(reason)
    await driver.start()
  })

  it('aborting closes a driver that was started with it', async () => {
    using guest = new Guest()
    using driver = guest.attach(guest.loopback())
    const stop = new AbortController()
    await driver.start({ signal: stop.signal })
    const end = driver.frames().next()
    stop.abort()
    expect(await end).toEqual({ value: undefined, done: true })
    expect(() => driver.send(FRAMES[0])).toThrow('closed')
  })

  it('aborting ends the wait for room, and the next wait works', async () => {
    using guest = new Guest()
    const nic = guest.loopback()
    using driver = guest.attach(nic, { queueSize: 4, sendBuffers: 4 })
    await driver.start()
    nic.stop()
    while (driver.send(FRAMES[0]));
    const stop = new AbortController()
    const wait = driver.ready(1514, 0, { signal: stop.signal })
    const flush = driver.flush({ signal: stop.signal })
    stop.abort(new Error('enough'))
    await expect(wait).rejects.toThrow('enough')
    await expect(flush).rejects.toThrow('enough')
  })
})

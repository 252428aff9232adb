/** Each example does what it says, run as a reader would run it. */
import { execFile } from 'node:child_process'
import { existsSync, mkdtempSync, readFileSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { describe, expect, test } from 'vitest'
import { PacketSocket } from '../support/packet-socket'
import { Running } from '../support/running'

const folder = join(import.meta.dirname, '../../examples')
/** The nested VM brings its own; on a host there is the system's. */
const GUEST_BUSYBOX = '/run/vhost-iotlb/busybox'
const call = promisify(execFile)

async function output(example: string, ...args: readonly string[]): Promise<string> {
  const { stdout } = await call(process.execPath, [join(folder, example), ...args])
  return stdout
}

/** The last line of what an example said, which is an object. */
function counted(said: string): Record<string, number> {
  return JSON.parse(said.trim().split('\n').at(-1) ?? '') as Record<string, number>
}

/** An IPv4 frame with the first bytes of a transport header. */
function ipv4(protocol: number, port: number, offset = 0): Uint8Array {
  const frame = Buffer.alloc(60)
  frame.set([2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 8, 0x08, 0x00, 0x45])
  frame.writeUInt16BE(offset, 20)
  frame[23] = protocol
  frame.writeUInt16BE(port, 36)
  return Uint8Array.from(frame)
}

describe('the examples', { timeout: 120_000 }, () => {
  test('each of them is tried here', () => {
    const tried = [
      'capture',
      'firewall',
      'iommu-lab',
      'packet-generator',
      'ping-responder',
      'silent-stall',
    ]
    const shared = ['one-device']
    const found = readdirSync(folder).flatMap((name) => (name.endsWith('.mjs') ? [name] : []))
    expect(found.sort()).toEqual([...tried, ...shared].sort().map((name) => `${name}.mjs`))
  })

  test('capture: frames and messages are in the file', async () => {
    const directory = mkdtempSync(join(tmpdir(), 'vhost-iotlb-capture-'))
    const file = join(directory, 'capture.pcapng')
    const { frames, messages } = counted(await output('capture.mjs', file))
    const bytes = readFileSync(file)
    rmSync(directory, { recursive: true })
    expect(frames).toBeGreaterThanOrEqual(20)
    expect(messages).toBeGreaterThanOrEqual(40)
    // pcapng: the block type and the byte order of a section header.
    expect([bytes.readUInt32LE(0), bytes.readUInt32LE(8)]).toEqual([0x0a0d0d0a, 0x1a2b3c4d])
  })

  test('packet-generator: sends what it was asked for, with hardly a miss', async () => {
    const { sent, misses, hitRate } = counted(await output('packet-generator.mjs', '500'))
    expect(sent).toBe(500)
    expect(misses).toBeGreaterThan(0)
    expect(hitRate).toBeGreaterThan(0.9)
  })

  test('ping-responder: the real ping gets its answers', async () => {
    await using example = await Running.start(join(folder, 'ping-responder.mjs'))
    const [command, ...args] = existsSync(GUEST_BUSYBOX) ? [GUEST_BUSYBOX, 'ping'] : ['ping']
    const { stdout } = await call(command, [...args, '-c', '2', '192.0.2.2'])
    expect(stdout).toMatch(/2 packets transmitted, 2 (packets )?received/)
    const { received, sent, invalidates } = counted(await example.interrupt())
    expect(received).toBeGreaterThanOrEqual(3)
    expect(sent).toBeGreaterThanOrEqual(3)
    expect(invalidates).toBeGreaterThan(0)
  })

  test('firewall: forwards what no rule refuses, and counts the rest', async () => {
    await using example = await Running.start(join(folder, 'firewall.mjs'), 'wall0', 'wall1')
    await using left = await PacketSocket.open('wall0')
    await using right = await PacketSocket.open('wall1')
    const good = ipv4(17, 53)
    for (const frame of [ipv4(17, 9), ipv4(6, 23), ipv4(17, 53, 7), good]) await left.send(frame)
    // The interfaces' own IPv6 chatter is forwarded, too.
    const came: Uint8Array[] = []
    while (came.length === 0) came.push(...(await right.receive(1)).filter((each) => each[5] === 9))
    expect(came).toEqual([good])
    expect(counted(await example.interrupt())).toMatchObject({
      'discard service': 1,
      telnet: 1,
      'fragments, which hide their ports': 1,
    })
  })

  test('iommu-lab: the read is blocked, explained and recorded', async () => {
    const said = await output('iommu-lab.mjs')
    expect(said).toMatch(/^mapped: .* sent$/m)
    expect(said).toMatch(/^recorded: read of 0x[0-9a-f]+ by 00:03\.0, reason code \d+$/m)
    expect(said).toMatch(/^mended: +the next frame was sent$/m)
  })

  test('silent-stall: no miss, a report, and a repair once the tables allow it', async () => {
    const said = await output('silent-stall.mjs')
    expect(said).toMatch(/^stalled: \{"newMisses":0,"queue":0,.*"repaired":0/m)
    expect(said).toMatch(/^repaired: .*"repaired":1/m)
    expect(said).toMatch(/^received: \{"arrived":true/m)
  })
})

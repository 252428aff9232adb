/** A process that runs, seen from others: `top` over its socket, Prometheus over HTTP. */
import { execFile } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { frame } from '../support/frames'
import { PacketSocket } from '../support/packet-socket'
import { Running } from '../support/running'

const CLI = join(import.meta.dirname, '../../dist/cli/main.js')
const FRAMES = 20

interface Rates {
  readonly rates: readonly { readonly misses: number; readonly chains: number }[]
}

describe('a forwarder that is watched', () => {
  const folder = mkdtempSync(join(tmpdir(), 'vhost-iotlb-watch-'))
  const socket = join(folder, 'stats.sock')
  let running: Running
  let metrics: string

  beforeAll(async () => {
    running = await Running.start(
      ...[CLI, 'l2fwd', '--where', 'host', '--mapping', 'strict', '--look-ahead', 'off'],
      ...['--merge', '0', '--stats', socket, '--metrics', '127.0.0.1:0'],
    )
    metrics = (await running.says(/serving (http:\S+)/))[1]
  })

  afterAll(async () => {
    await running[Symbol.asyncDispose]()
    rmSync(folder, { recursive: true })
  })

  const read = async (): Promise<ReadonlyMap<string, number>> => {
    const text = await (await fetch(metrics)).text()
    const lines = text.split('\n').filter((line) => line !== '' && !line.startsWith('#'))
    return new Map(lines.map((line) => [line.slice(0, line.lastIndexOf(' ')), lastNumber(line)]))
  }

  test('top shows what it does, and the counters of Prometheus grow with it', async () => {
    const [, name] = await running.says(/^(\S+) <-> (\S+),/m)
    await using tap = await PacketSocket.open(name)
    const before = await read()
    const top = promisify(execFile)(process.execPath, [
      ...[CLI, 'top', socket, '--count', '1', '--interval', '2', '--json'],
    ])
    for (let i = 0; i < FRAMES; i++) await tap.send(frame(i, 100, 'host'))
    const { stdout } = await top
    const shown = JSON.parse(stdout) as Rates
    expect(shown.rates).toHaveLength(2)
    const after = await read()
    const grown = (counter: string): number =>
      [...after].reduce(
        (sum, [key, value]) => sum + (key.startsWith(counter) ? value - (before.get(key) ?? 0) : 0),
        0,
      )
    // Each frame is received and sent; each of its buffers was asked for.
    expect(grown('vhost_iotlb_chains_total')).toBeGreaterThanOrEqual(2 * FRAMES)
    expect(grown('vhost_iotlb_misses_total')).toBeGreaterThanOrEqual(FRAMES)
    expect(grown('vhost_iotlb_invalidate_seconds_count')).toBeGreaterThan(0)
  })

  test('without a terminal top writes a line for each device, and ends with the process', async () => {
    const top = await Running.start(CLI, 'top', socket, '--interval', '0.2')
    expect(await running.interrupt()).toContain('hitRate')
    const said = await top.interrupt()
    expect(said.trim().split('\n').length).toBeGreaterThanOrEqual(2)
    expect(said).not.toContain('\x1b')
  })
})

function lastNumber(line: string): number {
  return Number(line.slice(line.lastIndexOf(' ') + 1))
}

import { spawn } from 'node:child_process'
import { existsSync, mkdtempSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { top } from '../../lib/cli/top'
import { hostAndPort } from '../../lib/cli/serve-what'
import { diagnostics } from '../../lib/iotlb/diagnostics'
import { serveMetrics, serveStats } from '../../lib/monitor/serve'
import { FakeDevice } from './support'

let directory: string
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'serve-'))
})
afterEach(() => {
  rmSync(directory, { recursive: true })
})

function device(): FakeDevice {
  const made = new FakeDevice(0x18)
  made.hold(0x100, 0x17f, 'readwrite')
  made.counters = { ...made.counters, chains: 12, misses: 3, hitRate: 0.75 }
  return made
}

async function printed(run: () => Promise<unknown>, onLine?: () => unknown): Promise<string[]> {
  const lines: string[] = []
  const { log } = console
  console.log = (line: string) => {
    lines.push(line)
    onLine?.()
  }
  try {
    await run()
  } finally {
    console.log = log
  }
  return lines
}

describe('top', () => {
  it('shows the counters of another process, by its socket', async () => {
    const path = join(directory, 'x.sock')
    await using served = await serveStats([device()], { path })
    expect(served.address).toBe(path)
    expect(statSync(path).mode & 0o777).toBe(0o600)
    const options = { interval: 0.1, count: 2, json: true }
    const lines = await printed(() => top(path, options))
    expect(lines).toHaveLength(2)
    expect(JSON.parse(lines[0])).toMatchObject({
      pid: process.pid,
      devices: [{ name: '00:03.0', bytesMapped: 0x80000, stats: { chains: 12 } }],
      rates: [{ name: '00:03.0', chains: 0 }],
    })
    const [line] = await printed(() => top(path, { ...options, json: false, count: 1 }))
    expect(line).toMatch(/^00:03.0: 0 chains\/s/)
  })

  it('ends when the process that it watches does', async () => {
    const path = join(directory, 'x.sock')
    const served = await serveStats([device()], { path })
    let closing: Promise<void> | undefined
    const lines = await printed(
      () => top(path, { interval: 0.01, json: true }),
      () => (closing ??= served.close()),
    )
    await closing
    expect(lines.length).toBeGreaterThan(0)
    expect(existsSync(path)).toBe(false)
    expect(diagnostics.invalidate.hasSubscribers).toBe(false)
  })

  it('refuses a socket that is not there', async () => {
    const missing = join(directory, 'none.sock')
    await expect(top(missing, { interval: 1, json: false })).rejects.toThrow('ENOENT')
  })

  it('keeps no process alive', async () => {
    const library = join(__dirname, '../../dist/index.js')
    const script = `require(process.argv[1]).serveStats([], { path: process.argv[2] }).then(() => 0)`
    const path = join(directory, 'y.sock')
    const child = spawn(process.execPath, ['-e', script, library, path], { timeout: 20_000 })
    const [status] = await new Promise<[number | null]>((resolve) =>
      child.on('close', (code) => {
        resolve([code])
      }),
    )
    expect(await text(child.stderr)).toBe('')
    expect(status).toBe(0)
  })
})

describe('metrics', () => {
  it('are text that Prometheus reads', async () => {
    const watched = device()
    await using served = await serveMetrics([watched], { port: 0 })
    diagnostics.invalidate.publish({ requester: 0x18, pair: 0, microseconds: 15 })
    const answer = await fetch(served.address)
    expect(answer.headers.get('content-type')).toContain('text/plain; version=0.0.4')
    const lines = (await answer.text()).split('\n')
    for (const line of [
      '# TYPE vhost_iotlb_misses_total counter',
      'vhost_iotlb_misses_total{device="00:03.0"} 3',
      'vhost_iotlb_chains_total{device="00:03.0"} 12',
      '# TYPE vhost_iotlb_mapped_bytes gauge',
      'vhost_iotlb_mapped_bytes{device="00:03.0"} 524288',
      '# TYPE vhost_iotlb_invalidate_seconds histogram',
      'vhost_iotlb_invalidate_seconds_bucket{device="00:03.0",le="0.00001"} 0',
      'vhost_iotlb_invalidate_seconds_bucket{device="00:03.0",le="0.00002"} 1',
      'vhost_iotlb_invalidate_seconds_bucket{device="00:03.0",le="+Inf"} 1',
      'vhost_iotlb_invalidate_seconds_count{device="00:03.0"} 1',
    ]) {
      expect(lines).toContain(line)
    }
    expect((await fetch(served.address.replace('metrics', ''))).status).toBe(404)
  })

  it('are served where one wants them', async () => {
    expect(hostAndPort('9000')).toEqual({ port: 9000 })
    expect(hostAndPort(':9000')).toEqual({ port: 9000 })
    expect(hostAndPort('0.0.0.0:9000')).toEqual({ host: '0.0.0.0', port: 9000 })
    expect(hostAndPort('[::1]:9000')).toEqual({ host: '::1', port: 9000 })
    for (const wrong of ['', 'host', 'host:', '70000']) {
      expect(() => hostAndPort(wrong)).toThrow(RangeError)
    }
    await using first = await serveMetrics([], { port: 0 })
    const port = Number(new URL(first.address).port)
    await expect(serveMetrics([], { port })).rejects.toThrow('EADDRINUSE')
    expect(diagnostics.invalidate.hasSubscribers).toBe(true)
    await first.close()
    expect(diagnostics.invalidate.hasSubscribers).toBe(false)
  })
})

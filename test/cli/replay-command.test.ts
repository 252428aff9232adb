import { spawnSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { traceFile } from '../../lib/trace/codec'
import type { TraceEvent } from '../../lib/trace/event'
import { byte } from '../iotlb/support'
import { recording } from '../trace/support'

const MAIN = join(__dirname, '../../dist/cli/main.js')

let directory: string
beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), 'replay-'))
})
afterAll(() => {
  rmSync(directory, { recursive: true })
})

function run(...args: readonly string[]): {
  status: number | null
  stdout: string
  stderr: string
} {
  return spawnSync(process.execPath, [MAIN, ...args], { encoding: 'utf8', cwd: directory })
}

/** Three pages that are asked for, granted and taken back; one that is not mapped. */
function story(): TraceEvent[] {
  const { events, space, vhost } = recording()
  for (const page of [4, 5, 6]) space.mapPages(page, page, 0x100 + page, 3)
  for (const page of [4, 5, 6, 9]) {
    vhost.access(byte(page, 8), 'read', { queue: page === 9 ? 1 : 0 })
    vhost.settle()
  }
  space.unmapPages(4, 4)
  space.invalidatePages(4, 4)
  return events
}

function stored(name: string, events: readonly TraceEvent[]): string {
  const path = join(directory, name)
  using file = traceFile(path, { startedAt: 0, about: { test: 'story' } })
  for (const event of events) file.sink(event)
  return path
}

describe('vhost-iotlb replay', () => {
  it('says that all was the same, and what is known at the end', () => {
    const { status, stdout } = run('replay', stored('good.trace', story()))
    expect(status).toBe(0)
    expect(stdout).toContain('recorded 1970-01-01T00:00:00.000Z: test story')
    expect(stdout).toContain('; 4 messages as recorded')
    expect(stdout).toContain('holds 2 entries, the oldest first\n  iova 0x5000-0x5fff ->')
    expect(stdout).toContain('1 misses wait\n  iova 0x9000 for read: translation')
  })

  it('says it as one object too, addresses in hexadecimal', () => {
    const path = stored('good.trace', story())
    const { divergence, state, compared } = JSON.parse(run('replay', path, '--json').stdout) as {
      divergence?: unknown
      compared: number
      state: { devices: { shadow: { iova: { first: string } }[] }[] }
    }
    expect({ divergence, compared }).toEqual({ divergence: undefined, compared: 4 })
    expect(state.devices[0].shadow.map(({ iova }) => iova.first)).toEqual(['0x5000', '0x6000'])
  })

  it('stops where it is told to', () => {
    const events = story()
    const path = stored('good.trace', events)
    const first = events.findIndex(({ kind }) => kind === 'update')
    const { stdout } = run('replay', path, '--stop', String(first + 1))
    expect(stdout).toContain(`${first + 1} events replayed`)
    expect(stdout).toContain('holds 1 entries')
  })

  it('exits with 1 where the handler does something else now', () => {
    const events = story().map((event) =>
      event.kind === 'update' && event.firstPage === 5 ? { ...event, access: 1 } : event,
    )
    const { status, stdout } = run('replay', stored('bad.trace', events))
    expect(status).toBe(1)
    expect(stdout).toMatch(/DIFFERENT at event \d+\n {2}recorded: update .*access 0x1/)
    expect(stdout).toMatch(/replayed: UPDATE 0x5-0x5 .*access 3/)
  })

  it('prints a line for each policy, look-ahead and size', () => {
    const path = stored('good.trace', story())
    const policies = ['--policy', 'exact', 'merged:8192', '--look-ahead', 'off', 'on-kick']
    const { stdout, status } = run('replay', path, ...policies, '--entries', '8', '64', '--json')
    expect(status).toBe(0)
    const { simulated, recorded } = JSON.parse(stdout) as {
      recorded: unknown
      simulated: { policy: string; lookAhead: string; entries: number }[]
    }
    expect(recorded).toEqual({ misses: 4, updates: 3, invalidates: 1 })
    expect(simulated.map(({ policy, lookAhead, entries }) => [policy, lookAhead, entries])).toEqual(
      [
        ['exact', 'off', 8],
        ['exact', 'off', 64],
        ['exact', 'on-kick', 8],
        ['exact', 'on-kick', 64],
        ['merged:8192', 'off', 8],
        ['merged:8192', 'off', 64],
        ['merged:8192', 'on-kick', 8],
        ['merged:8192', 'on-kick', 64],
      ],
    )
  })

  it('refuses what is no trace and no policy in a line', () => {
    const none = run('replay', MAIN)
    expect(none).toMatchObject({ status: 1, stderr: 'vhost-iotlb: this is not a trace\n' })
    expect(run('replay', MAIN, '--policy', 'merged').stderr).toContain('exact or merged:BYTES')
    expect(run('replay', join(directory, 'none')).stderr).toContain('ENOENT')
  })
})

describe('vhost-iotlb pcapng', () => {
  it('writes a capture and says how to open it', () => {
    const path = stored('good.trace', story())
    const { stdout, status } = run('pcapng', path, 'out.pcapng')
    expect(status).toBe(0)
    expect(stdout).toContain('0 frames and 8 messages written to out.pcapng')
    expect(stdout).toMatch(/lua_script:.*wireshark\/vhost-iotlb.lua/)
    expect(readFileSync(join(directory, 'out.pcapng')).readUInt32LE(0)).toBe(0x0a0d0d0a)
  })
})

import { execFileSync, spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import type { TraceEvent } from '../../lib/trace/event'
import { LINKTYPE, exportPcapng } from '../../lib/trace/pcapng'

/** 2026-01-02T03:04:05.006Z */
const STARTED = Date.UTC(2026, 0, 2, 3, 4, 5, 6)
const DISSECTOR = join(__dirname, '../../wireshark/vhost-iotlb.lua')

/** An ARP request, so that Wireshark has something to say of it. */
const ARP = Uint8Array.from([
  ...[255, 255, 255, 255, 255, 255, 2, 0, 0, 0, 0, 2, 8, 6],
  ...[0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 2, 192, 0, 2, 2, 0, 0, 0, 0, 0, 0, 192, 0, 2, 1],
])

const EVENTS: readonly TraceEvent[] = [
  { kind: 'kick', at: 0, device: 0, queue: 1 },
  { kind: 'miss', at: 1000, device: 0, page: 0xfffffffff, offset: 0x123, access: 1 },
  {
    ...{ kind: 'update', at: 2001, device: 0, firstPage: 0xfffffffff, lastPage: 0x1000000000 },
    ...{ hvaPage: 0x7f0012345, access: 3, error: 0 },
  },
  { kind: 'frame', at: 3000, device: 0, queue: 1, length: 42, bytes: ARP },
  { kind: 'frame', at: 4000, device: 0, queue: 0, length: 1514, bytes: ARP.subarray(0, 41) },
  { kind: 'invalidate', at: 5000, device: 1, firstPage: 0, lastPage: 2 ** 51 - 1, error: 22 },
]

function exported(events: readonly TraceEvent[]): Buffer {
  const blocks: Uint8Array[] = []
  const header = { version: 1, startedAt: STARTED, about: {} }
  const counts = exportPcapng({ header, events }, (block) => blocks.push(block))
  expect(counts).toEqual({ frames: 2, messages: 3 })
  return Buffer.concat(blocks)
}

describe('a capture', () => {
  it('is blocks that say their length twice, in multiples of 4', () => {
    const bytes = exported(EVENTS)
    const types: number[] = []
    let at = 0
    while (at < bytes.length) {
      const length = bytes.readUInt32LE(at + 4)
      expect(length % 4).toBe(0)
      expect(bytes.readUInt32LE(at + length - 4)).toBe(length)
      types.push(bytes.readUInt32LE(at))
      at += length
    }
    expect(at).toBe(bytes.length)
    expect(types).toEqual([0x0a0d0d0a, 1, 6, 6, 1, 6, 6, 1, 6])
  })

  it('has an interface of messages and one of Ethernet for each device that has any', () => {
    const bytes = exported(EVENTS)
    const links: number[] = []
    for (let at = 0; at < bytes.length; at += bytes.readUInt32LE(at + 4)) {
      if (bytes.readUInt32LE(at) === 1) links.push(bytes.readUInt16LE(at + 8))
    }
    expect(links).toEqual([LINKTYPE.user0, LINKTYPE.ethernet, LINKTYPE.user0])
  })
})

const tshark = spawnSync('tshark', ['--version']).status === 0

describe.skipIf(!tshark)(
  `tshark${tshark ? '' : ' (not installed: apt-get install tshark)'}`,
  () => {
    let directory: string
    let capture: string
    beforeAll(() => {
      directory = mkdtempSync(join(tmpdir(), 'pcapng-'))
      capture = join(directory, 'run.pcapng')
      writeFileSync(capture, exported(EVENTS))
    })
    afterAll(() => {
      rmSync(directory, { recursive: true })
    })

    function read(...fields: readonly string[]): string[][] {
      const flags = fields.flatMap((field) => ['-e', field])
      const script = ['-X', `lua_script:${DISSECTOR}`]
      const output = execFileSync('tshark', [...script, '-r', capture, '-T', 'fields', ...flags], {
        ...{ encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] },
        // Without its own settings and those of whoever runs the test.
        env: { ...process.env, HOME: directory, XDG_CONFIG_HOME: directory },
      })
      return output
        .trimEnd()
        .split('\n')
        .map((line) => line.split('\t'))
    }

    it('opens it as one timeline of frames and messages', () => {
      const rows = read('frame.time_epoch', 'frame.interface_name', '_ws.col.Protocol')
      expect(rows).toEqual([
        ['1767323045.006001000', 'iotlb0', 'IOTLB'],
        ['1767323045.006002001', 'iotlb0', 'IOTLB'],
        ['1767323045.006003000', 'device0', 'ARP'],
        ['1767323045.006004000', 'device0', expect.any(String)],
        ['1767323045.006005000', 'iotlb1', 'IOTLB'],
      ])
    })

    it('shows the fields of each message by the dissector of the package', () => {
      const rows = read(
        ...['vhost_iotlb.type', 'vhost_iotlb.iova', 'vhost_iotlb.size', 'vhost_iotlb.uaddr'],
        ...['vhost_iotlb.perm', 'vhost_iotlb.error', 'frame.len'],
      )
      expect(
        rows.map((row) => row.map((cell) => (/^0x/.test(cell) ? BigInt(cell) : cell))),
      ).toEqual([
        ['1', 0xfffffffff123n, '', '', '1', '0', '32'],
        ['2', 0xfffffffff000n, '8192', 0x7f0012345000n, '3', '0', '32'],
        ['', '', '', '', '', '', '42'],
        ['', '', '', '', '', '', '1514'],
        ['3', 0n, '9223372036854775808', '', '', '22', '32'],
      ])
    })

    it('says in a line what a message says', () => {
      const [[miss], [update], , , [invalidate]] = read('_ws.col.Info')
      expect(miss).toBe('MISS iova 0xfffffffff123 read')
      expect(update).toBe('UPDATE iova 0xfffffffff000 size 8192 -> 0x7f0012345000 readwrite')
      expect(invalidate).toBe('INVALIDATE iova 0x0 size 9223372036854775808 REFUSED')
    })
  },
)

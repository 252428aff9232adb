import { execFileSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, afterEach, beforeAll, describe, expect, it, vi } from 'vitest'
import { GiB } from '../../lib/address'
import { explain } from '../../lib/cli/explain-command'
import type { ExplainOptions } from '../../lib/cli/explain-command'
import { MemoryDump } from '../../lib/cli/memory-dump'
import { address, dumpPart } from '../../lib/cli/numbers'

const PAGES = 16

/** Root at 0x1000, context at 0x2000, tables from 0x3000 on: iova 0x1000 is read-only gpa 0x9000. */
function tables(): Uint8Array {
  const words = new BigUint64Array(PAGES * 512)
  words[0x1000 / 8] = 0x2001n
  words[0x2000 / 8 + 0x18 * 2] = 0x3001n
  words[0x2000 / 8 + 0x18 * 2 + 1] = 0x702n
  words[0x3000 / 8] = 0x4003n
  words[0x4000 / 8] = 0x5003n
  words[0x5000 / 8] = 0x6003n
  words[0x6000 / 8 + 1] = 0x9001n
  return new Uint8Array(words.buffer)
}

let folder: string
let file: string
const printed: string[] = []

beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'explain-'))
  file = join(folder, 'memory.bin')
  writeFileSync(file, tables())
})

afterAll(() => {
  rmSync(folder, { recursive: true })
})

afterEach(() => {
  vi.restoreAllMocks()
  printed.length = 0
})

function run(at: bigint, options: Partial<ExplainOptions> = {}, requester = '00:03.0'): number {
  vi.spyOn(console, 'log').mockImplementation((line: string) => printed.push(line))
  return explain(requester, at, {
    memory: dumpPart(file),
    root: 0x1000n,
    access: 'none',
    ats: false,
    json: false,
    ...options,
  })
}

interface Printed {
  readonly granted: boolean
  readonly steps: readonly {
    readonly what: string
    readonly at?: string
    readonly value?: string
  }[]
}

describe('a walk', () => {
  it('goes from the root entry to the leaf, with address and raw value of each entry', () => {
    expect(run(0x1234n, { json: true })).toBe(0)
    const { granted, steps } = JSON.parse(printed.join('\n')) as Printed
    expect(granted).toBe(true)
    expect(steps.map(({ what, at, value }) => [what, at, value])).toEqual([
      ['root entry', '0x1000', '0x2001'],
      ['context entry', '0x2180', '0x7020000000000003001'],
      ['second-stage level 4', '0x3000', '0x4003'],
      ['second-stage level 3', '0x4000', '0x5003'],
      ['second-stage level 2', '0x5000', '0x6003'],
      ['second-stage level 1', '0x6008', '0x9001'],
      ['translation', undefined, undefined],
    ])
  })

  it('says in words what came out', () => {
    run(0x1234n)
    expect(printed.join('\n')).toMatch(/level 1 +at 0x6008 {2}0x9001\n +R=0x1 ADDR=0x9/)
    expect(printed.join('\n')).toMatch(/translation: 00:03\.0 at 0x1234: read of 0x1000 bytes/)
  })

  it('ends at the entry that refuses, with the number and the words of the fault', () => {
    expect(run(0x1000n, { access: 'write' })).toBe(2)
    expect(printed.join('\n')).toMatch(/refusal: 00:03\.0 at 0x1000: fault 0x5, write-denied/)
    printed.length = 0
    expect(run(0x2000n)).toBe(2)
    expect(printed.join('\n')).toMatch(/level 1 +at 0x6010 {2}0x0\n +all zero/)
    printed.length = 0
    expect(run(0x1000n, {}, '01:00.0')).toBe(2)
    expect(printed.join('\n')).toMatch(/root-not-present/)
  })

  it('refuses a translation request where the context entry does not allow any', () => {
    expect(run(0x1000n, { ats: true })).toBe(2)
    expect(printed.join('\n')).toMatch(/type-blocked/)
  })

  it('knows what the unit cannot do from its CAP and ECAP', () => {
    // Three levels only, as QEMU has by default.
    const cap = 0x00d2008c22260206n
    expect(run(0x1000n, { cap })).toBe(2)
    expect(printed.join('\n')).toMatch(/context-invalid/)
    expect(run(0x1000n, { cap: 0x00d2008c222f0606n, ecap: 0xf00f4en })).toBe(0)
  })

  it('takes the mode of the tables from the root register', () => {
    expect(run(0x1000n, { root: 0x1400n })).toBe(2)
    expect(printed.join('\n')).toMatch(/scalable-mode root entry/)
    printed.length = 0
    expect(run(0x1000n, { root: 0x1400n, ecap: 0xf00f4en })).toBe(2)
    expect(printed.join('\n')).not.toMatch(/scalable-mode root entry/)
  })

  it('leaves the dump as it was', () => {
    run(0x1000n, { access: 'write' })
    expect(Buffer.compare(readFileSync(file), tables())).toBe(0)
  })
})

describe('the command', () => {
  const main = join(import.meta.dirname, '../../dist/cli/main.js')
  const command = (...args: string[]): string =>
    execFileSync(process.execPath, [main, 'explain', ...args], { encoding: 'utf8' })

  it('reads addresses in hexadecimal, and memory from several files', () => {
    const high = join(folder, 'high.bin')
    writeFileSync(high, tables().subarray(0x2000))
    const low = join(folder, 'low.bin')
    writeFileSync(low, tables().subarray(0x1000, 0x2000))
    const said = command(
      ...['--memory', `${low}@0x1000`, '--memory', `${high}@2000`],
      ...['--root', '1000', '00:03.0', '1000'],
    )
    expect(said).toContain('read of 0x1000 bytes from iova 0x1000 to gpa 0x9000')
  })

  it('exits with 2 for a refusal', () => {
    expect(() => command('--memory', file, '--root', '0x1000', '00:04.0', '0x1000')).toThrow(
      expect.objectContaining({ status: 2 }) as Error,
    )
  })

  it('exits with 1, in words, for what it cannot do', () => {
    const wrong: readonly (readonly [string[], RegExp])[] = [
      [['--memory', `${file}@123`, '--root', '1000', '00:03.0', '0'], /no page starts at 0x123/],
      [['--memory', `${folder}/none`, '--root', '1000', '00:03.0', '0'], /ENOENT/],
      [['--memory', file, '--root', '1000', '3', '0'], /not a PCI address/],
      [['--memory', file, '--root', 'xyz', '00:03.0', '0'], /hexadecimal/],
      [['--root', '1000', '00:03.0', '0'], /--memory/],
    ]
    for (const [args, words] of wrong) {
      try {
        execFileSync(process.execPath, [main, 'explain', ...args], { stdio: 'pipe' })
        expect.unreachable()
      } catch (error) {
        const { status, stderr } = error as { status: number; stderr: Buffer }
        expect([status, stderr.toString()]).toEqual([1, expect.stringMatching(words)])
      }
    }
  })
})

describe('a memory dump', () => {
  it('finds whole pages where their files say, and nothing else', () => {
    using dump = new MemoryDump([
      { path: file, at: 0 },
      { path: file, at: 4 * GiB },
    ])
    expect(dump.find(0x1008)?.u32[0]).toBe(0x2001)
    expect(dump.find(4 * GiB + 0x1fff)?.start).toBe(4 * GiB + 0x1000)
    expect(dump.find(PAGES * 4096)).toBeUndefined()
    expect(dump.find(4 * GiB - 1)).toBeUndefined()
  })

  it('refuses files that overlap, that start within a page, or that hold none', () => {
    const part = join(folder, 'part.bin')
    writeFileSync(part, new Uint8Array(100))
    const wrong = [
      [
        { path: file, at: 0 },
        { path: file, at: 0x1000 },
      ],
      [{ path: file, at: 0x10 }],
      [{ path: part, at: 0 }],
    ]
    for (const parts of wrong) expect(() => new MemoryDump(parts)).toThrow(RangeError)
  })
})

describe('arguments', () => {
  it('are a file alone, or with the address that it starts at', () => {
    expect(dumpPart('a')).toEqual([{ path: 'a', at: 0 }])
    expect(dumpPart('a@b/c.bin@0x100000000', [{ path: 'z', at: 0 }])).toEqual([
      { path: 'z', at: 0 },
      { path: 'a@b/c.bin', at: 4 * GiB },
    ])
    expect(dumpPart('me@home.bin')).toEqual([{ path: 'me@home.bin', at: 0 }])
  })

  it('are hexadecimal with or without a prefix', () => {
    expect([address('0x10'), address('10'), address('FFFFffffFFFFffff')]).toEqual([
      16n,
      16n,
      2n ** 64n - 1n,
    ])
    for (const wrong of ['', '0x', '-1', '1g', '10000000000000000']) {
      expect(() => address(wrong)).toThrow(/hexadecimal/)
    }
  })
})

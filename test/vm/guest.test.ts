import { execFileSync } from 'node:child_process'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { decodeResult, encodeJob, INIT_SCRIPT, RUN_JOB_SCRIPT, type Job } from '../../lib/vm/guest'

const JOB: Job = {
  projectDirectory: '/',
  workingDirectory: '/',
  packed: false,
  ownsFiles: true,
  command: ['true'],
  env: {},
}

/** The scripts of a job, each after a line with its length in bytes. */
function blocks(encoded: Buffer): string[] {
  const found: string[] = []
  for (let at = 0; at < encoded.length;) {
    const end = encoded.indexOf('\n', at)
    const from = end + 1
    const to = from + Number(encoded.toString('latin1', at, end))
    found.push(encoded.toString('utf8', from, to))
    at = to
  }
  return found
}

const sh = (script: string) => execFileSync('/bin/sh', ['-c', script]).toString()

describe('encodeJob', () => {
  it('tells the guest what to mount, and of a terminal with its size', () => {
    const terminal = { rows: 24, columns: 80 }
    const [settings] = blocks(encodeJob({ ...JOB, projectDirectory: "/it's", terminal }))
    expect(sh(`${settings}\necho "$project|$terminal|$rows|$columns"`)).toBe("/it's|1|24|80\n")
  })

  it('runs the command in its directory with just that environment', () => {
    const env = { A: '1', B: 'two words\nand $lines' }
    const job: Job = { ...JOB, workingDirectory: '/usr', command: ['sh', '-c', 'pwd; env'], env }
    const [, , script] = blocks(encodeJob(job))
    const lines = sh(script)
      .split('\n')
      .filter((line) => !/^(PWD|OLDPWD|_|SHLVL)=/.test(line))
    expect(lines[0]).toBe('/usr')
    expect(lines.slice(1).sort()).toEqual(['', 'A=1', 'B=two words', 'and $lines'])
  })

  it('passes every argument as it is', () => {
    const argument = fc.string({ unit: 'grapheme', maxLength: 12 }).filter((s) => !s.includes('\0'))
    fc.assert(
      fc.property(fc.array(argument, { maxLength: 4 }), (args) => {
        const [, , script] = blocks(
          encodeJob({ ...JOB, command: ['printf', '%s\\0', '-', ...args] }),
        )
        expect(sh(script).split('\0').slice(1, -1)).toEqual(args)
      }),
      { numRuns: 30 },
    )
  })

  it('has nothing to run before the command, or what is asked for, in the same environment', () => {
    expect(blocks(encodeJob(JOB))[1]).toBe('')
    const job: Job = { ...JOB, before: ['sh', '-c', 'echo "$A ready"'], env: { A: 'it is' } }
    expect(sh(blocks(encodeJob(job))[1])).toBe('it is ready\n')
  })

  it('does not run the command elsewhere when its directory is missing', () => {
    const job: Job = { ...JOB, workingDirectory: '/no/such', command: ['echo', 'ran'] }
    const [, , script] = blocks(encodeJob(job))
    expect(sh(`(${script}) 2>/dev/null || echo $?`)).toBe('126\n')
  })
})

describe('decodeResult', () => {
  it('reads status, signal and the lengths of the output', () => {
    const result = { status: 137, signal: 9, stdoutBytes: 12, stderrBytes: 0 }
    expect(decodeResult('exit 137 9 12 0')).toEqual(result)
  })

  it.each(['stage command', 'exit 1', 'exit  0 0 0', 'exit 0 0 0 0 0'])('is none in %j', (line) => {
    expect(decodeResult(line)).toBeUndefined()
  })
})

describe('the scripts of the guest', () => {
  it.each([
    ['init', INIT_SCRIPT],
    ['run-job', RUN_JOB_SCRIPT],
  ])('%s is a shell script without a syntax error', (_name, script) => {
    expect(() => execFileSync('/bin/sh', ['-n'], { input: script })).not.toThrow()
  })
})

import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { runInVm, type VmOptions, type VmResult, type VmStage } from '../../lib/vm/run-in-vm'
import { processesWith } from './traces'

const root = new URL('../..', import.meta.url).pathname
const MARK = `VHOST_IOTLB_VM_TEST=${process.pid}`
const LINES = 20_000

let directory: string

/** What one boot of each kernel tells; the two run at the same time. */
const script = `
  uname -r
  ls /dev/vhost-net /dev/net/tun /dev/pts/ptmx
  cat
  echo "$GREETING from $(pwd)"
  cat /sys/class/net/lo/flags
  nproc
  date +%s
  echo error >/dev/stderr
  mkdir from-guest && echo written >from-guest/file
  touch /etc/only-in-the-guest && ls /etc/only-in-the-guest
  seq ${LINES} >&2
  seq ${LINES}
  sleep 1000 &
`

beforeAll(() => {
  process.env['VHOST_IOTLB_VM_TEST'] = String(process.pid)
  directory = mkdtempSync(join(root, 'vm-tests/vm/scratch-'))
})

afterAll(() => {
  rmSync(directory, { recursive: true })
})

const options = (command: readonly string[]): VmOptions => ({
  command,
  projectDirectory: directory,
  stdout: 'capture',
  stderr: 'capture',
})

describe('a command in the VM', () => {
  const stages: VmStage[] = []
  let result: VmResult
  let older: VmResult
  let lines: string[]

  beforeAll(async () => {
    const both = await Promise.all([
      runInVm({
        ...options(['sh', '-c', `${script}\nexit 3`]),
        env: { GREETING: "it's me", PATH: '/usr/bin:/bin' },
        stdin: Readable.from(['from\n', 'outside\n']),
        onProgress: ({ stage }) => stages.push(stage),
      }),
      runInVm({
        ...options(['sh', '-c', 'uname -r; ls /dev/vhost-net; kill -KILL $$']),
        kernel: '6.1',
      }),
    ])
    result = both[0]
    older = both[1]
    lines = result.stdout.split('\n')
  })

  it('gives its exit status', () => {
    expect(result).toMatchObject({ status: 3, signal: null, timedOut: false })
  })

  it('gives the signal that killed it, with the status of a shell', () => {
    expect(older).toMatchObject({ status: 137, signal: 'SIGKILL', timedOut: false })
  })

  it('runs on the kernel that was asked for', () => {
    expect(lines[0]).toBe(result.release)
    expect(result.release).toMatch(/^6\.12\..*cloud-amd64$/)
    expect(older.stdout.split('\n')[0]).toBe(older.release)
    expect(older.release).toMatch(/^6\.1\..*cloud-amd64$/)
  })

  it('has vhost-net and tun on both kernels', () => {
    expect(lines.slice(1, 4)).toEqual(['/dev/net/tun', '/dev/pts/ptmx', '/dev/vhost-net'])
    expect(older.stdout.split('\n')[1]).toBe('/dev/vhost-net')
  })

  it('reads its input to the end', () => {
    expect(lines.slice(4, 6)).toEqual(['from', 'outside'])
  })

  it('runs in the project directory with the given environment', () => {
    expect(lines[6]).toBe(`it's me from ${directory}`)
  })

  it('finds the loopback device up, two processors and the right time', () => {
    expect(Number(lines[7]) & 1).toBe(1)
    expect(lines[8]).toBe('2')
    expect(Math.abs(Number(lines[9]) - Date.now() / 1000)).toBeLessThan(120)
  })

  it('writes through in the project directory, and nowhere else', () => {
    expect(readFileSync(join(directory, 'from-guest/file'), 'utf8')).toBe('written\n')
    expect(lines[10]).toBe('/etc/only-in-the-guest')
    expect(() => readFileSync('/etc/only-in-the-guest')).toThrow('ENOENT')
  })

  it('gives all of standard output and standard error, apart from each other', () => {
    const numbers = Array.from({ length: LINES }, (_, index) => String(index + 1))
    expect(lines.slice(11)).toEqual([...numbers, ''])
    expect(result.stderr.split('\n')).toEqual(['error', ...numbers, ''])
  })

  it('tells how far it is', () => {
    const expected: VmStage[] = ['kernel', 'image', 'boot', 'init', 'modules', 'command']
    expect(stages.filter((stage) => expected.includes(stage))).toEqual(expected)
  })

  it('leaves no process behind, though the command left one', () => {
    expect(processesWith(MARK)).toEqual([])
  })
})

describe('a command on copied files', () => {
  it('runs with the project and node, and writes nothing to the host', async () => {
    writeFileSync(join(directory, 'script.js'), 'console.log(process.version); process.exit(5)')
    const command = ['sh', '-c', 'ls /dev/vhost-net && echo lost >lost && node script.js']
    const result = await runInVm({ ...options(command), kernel: '6.1', files: 'copied' })
    expect(result.stdout.split('\n')).toEqual(['/dev/vhost-net', process.version, ''])
    expect(result.status).toBe(5)
    expect(readdirSync(directory)).not.toContain('lost')
  })
})

describe('a VM that is not to go on', () => {
  it('is ended by its time limit', async () => {
    const started = Date.now()
    const result = await runInVm({ ...options(['sleep', '1000']), timeoutSeconds: 8 })
    expect(result).toMatchObject({ status: 124, signal: null, timedOut: true })
    expect(Date.now() - started).toBeLessThan(12_000)
    expect(processesWith(MARK)).toEqual([])
  })

  it('is ended by its signal at any time', async () => {
    const stop = new AbortController()
    const running = runInVm({
      ...options(['true']),
      signal: stop.signal,
      onProgress: ({ stage }) => {
        if (stage === 'boot')
          setTimeout(() => {
            stop.abort()
          }, 200)
      },
    })
    await expect(running).rejects.toMatchObject({ code: 'ERR_VM_ABORTED' })
    expect(processesWith(MARK)).toEqual([])
  })
})

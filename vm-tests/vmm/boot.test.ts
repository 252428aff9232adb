/** The command `boot`, from outside: a process with a console, and a guest at the other end of it. */
import { spawn, spawnSync } from 'node:child_process'
import type { ChildProcess } from 'node:child_process'
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest'
import { setAddress } from '../../lib/vhost/interface'
import { debianGuest } from '../../lib/vmm/debian-guest'
import { READY } from '../../lib/vmm/guest-shell'
import { GUEST_IP, HOST_IP, sameLine } from './guest'

const MAIN = join(new URL('../..', import.meta.url).pathname, 'dist/cli/main.js')
const TAP = 'booted'
const BOOT_SECONDS = 60
const SECOND = 1000

let directory: string
let kernel: string
let files: readonly string[]
let child: ChildProcess | undefined

beforeAll(async () => {
  const { image } = await debianGuest(sameLine(), 'strict')
  directory = mkdtempSync(join(tmpdir(), 'boot-'))
  const put = (name: string, content: Uint8Array): string => {
    const path = join(directory, name)
    writeFileSync(path, content)
    return path
  }
  kernel = put('vmlinuz', image.kernel)
  const append = image.commandLine
  files = ['--kernel', kernel, '--initrd', put('initrd', image.initrd!), '--append', append]
})

afterAll(() => {
  rmSync(directory, { recursive: true })
})

afterEach(() => {
  child?.kill('SIGKILL')
  child = undefined
})

/** A process with what it writes, and how it ends. */
function start(program: string, args: readonly string[]) {
  const process = spawn(program, args)
  child = process
  const said = { out: '', err: '' }
  process.stdout.on('data', (bytes: Buffer) => (said.out += bytes.toString()))
  process.stderr.on('data', (bytes: Buffer) => (said.err += bytes.toString()))
  const ended = new Promise<number | string | null>((resolve) => {
    process.on('close', (status, signal) => {
      resolve(status ?? signal)
    })
  })
  return { process, said, ended }
}

const boot = (...args: readonly string[]) => start(process.execPath, [MAIN, 'boot', ...args])

async function until(done: () => boolean, seconds: number, what: () => string): Promise<void> {
  const deadline = performance.now() + seconds * SECOND
  while (!done()) {
    if (performance.now() > deadline) throw new Error(`not within ${seconds} s: ${what()}`)
    await sleep(20)
  }
}

describe('vhost-iotlb boot', () => {
  it(`is a console of a guest that this host can ping, and ends as the guest powers off`, async () => {
    const { process, said, ended } = boot(...files, '--tap', TAP, '--json')
    const hears = (text: string) =>
      until(
        () => said.err.includes(text),
        BOOT_SECONDS,
        () => said.err,
      )
    const started = performance.now()
    await hears(READY)
    expect((performance.now() - started) / SECOND).toBeLessThan(BOOT_SECONDS)

    setAddress(TAP, Uint8Array.from(HOST_IP.split('.'), Number), 24)
    process.stdin.write(`ip addr add ${GUEST_IP}/24 dev eth0; ip link set eth0 up\n`)
    process.stdin.write('echo typed $((6 * 7))\n')
    await hears('typed 42')
    const ping = spawnSync('busybox', ['ping', '-c', '3', '-i', '0.2', GUEST_IP], {
      encoding: 'utf8',
    })
    expect(ping.stdout).toMatch(/ 0% packet loss/)

    process.stdin.write('poweroff -f\n')
    expect(await ended, said.err).toBe(0)
    const result = JSON.parse(said.out) as Record<string, unknown>
    expect(result).toMatchObject({ ending: { how: 'power-off' }, recordedFaults: 0 })
    expect(Number(result['boots']) - Number(result['tripleFaults'])).toBe(1)
    expect(result['nic']).toMatchObject({ faults: 0, entries: 0 })
  })

  it('ends by Ctrl-] on a terminal, which it leaves as it found it', async () => {
    const quoted = [process.execPath, MAIN, 'boot', ...files].map((word) => `'${word}'`).join(' ')
    const {
      process: terminal,
      said,
      ended,
    } = start('script', [...['-qec', `${quoted}; echo status $?; stty -a`, '/dev/null']])
    await until(
      () => said.out.includes('Ctrl-]'),
      BOOT_SECONDS,
      () => said.out,
    )
    terminal.stdin.write('\x1d')
    await ended
    expect(said.out).toMatch(/closed after .* s[^]*\nstatus 0\r?\n/)
    expect(said.out).toMatch(/[; ]icanon/)
  })

  it('ends by SIGTERM, with its tap', async () => {
    const { process, said, ended } = boot(...files, '--tap', TAP)
    await until(
      () => existsSync(`/sys/class/net/${TAP}`),
      BOOT_SECONDS,
      () => said.err,
    )
    process.kill('SIGTERM')
    expect(await ended).toBe('SIGTERM')
    expect(existsSync(`/sys/class/net/${TAP}`)).toBe(false)
  })

  it.each<[string, () => readonly string[], RegExp]>([
    ['what is no bzImage', () => ['--kernel', MAIN], /not a Linux kernel image/],
    ['five processors', () => ['--kernel', kernel, '--cpus', '5'], /processors .* 1 to 4: 5/],
  ])('says in one line that it cannot with %s', async (_what, args, message) => {
    const { said, ended } = boot(...args(), '--tap', TAP)
    expect(await ended).toBe(1)
    expect(said.out).toBe('')
    expect(said.err).toMatch(new RegExp(`^vhost-iotlb: .*${message.source}.*\n$`))
  })
})

/**
 * How the stack ends where nobody asked it to: its thread is terminated, its process is killed, it
 * is closed from within its own callbacks. Nothing is left behind in the kernel.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync, readdirSync } from 'node:fs'
import { createInterface } from 'node:readline'
import { expect, test } from 'vitest'
import { MiB } from '../../lib/address'
import { frame } from '../support/frames'
import { PlainGuest, Rig, TX } from '../support/rig'
import { until } from '../support/until'

const SERVE = new URL('../children/serve.mjs', import.meta.url).pathname
/** Three threads of Node that start on a host that has no time. */
const LONG = { timeout: 180_000 }
const HOSTS = ['10.76.0.1', '10.76.1.1']

/** Threads of vhost, the kernel's own (6.1) or those of a process (6.12). */
function workers(): number {
  const processes = readdirSync('/proc').filter((name) => /^\d+$/.test(name))
  return processes.flatMap(threadNames).filter((name) => name.startsWith('vhost-')).length
}

function threadNames(id: string): string[] {
  try {
    const threads = readdirSync(`/proc/${id}/task`)
    return threads.map((thread) => readFileSync(`/proc/${id}/task/${thread}/comm`, 'utf8'))
  } catch {
    // It has ended since.
    return []
  }
}

function sharedMemory(): number {
  return Number(/Shmem:\s*(\d+)/.exec(readFileSync('/proc/meminfo', 'utf8'))?.[1]) * 1024
}

const interfaces = (): number =>
  readdirSync('/sys/class/net').filter((name) => name.startsWith('stack')).length

test('a Worker that is terminated, and a process that is killed, leave nothing', LONG, async () => {
  const before = { workers: workers(), shared: sharedMemory() }
  const serving = spawn(process.execPath, [SERVE, ...HOSTS], { stdio: ['pipe', 'pipe', 'inherit'] })
  const answers = new Map<string, number>()
  let left: unknown
  createInterface({ input: serving.stdout }).on('line', (line) => {
    const [word, rest] = line.split(' ')
    if (word === 'left') left = JSON.parse(rest)
    else answers.set(word, Number(rest))
  })
  await until(() => HOSTS.every((host) => answers.has(host)), LONG.timeout / 2)
  expect([workers(), interfaces()]).toEqual([before.workers + 2, 2])
  expect(sharedMemory() - before.shared).toBeGreaterThan(60 * MiB)

  serving.stdin.write('one of them\n')
  await until(() => left !== undefined)
  expect(left).toEqual({ memories: 1, devices: 1, taps: 1, interfaces: 1 })
  await until(() => workers() === before.workers + 1)
  const [, host] = HOSTS
  const count = answers.get(host)!
  await until(() => answers.get(host)! > count + 1)

  serving.kill('SIGKILL')
  await once(serving, 'exit')
  await until(() => workers() === before.workers && interfaces() === 0)
  await until(() => sharedMemory() - before.shared < 2 * MiB)
})

test('a device that is closed by its own callbacks closes, whatever called', async () => {
  for (const where of ['onFault', 'onCall', 'onStall'] as const) {
    await using rig = await Rig.open(() => new PlainGuest(), { watchdog: 20 })
    let closed = 0
    const close = (): void => {
      closed++
      rig.nic.close()
    }
    if (where === 'onFault') rig.nic.onFault(close)
    else if (where === 'onStall') rig.nic.onStall(close)
    else rig.nic.onCall(TX, close)
    const iova = rig.map(0, 'read')
    if (where !== 'onCall') rig.guest.unmap(iova)
    rig.offer(TX, iova, rig.write(0, frame(1, 100)))
    await until(() => closed > 0)
    expect([where, closed, rig.nic.started]).toEqual([where, 1, false])
    expect(() => {
      rig.nic.start()
    }).toThrow(expect.objectContaining({ code: 'ERR_CLOSED' }) as Error)
  }
})

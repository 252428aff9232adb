/**
 * How the stack ends where nobody asked it to: its thread is terminated, its process is killed, it
 * is closed from within its own callbacks. Nothing is left behind in the kernel.
 */
import { spawn } from 'node:child_process'
import type { ChildProcess } from 'node:child_process'
import { readFileSync, readdirSync } from 'node:fs'
import { createInterface } from 'node:readline'
import { setTimeout as pause } from 'node:timers/promises'
import { expect, test } from 'vitest'
import { MiB } from '../../lib/address'
import { frame } from '../support/frames'
import { PlainGuest, Rig, TX } from '../support/rig'

const children = new URL('../children/', import.meta.url)

function child(script: string, ...args: readonly string[]): ChildProcess {
  const path = new URL(script, children).pathname
  return spawn(process.execPath, [path, ...args], { stdio: ['ignore', 'pipe', 'inherit'] })
}

async function output(process: ChildProcess): Promise<string> {
  let text = ''
  process.stdout?.on('data', (bytes: Buffer) => (text += bytes.toString()))
  const code = await new Promise((resolve) => process.once('close', resolve))
  expect(code).toBe(0)
  return text
}

/** Threads of vhost, the kernel's own (6.1) or those of a process (6.12). */
function workers(): number {
  let count = 0
  for (const id of readdirSync('/proc').filter((name) => /^\d+$/.test(name))) {
    try {
      for (const thread of readdirSync(`/proc/${id}/task`)) {
        const name = readFileSync(`/proc/${id}/task/${thread}/comm`, 'utf8')
        if (name.startsWith('vhost-')) count++
      }
    } catch {
      // It has ended since.
    }
  }
  return count
}

function sharedMemory(): number {
  return Number(/Shmem:\s*(\d+)/.exec(readFileSync('/proc/meminfo', 'utf8'))?.[1]) * 1024
}

const interfaces = (): number =>
  readdirSync('/sys/class/net').filter((name) => name.startsWith('stack')).length

test('a process that is killed leaves no thread of vhost, no interface and no memory', async () => {
  const before = { workers: workers(), shared: sharedMemory() }
  const serving = child('serve.mjs', '10.76.0.1')
  const lines = createInterface({ input: serving.stdout! })
  await new Promise((resolve) => lines.once('line', resolve))
  expect([workers(), interfaces()]).toEqual([before.workers + 1, 1])
  expect(sharedMemory() - before.shared).toBeGreaterThan(30 * MiB)
  serving.kill('SIGKILL')
  await new Promise((resolve) => serving.once('exit', resolve))
  const end = Date.now() + 10_000
  while (Date.now() < end && (workers() > before.workers || interfaces() > 0)) await pause(20)
  expect([workers(), interfaces()]).toEqual([before.workers, 0])
  expect(sharedMemory() - before.shared).toBeLessThan(2 * MiB)
})

test(
  'two Workers serve at once, are terminated while they do, and leave nothing',
  { timeout: 180_000 },
  async () => {
    const { before, after } = JSON.parse(await output(child('workers.mjs', '1'))) as {
      before: Record<string, number>
      after: Record<string, number>
    }
    expect(after).toEqual(before)
    expect(after).toMatchObject({ interfaces: 0, mappings: 0 })
  },
)

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
    for (const end = Date.now() + 10_000; closed === 0 && Date.now() < end;) await pause(5)
    expect([where, closed, rig.nic.started]).toEqual([where, 1, false])
    expect(() => {
      rig.nic.start()
    }).toThrow(expect.objectContaining({ code: 'ERR_CLOSED' }) as Error)
  }
})

/** What needs root, root does; everything else runs as an ordinary user without capabilities. */
import { execFileSync, spawn } from 'node:child_process'
import { chmodSync, chownSync, closeSync, constants, openSync, statSync } from 'node:fs'
import { expect, test } from 'vitest'
import { quietTap } from '../support/quiet-tap'

const NOBODY = 65534
const GROUP = 4242
/** A child loads all of the library by itself. */
const SLOW = { timeout: 180_000 }
const script = new URL('../children/ordinary.mjs', import.meta.url).pathname

interface Told {
  readonly uid: number
  readonly capabilities: string
  readonly answers: number
  readonly refused: readonly string[]
}

async function ordinary(args: readonly string[], fds: readonly number[] = []): Promise<Told> {
  const child = spawn(process.execPath, [script, ...args], {
    stdio: ['ignore', 'pipe', 'inherit', ...fds],
  })
  let text = ''
  child.stdout?.on('data', (bytes: Buffer) => (text += bytes.toString()))
  expect(await new Promise((resolve) => child.once('close', resolve))).toBe(0)
  return JSON.parse(text) as Told
}

/** It may neither make an interface nor change one. */
const ordinaryUser = (making: 'EACCES' | 'EPERM'): Told => ({
  uid: NOBODY,
  capabilities: 'none',
  answers: 20,
  refused: [making, 'EPERM'],
})

/** Changes a node's mode, and gives back what restores it. */
function chmod(path: string, mode: number): () => void {
  const before = statSync(path).mode & 0o777
  chmodSync(path, mode)
  return () => {
    chmodSync(path, before)
  }
}

function address(name: string, host: string): void {
  execFileSync('ip', ['addr', 'add', `${host}/24`, 'dev', name])
  execFileSync('ip', ['link', 'set', name, 'up'])
}

test('descriptors that root opened are enough', SLOW, async () => {
  using tap = quietTap({ up: false })
  address(tap.name, '10.75.0.1')
  const vhost = openSync('/dev/vhost-net', constants.O_RDWR)
  const restore = chmod('/dev/net/tun', 0o600)
  try {
    const fds = [vhost, tap.queues[0].fd]
    const told = await ordinary([`${NOBODY}`, `${NOBODY}`, '10.75.0.1'], fds)
    expect(told).toEqual(ordinaryUser('EACCES'))
  } finally {
    restore()
    closeSync(vhost)
  }
})

test('a tap of the user, and a node for his group, need no descriptor', SLOW, async () => {
  const { gid } = statSync('/dev/vhost-net')
  execFileSync('ip', ['tuntap', 'add', 'owned0', 'mode', 'tap', 'user', `${NOBODY}`, 'vnet_hdr'])
  chownSync('/dev/vhost-net', 0, GROUP)
  const restores = [chmod('/dev/vhost-net', 0o660), chmod('/dev/net/tun', 0o666)]
  try {
    address('owned0', '10.75.1.1')
    const told = await ordinary([`${NOBODY}`, `${GROUP}`, '10.75.1.1', 'owned0'])
    expect(told).toEqual(ordinaryUser('EPERM'))
  } finally {
    for (const restore of restores) restore()
    chownSync('/dev/vhost-net', 0, gid)
    execFileSync('ip', ['link', 'del', 'owned0'])
  }
})

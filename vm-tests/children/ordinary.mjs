// Runs the stack as an ordinary user. What it needs root for, root did: descriptors 3 (vhost) and
// 4 (a tap that is up) are passed in, or, with a name, the tap is the user's own and the node of
// vhost his group's.
//   ordinary.mjs UID GID HOST [TAP]
import { readFileSync } from 'node:fs'
import { Stack, built } from './stack.mjs'

const [uid, gid, host, name] = process.argv.slice(2)
const library = built()
// The addon is loaded at its first use, from a place that the user may not be able to read.
library.GuestMemory.allocate(4096).close()
process.setgroups([])
process.setgid(Number(gid))
process.setuid(Number(uid))

const status = readFileSync('/proc/self/status', 'utf8')
const [, effective] = /CapEff:\s*([0-9a-f]+)/.exec(status)
const tap =
  name === undefined
    ? library.Tap.fromFd(4)
    : library.Tap.open(name, { create: 'never', up: false })
const stack = await Stack.open({ host, tap, device: name === undefined ? { fd: 3 } : {} })
let answers = 0
for (let i = 0; i < 20; i++) if ((await stack.ask()) >= 0) answers++
const refused = []
for (const attempt of [() => library.Tap.open('forbidden0'), () => (tap.mtu = 1400)]) {
  try {
    attempt()
    refused.push('nothing')
  } catch (error) {
    refused.push(error.code)
  }
}
stack.close()
process.stdout.write(
  JSON.stringify({
    uid: process.getuid(),
    capabilities: BigInt(`0x${effective}`) === 0n ? 'none' : effective,
    answers,
    refused,
  }),
)

// The strange hang, made on purpose:  node silent-stall.mjs
// vhost asks for a translation that it lacks, never for a permission that it lacks. Where it holds a
// page read-only and has to write there, it says nothing to its user; it only ticks an eventfd.
import { execFileSync } from 'node:child_process'
import { createSocket } from 'node:dgram'
import { RX, OneDevice, REQUESTER, TX, becomes } from './one-device.mjs'

const WRITE = 2n // VT-d, second-stage entry, bit 1
const lab = new OneDevice({ lookAhead: 'off' })
const reports = []
lab.nic.onStall((report) => reports.push(report))
const show = (text, value) =>
  console.log(
    text,
    JSON.stringify(value, (_, each) =>
      typeof each === 'bigint' ? `0x${each.toString(16)}` : each,
    ),
  )

// The device reads a page: the kernel now holds a translation that allows reading.
const iova = lab.map(0, 'read')
lab.offer(TX, iova, 12 + 60)
await becomes(() => lab.completed(TX))

// The host sends something into the same page, which the tables do not allow to be written.
execFileSync('ip', ['addr', 'add', '192.0.2.1/24', 'dev', lab.tap.name])
const socket = createSocket('udp4').unref()
const { misses } = lab.nic.stats()
lab.offer(RX, iova)
socket.send('hello', 9, '192.0.2.2')
await becomes(() => reports.length > 0)
show('stalled:', { newMisses: lab.nic.stats().misses - misses, ...reports[0] })

// The guest grants more and invalidates nothing: for hardware that is right, the kernel never knows.
const leaf = lab.iommu.explain(REQUESTER, iova).findLast(({ at }) => at !== undefined)
lab.memory.setU64(Number(leaf.at), leaf.value | WRITE)
lab.nic.kick(RX)
await becomes(() => reports.length > 1)
show('repaired:', reports[1])
const arrived = await becomes(() => lab.completed(RX))
show('received:', { arrived, bytes: [...lab.frame(0, 14)] })
socket.close()
lab.close()

/** K10: one message per write, whole messages per read, no batches, and no size of 2^64. */
import { MESSAGE_BYTES, VHOST_IOTLB_INVALIDATE, encodeMessage } from '../../../vhost/uapi'
import { BUFFERS, BUFFERS_GPA, PAGE, TX, codeOf, done } from '../bench'
import type { Bench } from '../bench'
import { fact } from '../case'
import type { Case } from '../case'
import { testFrame } from '../frames'
import { listed } from '../script'

const MISS = 1
const UPDATE = 2
const LAST_PAGE = (1n << 64n) - BigInt(PAGE)

export const k10: readonly Case[] = [
  fact(
    'K10',
    'a read of fewer than 72 bytes answers 0, as at an end, and leaves the message',
    '0 72 EAGAIN 0',
    (open) => {
      const bench = open()
      bench.ring(TX).tryStart()
      const buffer = new Uint8Array(200)
      const lengths = [MESSAGE_BYTES - 1, 200, MESSAGE_BYTES, 0]
      return lengths.map((length) => said(bench.device.read(buffer, length))).join(' ')
    },
  ),
  fact('K10', 'a read gives one message, however large the buffer', '72, 2 left', (open) => {
    const bench = open()
    const ring = bench.ring(TX)
    for (let i = 0; i < 3; i++) ring.tryStart()
    const read = said(bench.device.read(new Uint8Array(4096)))
    return `${read}, ${bench.questions().length} left`
  }),
  fact(
    'K10',
    'sizes and host addresses of a question are zero, and its tail is (CVE-2018-1118)',
    'all zero',
    (open) => {
      const bench = open()
      const ring = bench.ring(TX)
      ring.tryStart()
      const buffer = new Uint8Array(MESSAGE_BYTES).fill(0xaa)
      bench.device.read(buffer)
      const version = bench.device.messageVersion
      const clean = encodeMessage({ version, type: MISS, iova: ring.used, perm: 1 })
      return Buffer.compare(buffer, clean) === 0 ? 'all zero' : Buffer.from(buffer).toString('hex')
    },
  ),
  fact(
    'K10',
    'a write of two messages processes one, and says 72',
    '72, completed 1, asked read 1',
    (open) => {
      const bench = open()
      const ring = bench.runningRing(TX)
      const both = new Uint8Array(2 * MESSAGE_BYTES)
      for (const page of [0, 1]) both.set(updateOf(bench, page), page * MESSAGE_BYTES)
      const written = said(bench.device.write(both))
      ring.send(0, testFrame(0))
      ring.send(1, testFrame(1))
      ring.kick()
      return `${written}, completed ${ring.completed}, asked ${listed(bench.asked())}`
    },
  ),
  fact(
    'K10',
    'a write of fewer than 40 bytes is refused, of 40 or more says 72 (74ad7419489d)',
    'EINVAL 72 72',
    (open) => {
      const bench = open()
      const message = { type: VHOST_IOTLB_INVALIDATE, iova: BUFFERS, size: 4096n }
      return [39, 40, 72].map((length) => said(bench.write(message, length))).join(' ')
    },
  ),
  fact(
    'K10',
    'a batch, or anything but UPDATE and INVALIDATE, is refused',
    'EFAULT EFAULT EFAULT EFAULT EFAULT EFAULT',
    (open) => {
      const bench = open()
      return [0, 1, 4, 5, 6, 7].map((type) => said(bench.write({ type }))).join(' ')
    },
  ),
  fact(
    'K10',
    'both message versions are taken, whatever was negotiated',
    'EINVAL 72 72 EINVAL',
    (open) => {
      const bench = open()
      const message = { type: VHOST_IOTLB_INVALIDATE, iova: BUFFERS, size: 4096n }
      return [0, 1, 2, 3].map((version) => said(bench.write({ version, ...message }))).join(' ')
    },
  ),
  fact(
    'K10',
    'an UPDATE of size 0 is refused: its entry once hung the worker (e2ae38cf3d91)',
    'EINVAL',
    (open) => said(open().update(0n, 0, BUFFERS_GPA, 'read')),
  ),
  fact(
    'K10',
    'everything is taken back in two halves, on every kernel',
    'desc 1, then read 0',
    (open) => {
      const bench = open()
      const ring = bench.runningRing(TX)
      bench.mapBuffers(0, 1, 'read')
      bench.invalidateAll()
      ring.send(0, testFrame(0))
      ring.kick()
      const first = listed(bench.asked())
      ring.mapAgain()
      return `${first}, then ${listed(bench.asked())}`
    },
  ),
  {
    about: 'K10',
    name: 'an INVALIDATE of size 0 means everything, or is refused: never relied on',
    expected: [
      { seen: '72, asked desc 1' },
      { seen: 'EINVAL, asked read 0', where: '5.17 to 6.5 without ca50ec377c2e, and from 7.3 on' },
    ],
    observe: (open) => {
      const bench = open()
      const ring = bench.runningRing(TX)
      const result = said(bench.invalidate(0n, 0))
      ring.offer(0)
      ring.kick()
      return `${result}, asked ${listed(bench.asked())}`
    },
  },
  fact('K10', 'the last page can be granted and taken back', '72 EFAULT 72', (open) => {
    const bench = open()
    const results = [
      bench.update(LAST_PAGE, PAGE, BUFFERS_GPA, 'read'),
      bench.update(LAST_PAGE, PAGE + 1, BUFFERS_GPA, 'read'),
      bench.invalidate(LAST_PAGE, PAGE),
    ]
    return results.map(said).join(' ')
  }),
  fact('K10', 'a range over the end takes back what holds both of its ends', 'read 1', (open) => {
    const bench = open()
    const ring = bench.runningRing(TX)
    bench.mapBuffers(0, 1, 'read')
    bench.mapBuffers(1, 1, 'read')
    // From the middle of page 1 up to its own beginning, the other way round.
    done(bench.invalidate(BUFFERS + BigInt(PAGE + 2048), (1n << 64n) - 1024n))
    ring.offer(0)
    ring.offer(1)
    ring.kick()
    return listed(bench.asked())
  }),
]

function said(result: number): string {
  return result < 0 ? codeOf(result) : String(result)
}

function updateOf(bench: Bench, page: number): Uint8Array {
  return encodeMessage({
    version: bench.device.messageVersion,
    type: UPDATE,
    iova: BUFFERS + BigInt(page * PAGE),
    size: BigInt(PAGE),
    uaddr: bench.memory.hva(BUFFERS_GPA + page * PAGE),
    perm: 1,
  })
}

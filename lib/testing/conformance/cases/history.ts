/**
 * Mistakes of older kernels that can be seen from user space, and are no part of K1 to K12's own
 * cases. Some K cases name a commit, too: those are where their fact is.
 */
import { features } from '../../../virtio/net'
import {
  BUFFERS,
  BUFFERS_GPA,
  FEATURES,
  PAGE,
  ROOM,
  RX,
  TX,
  WITHOUT_IOTLB,
  codeOf,
  done,
} from '../bench'
import type { Bench } from '../bench'
import { fact } from '../case'
import type { Case } from '../case'
import { testFrame } from '../frames'
import { listed } from '../script'

const LOG_GPA = 0x20_0000
/** A bit for each page up to the iova of the buffers. */
const LOG_BYTES = 0x1_0000
const HIGH = 1n << 63n
const LOGGED_GPA = 0x30_0000n

export const history: readonly Case[] = [
  fact(
    '98047313cdb4',
    'a buffer in two entries at the end of the address space is found',
    'completed 1, asked nothing',
    (open) => {
      const bench = open()
      const ring = bench.runningRing(TX)
      const first = (1n << 64n) - BigInt(2 * PAGE)
      for (const page of [0, 1]) {
        const at = first + BigInt(page * PAGE)
        done(bench.update(at, PAGE, BUFFERS_GPA + page * PAGE, 'read'))
      }
      ring.push(first, 2 * PAGE)
      ring.kick()
      return `completed ${ring.completed}, asked ${listed(bench.asked())}`
    },
  ),
  {
    about: 'de845981da67',
    name: 'a running ring that is moved is asked for where it is now',
    expected: [
      { seen: 'asked desc 1+0x8000' },
      { seen: 'asked nothing', where: 'before 6.12.104', bug: true },
    ],
    observe: (open) => {
      const bench = open()
      const ring = bench.ring(TX)
      // Each part maps the lower half of its room alone; what follows in memory is its own.
      for (const part of ['desc', 'avail', 'used'] as const) {
        const access = part === 'used' ? 'readwrite' : 'read'
        done(bench.update(ring[part], ROOM / 2, ring.gpaOf(part), access))
      }
      ring.start()
      ring.kick()
      const half = BigInt(ROOM / 2)
      const moved = { desc: ring.desc + half, avail: ring.avail + half, used: ring.used + half }
      done(bench.device.setAddresses(TX, { size: ring.size, ...moved }))
      ring.kick()
      return `asked ${listed(bench.asked())}`
    },
  },
  fact(
    '2018: range when waking',
    'an UPDATE wakes who asked for its last byte',
    'read 0+0xfff, completed 1',
    (open) => {
      const bench = open()
      const ring = bench.runningRing(TX)
      bench.mapBuffers(1, 1, 'read')
      ring.push(BUFFERS + BigInt(PAGE - 1), 200)
      ring.kick()
      const asked = listed(bench.asked())
      bench.mapBuffers(0, 1, 'read')
      bench.flush()
      return `${asked}, completed ${ring.completed}`
    },
  ),
  fact(
    '2020: access_ok() of iovas',
    'a running ring can be placed at any iova',
    'ok, asked read 0x8000000000000000',
    (open) => {
      const bench = open()
      const ring = bench.runningRing(TX)
      const { size } = ring
      const at = { size, desc: HIGH, avail: HIGH + 0x1_0000n, used: HIGH + 0x2_0000n }
      const placed = codeOf(bench.device.setAddresses(TX, at))
      // Kernels before 6.12.104 look at the new place once their cache is dropped.
      done(bench.invalidate(ring.desc, 1))
      ring.kick()
      return `${placed}, asked ${listed([...new Set(bench.asked())])}`
    },
  ),
  fact(
    'cc5e71075947',
    'the dirty log is kept by guest-physical page, not by iova',
    'page of the gpa logged, page of the iova clean',
    (open) => loggedPages(open({ features: LOGGED, memory: [] })),
  ),
  {
    about: '975eeb2291a6',
    name: 'clearing ACCESS_PLATFORM drops the IOTLB',
    expected: [
      { seen: 'UPDATE EFAULT' },
      { seen: 'UPDATE ok', where: 'before 6.12.114', bug: true },
    ],
    observe: (open) => {
      const bench = open()
      bench.ring(TX)
      done(bench.device.setFeatures(WITHOUT_IOTLB))
      return `UPDATE ${codeOf(bench.update(BUFFERS, PAGE, BUFFERS_GPA, 'read'))}`
    },
  },
  {
    about: '09861858a683',
    name: 'a frame with too few buffers waits for a kick, and costs nothing until then',
    expected: [
      { seen: 'asked nothing, kicked write 0' },
      { seen: 'asked write 0, kicked write 0', where: 'before 6.12.97', bug: true },
    ],
    observe: (open) => {
      const bench = open()
      const ring = bench.runningRing(RX)
      bench.mapBuffers(0, 1, 'write')
      ring.offer(0, 20)
      ring.kick()
      bench.device.receive(1)
      bench.flush()
      // Whoever looks again asks again.
      done(bench.invalidate(BUFFERS, PAGE))
      bench.flush()
      const asked = listed(bench.asked())
      ring.kick()
      return `asked ${asked}, kicked ${listed([...new Set(bench.asked())])}`
    },
  },
  fact(
    'virtio 2.7.5.2',
    'a chain that loops is an error, and holds up what follows until it is mended',
    'completed 0, an error, then completed 2',
    (open) => {
      const bench = open()
      const ring = bench.runningRing(TX)
      bench.mapBuffers(0, 1, 'read')
      ring.offer(0)
      // The first descriptor continues with itself: NEXT, and next is 0.
      bench.memory.setU16(ring.gpa + 12, 1)
      bench.memory.setU16(ring.gpa + 14, 0)
      ring.kick()
      const first = `completed ${ring.completed}, ${ring.errors() > 0 ? 'an error' : 'no error'}`
      bench.memory.setU16(ring.gpa + 12, 0)
      ring.send(0, testFrame(1))
      ring.kick()
      return `${first}, then completed ${ring.completed}`
    },
  ),
]

const LOGGED = FEATURES | features('VHOST_F_LOG_ALL')

function loggedPages(bench: Bench): string {
  const { device, memory } = bench
  const log = memory.view(LOG_GPA, LOG_BYTES).fill(0)
  done(device.setMemory([{ gpa: LOGGED_GPA, bytes: BigInt(PAGE), hva: memory.hva(BUFFERS_GPA) }]))
  done(device.setLogBase(memory.hva(LOG_GPA)))
  device.receive(1)
  const ring = bench.runningRing(RX)
  bench.mapBuffers(0, 1, 'write')
  ring.offer(0, PAGE)
  ring.kick()
  const bit = (page: bigint): string =>
    (log[Number(page >> 3n)] & (1 << Number(page & 7n))) === 0 ? 'clean' : 'logged'
  const [gpa, iova] = [bit(LOGGED_GPA >> 12n), bit(BUFFERS >> 12n)]
  return `page of the gpa ${gpa}, page of the iova ${iova}`
}

// Arbitrary arguments to every export and every method: each call returns or throws an Error.
// In a process of its own because the failure looked for is the end of the process.
import { execFileSync } from 'node:child_process'
import { writeFileSync } from 'node:fs'
import fc from 'fast-check'
import { native } from './addon.mjs'

const [runs, seed] = process.argv.slice(2).map(Number)
const FIRST_UNUSED_FD = 5000

execFileSync('mkfifo', ['fifo'])
const O_RDWR_NONBLOCK = 0o4002
const fifo = native.open('fifo', O_RDWR_NONBLOCK)
const event = native.eventfd(1)
const SOCK_DGRAM_NONBLOCK = 0o4002
const socket = native.socket(1, SOCK_DGRAM_NONBLOCK, 0)
// KVM_RUN is no request of a file's, but its bytes can be mapped as a processor's.
writeFileSync('area', new Uint8Array(3 * 4096))
const area = native.open('area', 2)
const vcpu = native.vcpu(area, 3 * 4096, () => {})
const closed = native.eventfd(0)
closed.close()
const memory = native.mapMemory(8192, 0)
const gone = native.mapMemory(4096, 0)
const onGone = new Uint8Array(gone.buffer)
gone.close()
native.hold(event, memory)
const poller = native.poll(native.eventfd(0), new Uint8Array(8), 8, () => {})
poller.unref()

const detached = new Uint8Array(64)
structuredClone(detached.buffer, { transfer: [detached.buffer] })
const shrinking = new ArrayBuffer(64, { maxByteLength: 128 })
const shrunk = [new DataView(shrinking, 32, 32), new Uint32Array(shrinking, 32, 4)]
shrinking.resize(8)
const revoked = Proxy.revocable({}, {})
revoked.revoke()
const thrower = Object.defineProperty([0, 8], 0, {
  get() {
    throw new Error('from a getter')
  },
})
// fast-check looks into its values, which these do not survive.
const REVOKED = { stands: 'for a revoked proxy' }
const THROWER = { stands: 'for guards that throw' }
const STANDS_FOR = new Map([
  [REVOKED, revoked.proxy],
  [THROWER, thrower],
])
const actual = (value) => STANDS_FOR.get(value) ?? value

// Guards with getters that take the ground away while the arguments are being read.
const hostile = () => {
  const bytes = new Uint8Array(256)
  const guards = [0, -1]
  Object.defineProperty(guards, 1, {
    get() {
      structuredClone(bytes.buffer, { transfer: [bytes.buffer] })
      return -1
    },
  })
  return { bytes, guards }
}
const objects = fc.constantFrom(
  fifo,
  event,
  socket,
  closed,
  memory,
  gone,
  poller,
  vcpu,
  area,
  native,
  native.open,
  fifo.constructor,
  Object.create(fifo),
  new Proxy(event, {}),
  new Proxy(() => {}, {}),
  REVOKED,
  Object.getPrototypeOf(fifo),
  globalThis,
  Symbol.iterator,
  () => {},
  class {},
)
const buffers = fc.constantFrom(
  new Uint8Array(72),
  new Uint8Array(4096),
  new Float64Array(9),
  new BigInt64Array(3),
  new DataView(new ArrayBuffer(100), 10, 50),
  new Uint8Array(new SharedArrayBuffer(144)),
  new Uint8Array(memory.buffer),
  new Uint32Array(memory.buffer, 4096),
  Buffer.alloc(80),
  new Uint8Array(0),
  new DataView(new ArrayBuffer(0)),
  detached,
  onGone,
  ...shrunk,
  new ArrayBuffer(72),
  memory.buffer,
)
const numbers = fc.oneof(
  fc.integer({ min: -3, max: 300 }),
  fc.integer(),
  fc.double(),
  fc.maxSafeInteger(),
  fc.constantFrom(0, 8, 72, 4096, 2 ** 21, 2 ** 30, 2 ** 31, 2 ** 32, 2 ** 53, -0, NaN, Infinity),
)
const requests = fc.constantFrom(
  0x5460,
  0x541b,
  0x80045200,
  0x400454ca,
  0x4008af00,
  0x8008af00,
  0xaf01,
  0x40045431,
  0xffffffff,
  0xbfffae00,
)
const guards = fc.oneof(
  fc.array(fc.integer({ min: -100, max: 80 }), { maxLength: 6 }),
  fc.array(numbers, { maxLength: 300 }),
  fc.constantFrom(THROWER, new Array(4), new Array(2 ** 32 - 1), Object.freeze([0, 8])),
)
const any = fc.oneof(
  { weight: 3, arbitrary: objects },
  { weight: 3, arbitrary: buffers },
  { weight: 3, arbitrary: numbers },
  { weight: 1, arbitrary: requests },
  { weight: 1, arbitrary: guards },
  {
    weight: 1,
    arbitrary: fc.anything({ withBigInt: true, withTypedArray: true, withSparseArray: true }),
  },
)
const likely = (arbitrary) => fc.oneof({ weight: 8, arbitrary }, { weight: 1, arbitrary: any })
const descriptors = likely(fc.constantFrom(fifo, event, socket, closed))
const sizes = likely(fc.constantFrom(0, 1, 4, 8, 16, 36, 72, 80, 144, 4096))
const optional = (arbitrary) =>
  fc.oneof({ weight: 3, arbitrary: fc.constant(undefined) }, arbitrary)
const fitting = fc.oneof(
  fc.constantFrom([], [0, 8], [0, -8], [8, 0], [24, 16], [0, -1, 8, -1], [-0, -0], [64, -72]),
  guards,
)

// The shape that a call should have, each place of it sometimes filled with anything else.
const shaped = {
  affinity: [
    likely(fc.constantFrom(0, 1, vcpu.threadId)),
    optional(likely(fc.constantFrom([0], [0, 1], [], [1023]))),
  ],
  awaitChange: [
    likely(buffers),
    likely(fc.nat(80).map((n) => n * 4)),
    likely(fc.nat(1)),
    likely(fc.nat(20)),
  ],
  currentProcessor: [],
  // A number that is open belongs to Node or to the test: taking it over is the caller's word.
  adopt: [
    fc.oneof(
      fc.integer({ min: FIRST_UNUSED_FD }),
      any.filter((x) => typeof x !== 'number'),
    ),
  ],
  duplicate: [likely(fc.nat(40))],
  eventfd: [likely(fc.nat())],
  hold: [descriptors, likely(fc.constantFrom(memory, gone))],
  ioctl: [
    descriptors,
    likely(requests),
    likely(fc.oneof(buffers, fc.nat(0xffff))),
    optional(sizes),
    optional(fitting),
  ],
  letGo: [descriptors, likely(fc.constantFrom(memory, gone))],
  mapMemory: [likely(fc.nat(64).map((pages) => pages * 4096)), likely(fc.constantFrom(0, 2 ** 21))],
  open: [likely(fc.constantFrom('fifo', '.', '', 'a\0b', 'x'.repeat(5000))), likely(fc.nat())],
  openMapping: [likely(fc.constantFrom(memory.id, gone.id, 0))],
  poll: [
    descriptors,
    likely(fc.oneof(buffers, fc.constant(null))),
    sizes,
    likely(fc.constant(() => {})),
    optional(likely(fc.nat(1000))),
  ],
  read: [descriptors, likely(buffers), sizes, sizes],
  readMany: [descriptors, likely(buffers), sizes],
  setns: [descriptors, likely(fc.constantFrom(0, 0x40000000))],
  socket: [likely(fc.constantFrom(1, 2)), likely(fc.constantFrom(1, 2, 5)), likely(fc.constant(0))],
  vcpu: [
    likely(fc.constantFrom(area, fifo, closed)),
    likely(fc.constantFrom(4096, 8192, 3 * 4096)),
    likely(fc.constant(() => {})),
  ],
  write: [descriptors, likely(buffers), sizes, sizes],
  writeMany: [descriptors, likely(buffers), sizes, likely(fc.nat(3)), optional(fitting)],
  writer: [descriptors, likely(buffers), sizes, optional(fitting)],
}

const O_NONBLOCK = 0o4000
function call(name, args) {
  // Waiting for the other end of a fifo is what was asked for, and not what is looked for.
  if (name === 'open' && Number.isInteger(args[1]) && args[1] >= 0 && args[1] < 2 ** 31) {
    args[1] |= O_NONBLOCK
  }
  try {
    const result = native[name](...args.map(actual))
    if (typeof result?.close === 'function') result.close()
    if (typeof result === 'function') result()
    return typeof result
  } catch (error) {
    if (error instanceof Error) return error.constructor.name
    throw new Error(`${name} threw ${String(error)}`)
  }
}

const tally = {}
const names = Object.keys(native).filter((name) => typeof native[name] === 'function')
for (const name of names) {
  const counts = (tally[name] = {})
  const places = shaped[name]
  if (places === undefined) throw new Error(`no shape for ${name}`)
  const argument = fc.oneof(
    { weight: 4, arbitrary: fc.tuple(...places) },
    { weight: 1, arbitrary: fc.array(name === 'adopt' ? places[0] : any, { maxLength: 6 }) },
  )
  const once = (args) => {
    const outcome = call(name, args)
    counts[outcome] = (counts[outcome] ?? 0) + 1
  }
  fc.assert(fc.property(argument, once), { numRuns: runs, seed })
}

for (const name of ['readMany', 'writeMany', 'ioctl', 'poll', 'read', 'write']) {
  const { bytes, guards: trap } = hostile()
  call(name, [fifo, bytes, name === 'ioctl' ? 256 : 72, 1, trap])
}

{
  const { bytes, guards: trap } = hostile()
  call('writer', [fifo, bytes, 72, trap])
}

// Methods, accessors and constructors, on receivers that are not theirs.
const owners = [fifo, memory, poller, vcpu]
const borrow = (owner, receiver, args) => {
  const prototype = Object.getPrototypeOf(owner)
  for (const [name, property] of Object.entries(Object.getOwnPropertyDescriptors(prototype))) {
    try {
      if (name === 'constructor') Reflect.construct(property.value, args, fifo.constructor)
      else (property.value ?? property.get).apply(actual(receiver), args)
    } catch (error) {
      if (error instanceof TypeError) continue
      throw error
    }
    throw new Error(`${name} accepts ${typeof receiver}`)
  }
}
const wrapped = [fifo, event, socket, closed, memory, gone, poller, vcpu, area]
const foreign = (owner) => (receiver) =>
  !wrapped.includes(receiver) || receiver.constructor !== owner.constructor
for (const owner of owners) {
  const receivers = any.filter(foreign(owner))
  const misuse = (receiver, args) => {
    borrow(owner, receiver, args)
  }
  const property = fc.property(receivers, fc.array(any, { maxLength: 3 }), misuse)
  fc.assert(property, { numRuns: runs, seed })
}

// With next to no stack left, where any allocation in V8 may throw.
const bytes = new Uint8Array(8)
const last = [
  () => native.eventfd(0),
  () => native.mapMemory(4096, 0),
  () => native.poll(native.duplicate(event.fd), bytes, 8, () => {}),
  () => native.writeMany(fifo, bytes, 8, 1, [0, -1]),
  () => native.writer(fifo, bytes, 8, [0, -1])(),
  () => memory.buffer,
  () => native.vcpu(area, 4096, () => {}),
]
function deep(attempt) {
  try {
    deep(attempt)
  } catch (error) {
    try {
      attempt()?.close?.()
    } catch {
      throw error
    }
  }
}
for (const attempt of last) {
  try {
    deep(attempt)
  } catch (error) {
    if (!(error instanceof RangeError)) throw error
  }
}

vcpu.close()
process.stdout.write(JSON.stringify(tally))

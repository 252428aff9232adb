/**
 * One script of operations, done to the kernel and to the fake, told in the same words.
 *
 * A device is asked to read or write pages; what it asks, what it was given and where it stopped is
 * the telling. The kernel reads through its transmitting ring and writes through its receiving one;
 * the fake is told to. Whatever the two tell differently is a mistake of the fake.
 */
import { iovaRange } from '../../lib/address'
import type { Access, Hva } from '../../lib/address'
import { FakeVhost } from '../../lib/testing/fake-channel'
import { BUFFERS, BUFFERS_GPA, Bench, PAGE, RX, TX } from './bench'
import type { BenchRing } from './bench'
import { frame } from './frames'
import { PacketSocket } from './packet-socket'

/** Buffer pages are counted from 0; rings are always mapped. */
export type Operation =
  | {
      readonly do: 'update'
      readonly first: number
      readonly last: number
      readonly access: Access
    }
  | { readonly do: 'invalidate'; readonly first: number; readonly last: number }
  /** The device reads a page: it is offered, and the queue kicked. */
  | { readonly do: 'read'; readonly page: number }
  /** The device writes to a page: it is offered, and the queue kicked. */
  | { readonly do: 'write'; readonly page: number }
  | { readonly do: 'kick'; readonly queue: 'read' | 'write' }
  /** The questions are read, and not answered. */
  | { readonly do: 'drain' }

/** The state after an operation. */
export interface Telling {
  /** Accesses done so far, and ticks of the error eventfds so far, receiving ring first. */
  readonly read: number
  readonly wrote: number
  readonly errors: readonly [number, number]
  /** What was drained: `'read 5'` for a read of page 5. */
  readonly asked?: readonly string[]
}

export interface Device {
  perform(operation: Operation): Telling
  close(): void
}

/** What the device told after each operation, in words. */
export function tell(device: Device, script: readonly Operation[]): string[] {
  return script.map((operation) => {
    const { read, wrote, errors, asked } = device.perform(operation)
    const questions = asked === undefined ? '' : `, asked ${listed(asked)}`
    return `read ${read}, wrote ${wrote}, errors ${errors.join('/')}${questions}`
  })
}

/**
 * The same without what may differ from run to run: a queue that is woken twice at a time makes one
 * pass or two, so how often a question or an error comes is not counted, only whether it does.
 */
export function tellOnce(device: Device, script: readonly Operation[]): string[] {
  let ticked: readonly [number, number] = [0, 0]
  return script.map((operation) => {
    const { read, wrote, errors, asked } = device.perform(operation)
    const fresh = errors.map((count, queue) => (count > ticked[queue] ? 'yes' : 'no'))
    ticked = errors
    const questions = asked === undefined ? '' : `, asked ${listed([...new Set(asked)])}`
    const did = JSON.stringify(operation)
    return `${did}: read ${read}, wrote ${wrote}, errors ${fresh.join('/')}${questions}`
  })
}

function listed(words: readonly string[]): string {
  return words.length === 0 ? 'nothing' : words.join(' ')
}

/** Waiting for the receiving ring: more than a script has writes. */
const PACKETS = 100
const QUEUES = { write: RX, read: TX } as const

export class KernelDevice implements Device {
  readonly #bench: Bench
  readonly #rings: readonly [BenchRing, BenchRing]
  #errors: [number, number] = [0, 0]
  #number = 0

  private constructor(bench: Bench) {
    this.#bench = bench
    this.#rings = [bench.runningRing(RX), bench.runningRing(TX)]
    bench.flush()
    if (bench.questions().length > 0) throw new Error('the rings are mapped')
  }

  /** Packets wait in the tap from the beginning: a write needs no more than a buffer. */
  static async open(): Promise<KernelDevice> {
    const bench = new Bench()
    await using packets = await PacketSocket.open(bench.tap.name)
    await packets.send(...Array.from({ length: PACKETS }, (_, i) => frame(i, 60, 'host')))
    return new KernelDevice(bench)
  }

  perform(operation: Operation): Telling {
    const bench = this.#bench
    let asked: string[] | undefined
    switch (operation.do) {
      case 'update':
        bench.mapBuffers(operation.first, operation.last - operation.first + 1, operation.access)
        break
      case 'invalidate': {
        const bytes = (operation.last - operation.first + 1) * PAGE
        bench.invalidate(BUFFERS + BigInt(operation.first * PAGE), bytes)
        break
      }
      case 'read':
        this.#rings[TX].send(operation.page, frame(this.#number++, 60))
        this.#rings[TX].kick()
        break
      case 'write':
        this.#rings[RX].push(BUFFERS + BigInt(operation.page * PAGE), PAGE)
        this.#rings[RX].kick()
        break
      case 'kick':
        this.#rings[QUEUES[operation.queue]].kick()
        break
      case 'drain':
        asked = words(bench.questions().map(({ iova, access }) => [iova, access]))
        break
    }
    bench.flush()
    for (const queue of [RX, TX] as const) this.#errors[queue] += this.#rings[queue].errors()
    const { completed } = this.#rings[RX]
    const errors: [number, number] = [...this.#errors]
    return told(this.#rings[TX].completed, completed, errors, asked)
  }

  close(): void {
    this.#bench[Symbol.dispose]()
  }
}

export class FakeDevice implements Device {
  readonly #fake = new FakeVhost()
  readonly #made: { readonly kind: 'read' | 'write'; readonly state: () => string }[] = []

  constructor() {
    for (const queue of [RX, TX]) {
      const page = 0x10000 + queue * 0x1000
      for (const [i, access] of ([1, 1, 3] as const).entries()) {
        this.#fake.updatePages(page + i * 16, page + i * 16 + 15, 0x1000, access)
      }
      const at = (part: number): { at: bigint; length: number } => ({
        at: BigInt(page + part * 16) << 12n,
        length: 4096,
      })
      this.#fake.setBackend(queue, { desc: at(0), avail: at(1), used: at(2) })
    }
  }

  perform(operation: Operation): Telling {
    const fake = this.#fake
    let asked: string[] | undefined
    switch (operation.do) {
      case 'update': {
        const hva = BigInt(BUFFERS_GPA + operation.first * PAGE) as Hva
        fake.update(buffers(operation.first, operation.last), hva, operation.access)
        break
      }
      case 'invalidate':
        fake.invalidate(buffers(operation.first, operation.last))
        break
      case 'read':
        this.#access('read', operation.page)
        break
      case 'write':
        this.#access('write', operation.page)
        break
      case 'kick':
        fake.kick(QUEUES[operation.queue])
        break
      case 'drain': {
        const all: [bigint, number][] = []
        for (let read = fake.drain(); read.length > 0; read = fake.drain()) {
          all.push(...read.map(({ iova, access }): [bigint, number] => [iova, access]))
        }
        asked = words(all)
        break
      }
    }
    const errors: [number, number] = [fake.errors(RX), fake.errors(TX)]
    return told(this.#count('read'), this.#count('write'), errors, asked)
  }

  close(): void {
    this.#made.length = 0
  }

  #access(kind: 'read' | 'write', page: number): void {
    const made = this.#fake.access(BUFFERS + BigInt(page * PAGE), kind, { queue: QUEUES[kind] })
    this.#made.push({ kind, state: () => made.state })
  }

  #count(kind: 'read' | 'write'): number {
    return this.#made.filter((made) => made.kind === kind && made.state() === 'done').length
  }
}

function buffers(first: number, last: number): ReturnType<typeof iovaRange> {
  const page = Number(BUFFERS >> 12n)
  return iovaRange(page + first, page + last)
}

function words(questions: readonly (readonly [bigint, number])[]): string[] {
  return questions.map(([iova, access]) => {
    const name = ['nothing', 'read', 'write', 'both'][access]
    return `${name} ${Number((iova - BUFFERS) >> 12n)}`
  })
}

function told(
  read: number,
  wrote: number,
  errors: readonly [number, number],
  asked: readonly string[] | undefined,
): Telling {
  return { read, wrote, errors, ...(asked === undefined ? {} : { asked }) }
}

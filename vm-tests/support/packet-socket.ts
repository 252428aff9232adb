/**
 * The other side of a tap, seen through a socket that is not ours: AF_PACKET, in a perl process.
 *
 * It sends frames towards the device and reports those that came from it. `sync()` tells that all
 * that came in before it has been reported, so that "no frame came" can be said without waiting.
 * One process serves all sockets: to start one takes longer than most tests.
 */
import { spawn } from 'node:child_process'
import { Socket } from 'node:net'
import { join } from 'node:path'
import type { Writable } from 'node:stream'
import { interfaceIndex } from '../../lib/vhost/interface'

const SCRIPT = join(import.meta.dirname, 'packet-socket.pl')
/** Kind, socket, and a number that is a length or an errno. */
const HEAD = 9
const EPIPE = 32

class PacketProcess {
  static #only: PacketProcess | undefined
  readonly #stdin: Writable
  readonly #sockets = new Map<number, PacketSocket>()
  readonly #waiting: ((errno: number) => void)[] = []
  #bytes = Buffer.alloc(0)
  #next = 1

  private constructor() {
    const child = spawn('perl', [SCRIPT], { stdio: ['pipe', 'pipe', 'inherit'] })
    this.#stdin = child.stdin
    child.unref()
    // Neither the process nor its pipes hold the tests' own process.
    for (const pipe of [child.stdin, child.stdout]) if (pipe instanceof Socket) pipe.unref()
    child.on('exit', () => {
      for (const answer of this.#waiting.splice(0)) answer(EPIPE)
    })
    child.stdout.on('data', (bytes: Buffer) => {
      this.#bytes = Buffer.concat([this.#bytes, bytes])
      while (this.#parse());
    })
  }

  static get(): PacketProcess {
    this.#only ??= new PacketProcess()
    return this.#only
  }

  add(socket: PacketSocket): number {
    const id = this.#next++
    this.#sockets.set(id, socket)
    return id
  }

  remove(id: number): void {
    this.#sockets.delete(id)
  }

  /** Resolves with the errno of the command. */
  ask(
    kind: string,
    numbers: readonly number[],
    bytes: Uint8Array = Buffer.alloc(0),
  ): Promise<number> {
    const head = Buffer.alloc(1 + 4 * numbers.length, kind)
    for (const [i, number] of numbers.entries()) head.writeUInt32LE(number, 1 + 4 * i)
    this.#stdin.write(Buffer.concat([head, bytes]))
    return new Promise((resolve) => this.#waiting.push(resolve))
  }

  /** Takes one message from what came in. @returns false when there is none as a whole */
  #parse(): boolean {
    const bytes = this.#bytes
    if (bytes.length < HEAD) return false
    const frame = bytes[0] === 'F'.charCodeAt(0)
    const id = bytes.readUInt32LE(1)
    const value = bytes.readUInt32LE(5)
    const end = frame ? HEAD + value : HEAD
    if (bytes.length < end) return false
    this.#bytes = bytes.subarray(end)
    if (frame) this.#sockets.get(id)?.arrived(Uint8Array.from(bytes.subarray(HEAD, end)))
    else this.#waiting.shift()?.(value)
    return true
  }
}

export class PacketSocket implements AsyncDisposable {
  readonly #process = PacketProcess.get()
  readonly #id = this.#process.add(this)
  /** What came in and was not taken, in its order. */
  readonly #frames: Uint8Array[] = []
  #arrived: (() => void) | undefined

  /** @param vnetHeader frames carry a `struct virtio_net_hdr` of 10 bytes in both directions */
  static async open(name: string, { vnetHeader = false } = {}): Promise<PacketSocket> {
    const index = interfaceIndex(name)
    if (index === undefined) throw new Error(`no interface ${name}`)
    const socket = new PacketSocket()
    await socket.#ask('O', [index, vnetHeader ? 1 : 0])
    return socket
  }

  arrived(frame: Uint8Array): void {
    this.#frames.push(frame)
    this.#arrived?.()
  }

  /** Everything that has come in up to now, taken. */
  async sync(): Promise<Uint8Array[]> {
    await this.#ask('S')
    return this.#frames.splice(0)
  }

  /** Waits until `count` frames came in, and takes them. @throws Error after `within` ms */
  async receive(count: number, within = 20_000): Promise<Uint8Array[]> {
    const end = Date.now() + within
    while (this.#frames.length < count) {
      const arrived = new Promise<void>((resolve) => (this.#arrived = resolve))
      let timer: NodeJS.Timeout | undefined
      const late = new Promise<void>((resolve) => {
        timer = setTimeout(resolve, Math.max(0, end - Date.now()))
      })
      await Promise.race([arrived, late])
      clearTimeout(timer)
      if (Date.now() >= end && this.#frames.length < count) {
        throw new Error(`${this.#frames.length} of ${count} frames came in`)
      }
    }
    return this.#frames.splice(0, count)
  }

  /** Resolves when the kernel has taken the frames. @throws Error when it refused */
  async send(...frames: readonly Uint8Array[]): Promise<void> {
    await Promise.all(frames.map((frame) => this.#ask('F', [frame.length], frame)))
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#ask('C')
    this.#process.remove(this.#id)
  }

  async #ask(kind: string, numbers: readonly number[] = [], bytes?: Uint8Array): Promise<void> {
    const errno = await this.#process.ask(kind, [this.#id, ...numbers], bytes)
    if (errno !== 0) throw new Error(`packet socket, ${kind}: errno ${errno}`)
  }
}

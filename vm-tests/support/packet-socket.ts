/**
 * The other side of a tap, seen through a socket that is not ours: AF_PACKET, in a perl process.
 *
 * It sends frames towards the device and reports those that came from it. `sync()` tells that all
 * that came in before it has been reported, so that "no frame came" can be said without waiting.
 */
import { spawn } from 'node:child_process'
import type { ChildProcessByStdio } from 'node:child_process'
import { join } from 'node:path'
import type { Readable, Writable } from 'node:stream'
import { interfaceIndex } from '../../lib/vhost/interface'

const SCRIPT = join(import.meta.dirname, 'packet-socket.pl')

type Child = ChildProcessByStdio<Writable, Readable, null>

export class PacketSocket implements AsyncDisposable {
  /** What came in and was not taken, in its order. */
  readonly #frames: Uint8Array[] = []
  readonly #child: Child
  #bytes = Buffer.alloc(0)
  #answered: ((errno: number) => void)[] = []
  #arrived: (() => void) | undefined

  private constructor(child: Child) {
    this.#child = child
    child.stdout.on('data', (bytes: Buffer) => {
      this.#bytes = Buffer.concat([this.#bytes, bytes])
      while (this.#parse());
    })
  }

  /** @param vnetHeader frames carry a `struct virtio_net_hdr` of 10 bytes in both directions */
  static async open(name: string, { vnetHeader = false } = {}): Promise<PacketSocket> {
    const index = interfaceIndex(name)
    if (index === undefined) throw new Error(`no interface ${name}`)
    const child = spawn('perl', [SCRIPT, String(index), vnetHeader ? '1' : '0'], {
      stdio: ['pipe', 'pipe', 'inherit'],
    })
    const socket = new PacketSocket(child)
    await socket.#answer()
    return socket
  }

  /** Frames reported so far; they are taken. */
  take(): Uint8Array[] {
    return this.#frames.splice(0)
  }

  /** Everything that has come in up to now, taken. */
  async sync(): Promise<Uint8Array[]> {
    this.#child.stdin.write('S')
    await this.#answer()
    return this.take()
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

  /** Resolves when the kernel has taken the frame. @throws Error when it refused */
  async send(...frames: readonly Uint8Array[]): Promise<void> {
    const answers = frames.map((frame) => {
      const head = Buffer.alloc(5, 'F')
      head.writeUInt32LE(frame.length, 1)
      this.#child.stdin.write(Buffer.concat([head, frame]))
      return this.#answer()
    })
    for (const errno of await Promise.all(answers)) {
      if (errno !== 0) throw new Error(`send: errno ${errno}`)
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const gone = new Promise((resolve) => this.#child.once('close', resolve))
    this.#child.stdin.end()
    await gone
  }

  #answer(): Promise<number> {
    return new Promise((resolve) => this.#answered.push(resolve))
  }

  /** Takes one message from what came in. @returns false when there is none as a whole */
  #parse(): boolean {
    const bytes = this.#bytes
    if (bytes.length === 0) return false
    const kind = String.fromCharCode(bytes[0])
    if (kind === 'S') return this.#done(1, 0)
    if (bytes.length < 5) return false
    const value = bytes.readUInt32LE(1)
    if (kind === 'A') return this.#done(5, value)
    if (bytes.length < 5 + value) return false
    this.#frames.push(Uint8Array.from(bytes.subarray(5, 5 + value)))
    this.#bytes = bytes.subarray(5 + value)
    this.#arrived?.()
    return true
  }

  #done(length: number, errno: number): true {
    this.#bytes = this.#bytes.subarray(length)
    this.#answered.shift()?.(errno)
    return true
  }
}

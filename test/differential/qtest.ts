/**
 * QEMU as an oracle: a machine whose CPU only halts, driven through its qtest socket. Memory and
 * ports are the test's; the IOMMU and the devices behind it are QEMU's.
 *
 * Distributions build QEMU without the qtest accelerator, which would step the clock. Here TCG
 * counts instructions and does not sleep: with the CPU halted, virtual time jumps from one timer
 * to the next, so that a transfer of edu, 100 ms in virtual time, ends at once.
 */
import { spawn } from 'node:child_process'
import type { ChildProcess } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import type { Server, Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

/** Device numbers of the edu devices on bus 0, and where their registers are put. */
export const EDU_SLOTS = [3, 4, 5] as const
const EDU_BAR = 0xe0000000
const EDU_BAR_BYTES = 0x100000
const IOMMU = 0xfed90000

/** Registers of edu (docs/specs/edu.txt): DMA source, destination, count, command, and its buffer. */
const DMA = { source: 0x80, destination: 0x88, count: 0x90, command: 0x98, buffer: 0x40000 }
const DMA_START = 1
const DMA_TO_MEMORY = 2
/** A transfer that takes longer than this many looks at its command register will not end. */
const MOST_POLLS = 100_000

/** cli; hlt; jmp to the hlt: at the reset vector, the last 16 bytes of a 64 KiB image. */
const FIRMWARE = Buffer.alloc(0x10000, 0xff)
FIRMWARE.set([0xfa, 0xf4, 0xeb, 0xfd], 0xfff0)

export class Qtest {
  #replies: ((line: string) => void)[] = []
  #received = ''

  private constructor(
    private readonly child: ChildProcess,
    private readonly socket: Socket,
    private readonly server: Server,
    private readonly folder: string,
  ) {
    socket.setEncoding('utf8')
    socket.on('data', (text: string) => {
      this.#receive(text)
    })
    socket.on('close', () => {
      for (const reply of this.#replies.splice(0)) reply('FAIL the machine is gone')
    })
  }

  /** @param iommu the options of `-device intel-iommu` */
  static async start(iommu: string): Promise<Qtest> {
    const folder = mkdtempSync(join(tmpdir(), 'qtest-'))
    const path = join(folder, 'socket')
    const firmware = join(folder, 'firmware')
    writeFileSync(firmware, FIRMWARE)
    const server = createServer()
    const connected = new Promise<Socket>((resolve) => server.once('connection', resolve))
    await new Promise<void>((resolve) => server.listen(path, resolve))
    const devices = EDU_SLOTS.flatMap((slot) => [
      '-device',
      `edu,addr=${slot},dma_mask=0xffffffffffffffff`,
    ])
    const child = spawn(
      'qemu-system-x86_64',
      [
        ...['-machine', 'q35', '-m', '64M', '-nodefaults', '-display', 'none', '-bios', firmware],
        ...['-accel', 'tcg,thread=single', '-icount', 'shift=0,sleep=off'],
        ...['-device', `intel-iommu,${iommu}`, ...devices],
        ...['-qtest', `unix:${path}`, '-qtest-log', 'none'],
      ],
      { stdio: ['ignore', 'ignore', 'pipe'] },
    )
    let complaints = ''
    child.stderr.setEncoding('utf8').on('data', (text: string) => (complaints += text))
    const socket = await new Promise<Socket>((resolve, reject) => {
      child.once('error', reject)
      child.once('exit', () => {
        reject(new Error(`qemu ended: ${complaints}`))
      })
      void connected.then(resolve)
    })
    const machine = new Qtest(child, socket, server, folder)
    await machine.#enableDevices()
    return machine
  }

  async stop(): Promise<void> {
    this.socket.destroy()
    this.server.close()
    if (this.child.exitCode === null && this.child.signalCode === null) {
      const ended = new Promise((resolve) => this.child.once('exit', resolve))
      this.child.kill('SIGKILL')
      await ended
    }
    rmSync(this.folder, { recursive: true, force: true })
  }

  /** Sends all at once; the replies in order, without their `OK`. */
  async send(...commands: readonly string[]): Promise<readonly string[]> {
    const replies = commands.map(
      () => new Promise<string>((resolve) => this.#replies.push(resolve)),
    )
    this.socket.write(`${commands.join('\n')}\n`)
    return (await Promise.all(replies)).map((line, i) => {
      if (!line.startsWith('OK')) throw new Error(`${commands[i]}: ${line}`)
      return line.slice(3)
    })
  }

  /** A block of memory or registers. */
  async block(at: number, bytes: number): Promise<Buffer> {
    const [hex] = await this.send(`read 0x${at.toString(16)} 0x${bytes.toString(16)}`)
    return Buffer.from(hex.slice(2), 'hex')
  }

  registers(): Promise<Buffer> {
    return this.block(IOMMU, 0x230)
  }

  /** Four bytes between the first word of a device's buffer and an iova. */
  async transfer(device: number, iova: bigint, toMemory: boolean): Promise<void> {
    const base = EDU_BAR + device * EDU_BAR_BYTES
    const set = (register: number, value: bigint): string => writeQuad(base + register, value)
    const buffer = BigInt(DMA.buffer)
    await this.send(
      set(DMA.source, toMemory ? buffer : iova),
      set(DMA.destination, toMemory ? iova : buffer),
      set(DMA.count, 4n),
      set(DMA.command, BigInt(DMA_START | (toMemory ? DMA_TO_MEMORY : 0))),
    )
    for (let polls = 0; polls < MOST_POLLS; polls++) {
      const [command] = await this.send(`readq 0x${(base + DMA.command).toString(16)}`)
      if ((BigInt(command) & BigInt(DMA_START)) === 0n) return
    }
    throw new Error('a transfer did not end')
  }

  #receive(text: string): void {
    const lines = (this.#received + text).split('\n')
    this.#received = lines.pop() ?? ''
    for (const line of lines) {
      if (!line.startsWith('IRQ')) this.#replies.shift()?.(line)
    }
  }

  /** What firmware would do: an address for the registers, memory decoding, bus mastering. */
  async #enableDevices(): Promise<void> {
    for (const [i, slot] of EDU_SLOTS.entries()) {
      const config = (register: number) =>
        `outl 0xcf8 0x${((0x80000000 | (slot << 11) | register) >>> 0).toString(16)}`
      const bar = `0x${(EDU_BAR + i * EDU_BAR_BYTES).toString(16)}`
      await this.send(config(0x10), `outl 0xcfc ${bar}`, config(0x04), 'outw 0xcfc 0x6')
    }
  }
}

export function writeRegister(offset: number, value: bigint, size: 4 | 8): string {
  const at = `0x${(IOMMU + offset).toString(16)}`
  return `${size === 4 ? 'writel' : 'writeq'} ${at} 0x${value.toString(16)}`
}

export function writeQuad(at: number, value: bigint): string {
  return `writeq 0x${at.toString(16)} 0x${value.toString(16)}`
}

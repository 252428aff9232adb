/**
 * The command `boot`: a Linux guest on this host's KVM, its network card served by vhost-net behind
 * the emulated VT-d. The guest's console is this terminal; at the end it says what was counted.
 */
import { readFileSync } from 'node:fs'
import { Tap } from '../vhost/tap'
import type { LinuxImage } from '../vmm/linux'
import { Machine } from '../vmm/machine'
import type { Ending, MachineOptions, MachineStats } from '../vmm/machine'
import type { LOOK_AHEADS } from './choices'

export interface BootOptions {
  readonly kernel: string
  readonly initrd?: string
  readonly append: string
  readonly tap: string
  readonly memory: number
  readonly cpus: number
  readonly mac?: string
  readonly lookAhead: (typeof LOOK_AHEADS)[number]
  readonly ats: boolean
  readonly exits?: true
  readonly reboot: boolean
  readonly json: boolean
}

/** Ctrl-], as in telnet: the one key that the guest does not get. */
const ESCAPE = 0x1d

/** @returns the exit status: 0 after a power-off @throws SystemError, RangeError */
export async function boot(options: BootOptions): Promise<number> {
  const image = imageOf(options)
  using tap = Tap.open(options.tap)
  // With --json the object alone is on standard output.
  using screen = new Screen(options.json ? process.stderr : process.stdout)
  using machine = new Machine({
    ...machineOptions(options),
    ...{ image, tap },
    onConsole: (byte) => {
      screen.put(byte)
    },
  })
  const started = performance.now()
  const ending = await run(machine)
  screen.flush()
  const stats = machine.stats()
  const seconds = Math.round(performance.now() - started) / 1000
  if (options.json) console.log(JSON.stringify({ ending, seconds, ...stats }))
  else console.error(summary(ending, seconds, stats))
  return ending.how === 'power-off' || ending.how === 'closed' ? 0 : 1
}

/** The terminal is itself again when it is settled. */
async function run(machine: Machine): Promise<Ending> {
  using keys = new Keyboard(machine)
  machine.start()
  return await Promise.race([machine.ended, keys.quit])
}

function imageOf({ kernel, initrd, append }: BootOptions): LinuxImage {
  return {
    kernel: readFileSync(kernel),
    ...(initrd === undefined ? {} : { initrd: readFileSync(initrd) }),
    commandLine: append,
  }
}

function machineOptions(options: BootOptions): Omit<MachineOptions, 'image' | 'tap'> {
  const { memory, cpus, mac, lookAhead, ats, exits, reboot } = options
  return {
    memoryMiB: memory,
    processors: cpus,
    ats,
    lookAhead,
    onReset: reboot ? 'boot' : 'end',
    ...(mac === undefined ? {} : { mac }),
    ...(exits && { shareRegisters: false }),
  }
}

/** Bytes go out in pieces: one write for each would cost more than the guest's own. */
class Screen implements Disposable {
  readonly #stream: NodeJS.WritableStream
  #waiting: number[] = []
  #scheduled = false

  constructor(stream: NodeJS.WritableStream) {
    this.#stream = stream
  }

  put(byte: number): void {
    this.#waiting.push(byte)
    if (this.#scheduled) return
    this.#scheduled = true
    setTimeout(() => {
      this.flush()
    }, PIECE_MS)
  }

  flush(): void {
    this.#scheduled = false
    if (this.#waiting.length > 0) this.#stream.write(Buffer.from(this.#waiting))
    this.#waiting = []
  }

  [Symbol.dispose](): void {
    this.flush()
  }
}

const PIECE_MS = 20

/** What is typed, or comes through a pipe, is the guest's. */
class Keyboard implements Disposable {
  /** Settled by Ctrl-]. */
  readonly quit: Promise<Ending>
  #ask: (ending: Ending) => void = () => undefined
  readonly #typed: (bytes: Buffer) => void

  constructor(machine: Machine) {
    const { stdin } = process
    this.quit = new Promise((resolve) => {
      this.#ask = resolve
    })
    this.#typed = (bytes) => {
      if (stdin.isTTY && bytes.includes(ESCAPE)) this.#ask({ how: 'closed' })
      else machine.type(bytes)
    }
    if (stdin.isTTY) {
      console.error('vhost-iotlb: Ctrl-] ends the guest')
      stdin.setRawMode(true)
    }
    stdin.on('data', this.#typed)
  }

  [Symbol.dispose](): void {
    const { stdin } = process
    stdin.off('data', this.#typed)
    if (stdin.isTTY) stdin.setRawMode(false)
    // An open input would keep this process waiting for its next line.
    stdin.destroy()
  }
}

function summary(ending: Ending, seconds: number, { nic, ...machine }: MachineStats) {
  const why = ending.how === 'failed' ? `failed: ${ending.reason}` : ending.how
  const counts = { ...machine, ...nic }
  const lines = Object.entries(counts).map(
    ([name, value]) => `${name.padEnd(16)} ${JSON.stringify(value)}`,
  )
  return [`vhost-iotlb: ${why} after ${seconds.toFixed(1)} s`, ...lines].join('\n')
}

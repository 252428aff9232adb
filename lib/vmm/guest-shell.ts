/**
 * A guest that does what it is told: an initramfs whose first process runs each line that comes
 * through the serial port, and the other end of that conversation.
 *
 * For programs that make a guest do something and look at what follows; not for people.
 */
import type { CpioEntry } from '../vm/cpio'
import { cpioArchive } from '../vm/cpio'
import type { KernelModule } from '../vm/modules'

/** What the guest says when it takes commands. */
export const READY = 'guest: ready'

export interface GuestFiles {
  /** A busybox, statically linked. */
  readonly busybox: Uint8Array
  /** In the order in which they are to be inserted. */
  readonly modules: readonly KernelModule[]
  readonly extra?: readonly CpioEntry[]
}

const DIRECTORIES = ['bin', 'dev', 'modules', 'proc', 'sys', 'tmp']

/** What is sent to the guest does not come back, and output is as it was written. */
const init = (modules: readonly KernelModule[]): string => `#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
exec </dev/ttyS0 >/dev/ttyS0 2>&1
stty raw -echo
${modules.map(({ name }) => `insmod /modules/${name}.ko`).join('\n')}
echo '${READY}'
while read -r line; do eval "$line"; status=$?; done
poweroff -f
`

/** The archive for `LinuxImage.initrd`. */
export function guestArchive({ busybox, modules, extra = [] }: GuestFiles): Uint8Array {
  return cpioArchive([
    ...DIRECTORIES.map((path): CpioEntry => ({ type: 'directory', path })),
    { type: 'file', path: 'bin/busybox', content: busybox, mode: 0o755 },
    { type: 'symlink', path: 'bin/sh', target: 'busybox' },
    { type: 'file', path: 'init', content: Buffer.from(init(modules)), mode: 0o755 },
    ...modules.map(({ name, content }): CpioEntry => ({
      type: 'file',
      path: `modules/${name}.ko`,
      content,
    })),
    ...extra,
  ])
}

/** What a shell needs of whatever runs the guest. */
export interface SerialPort {
  /** Bytes for it. What it says is to be given to `GuestShell.hear`. */
  type(bytes: Uint8Array): void
}

export class GuestShell {
  /** Everything that the guest has said. */
  said = ''
  #port: SerialPort | undefined
  #commands = 0
  #from = 0
  #heard: ((character: string) => void) | undefined
  #ended: string | undefined
  #giveUp: () => void = () => undefined

  /** Each byte that the guest has said, such as by `MachineOptions.onConsole`. */
  readonly hear = (byte: number): void => {
    const character = String.fromCharCode(byte)
    this.said += character
    this.#heard?.(character)
  }

  /** Nobody answers any more: who waits is told why at once, and so is who asks from now on. */
  end(reason: string): void {
    this.#ended ??= reason
    this.#giveUp()
  }

  /** @throws Error where the guest has ended */
  check(): void {
    if (this.#ended !== undefined) throw this.#error(this.#ended)
  }

  /** Waits for the guest to take commands. @throws Error with what it said, where it does not */
  async ready(port: SerialPort, seconds: number): Promise<void> {
    this.#port = port
    await this.#until(READY, seconds, 'boot')
  }

  /**
   * Runs a line of shell in the guest.
   * @returns what it wrote @throws Error where it fails, or takes longer
   */
  async run(command: string, seconds = 60): Promise<string> {
    const mark = `guest: done ${++this.#commands}:`
    this.#port?.type(Buffer.from(`${command}\necho; echo "${mark}$status."\n`))
    const output = (await this.#until(mark, seconds, command)).trim()
    const status = await this.#until('.', seconds, command)
    if (status !== '0') throw new Error(`'${command}' ended with ${status}:\n${output}`)
    return output
  }

  /**
   * What was said until there, from where the last wait ended. Nothing here asks again and again:
   * on the event loop, each look would take the processor out of the guest.
   */
  async #until(text: string, seconds: number, what: string): Promise<string> {
    const at = await this.#found(text, seconds)
    if (at < 0) throw this.#error(this.#ended ?? `no end of '${what}' in ${seconds} s`)
    const before = this.said.slice(this.#from, at)
    this.#from = at + text.length
    return before.replaceAll('\r', '')
  }

  #error(reason: string): Error {
    return new Error(`${reason}; the guest said:\n${this.said}`)
  }

  /** Where the text is, or will be; -1 where it does not come. */
  #found(text: string, seconds: number): Promise<number> {
    if (this.#ended !== undefined) return Promise.resolve(-1)
    const at = this.said.indexOf(text, this.#from)
    if (at >= 0) return Promise.resolve(at)
    return new Promise((resolve) => {
      const end = (found: number): void => {
        clearTimeout(timer)
        this.#heard = undefined
        this.#giveUp = () => undefined
        resolve(found)
      }
      const timer = setTimeout(end, seconds * 1000, -1)
      this.#giveUp = () => {
        end(-1)
      }
      const last = text.at(-1)
      this.#heard = (character) => {
        if (character === last && this.said.endsWith(text)) end(this.said.length - text.length)
      }
    })
  }
}

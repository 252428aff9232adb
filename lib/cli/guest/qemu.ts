/**
 * The peer of the experiment: QEMU with its own VT-d, its own ATS and the same vhost-net, for the
 * same guest on the same kind of tap. It is a process of its own whose serial port is its standard
 * input and output.
 *
 * Not the QEMU of `lib/vm/`: that one runs the host of all this.
 */
import { spawn } from 'node:child_process'
import type { ChildProcessByStdio } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Readable, Writable } from 'node:stream'
import type { Tap } from '../../vhost/tap'
import { DIES_WITH_PARENT } from '../../vm/file-server'
import { lastLines, run } from '../../vm/process'
import type { Tools } from '../../vm/tools'
import type { SerialPort } from '../../vmm/guest-shell'
import type { LinuxImage } from '../../vmm/linux'

export interface QemuGuest {
  readonly image: LinuxImage
  readonly tap: Tap
  readonly memoryMiB: number
  readonly processors: number
  /** Whether the network card has ATS, and the unit device IOTLBs. */
  readonly ats: boolean
  /** The network card's address. */
  readonly mac: string
  readonly onConsole: (byte: number) => void
  /** It has ended, on its own or by `[Symbol.asyncDispose]`. @param said its last words */
  readonly onEnd: (said: string) => void
}

/** The number of the first descriptor that a process inherits beside the standard ones. */
const TAP_FD = 3

/** As `-machine` and the rest of it are to be, for a kernel and an initramfs in these files. */
export function qemuGuestArguments(
  { image, memoryMiB, processors, ats, mac }: Omit<QemuGuest, 'tap' | 'onConsole' | 'onEnd'>,
  files: { readonly kernel: string; readonly initrd: string },
): string[] {
  const onOff = ats ? 'on' : 'off'
  return [
    ...['-nodefaults', '-no-user-config', '-no-reboot', '-display', 'none'],
    ...['-machine', 'q35,kernel-irqchip=split', '-accel', 'kvm', '-cpu', 'host'],
    ...['-smp', String(processors), '-m', `${memoryMiB}M`],
    // Interrupts as the machine beside it has them; where the unit is to be stands before what it
    // serves.
    ...['-device', `intel-iommu,device-iotlb=${onOff},intremap=off`],
    ...['-device', 'pcie-root-port,id=downstream,chassis=1'],
    ...['-netdev', `tap,id=net,fd=${TAP_FD},vhost=on`],
    ...[
      '-device',
      `virtio-net-pci,bus=downstream,netdev=net,mac=${mac},iommu_platform=on,ats=${onOff},` +
        'disable-legacy=on,romfile=',
    ],
    ...['-chardev', 'stdio,id=console,signal=off', '-serial', 'chardev:console'],
    ...['-kernel', files.kernel, '-initrd', files.initrd, '-append', image.commandLine],
  ]
}

/** The number in what QEMU says of itself. */
export function qemuVersion(said: string): string {
  return /version (\d[\d.]*\d)/.exec(said)?.[1] ?? 'unknown'
}

export class Qemu implements SerialPort, AsyncDisposable {
  readonly #process: ChildProcessByStdio<Writable, Readable, Readable>
  readonly #directory: string
  readonly #closed: Promise<void>
  #said = ''

  constructor(tools: Tools, guest: QemuGuest) {
    this.#directory = mkdtempSync(join(tmpdir(), 'vhost-iotlb-'))
    const files = {
      kernel: join(this.#directory, 'kernel'),
      initrd: join(this.#directory, 'initrd'),
    }
    writeFileSync(files.kernel, guest.image.kernel)
    writeFileSync(files.initrd, guest.image.initrd ?? new Uint8Array(0))
    const line = [tools.qemu, ...tools.qemuOptions, ...qemuGuestArguments(guest, files)]
    const [program, ...args] = [...DIES_WITH_PARENT, ...line]
    this.#process = spawn(program, args, {
      stdio: ['pipe', 'pipe', 'pipe', guest.tap.queues[0].fd],
      env: { ...globalThis.process.env, ...tools.env },
    }) as ChildProcessByStdio<Writable, Readable, Readable>
    this.#process.stdout.on('data', (bytes: Buffer) => {
      for (const byte of bytes) guest.onConsole(byte)
    })
    this.#process.stderr.on('data', (bytes: Buffer) => {
      this.#said += bytes.toString()
    })
    // Its end is heard of by `close`.
    this.#process.stdin.on('error', () => undefined)
    this.#closed = new Promise((resolve) => {
      this.#process.on('error', (error) => {
        this.#said += error.message
        resolve()
      })
      this.#process.on('close', () => {
        resolve()
      })
    })
    void this.#closed.then(() => {
      guest.onEnd(lastLines(this.#said))
    })
  }

  /** @throws VmError where it does not run */
  static async version(tools: Tools): Promise<string> {
    const env = { ...process.env, ...tools.env }
    return qemuVersion((await run(tools.qemu, ['--version'], { env })).toString())
  }

  type(bytes: Uint8Array): void {
    this.#process.stdin.write(bytes)
  }

  /** Ends it where it is; the tap is free then. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#process.kill('SIGKILL')
    await this.#closed
    rmSync(this.#directory, { recursive: true, force: true })
  }
}

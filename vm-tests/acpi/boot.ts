/**
 * Boots a Debian kernel in QEMU on tables of ours, and gives what it said on its console.
 *
 * Not the nested VM: that one brings a root file system and its own command line; here the machine,
 * its tables and a dozen lines of init are what is under test.
 */
import { spawn } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { defaultCacheDirectory } from '../../lib/vm/cache'
import { cpioArchive } from '../../lib/vm/cpio'
import type { CpioEntry } from '../../lib/vm/cpio'
import { DIES_WITH_PARENT } from '../../lib/vm/file-server'
import type { KernelLine } from '../../lib/vm/kernel'
import { provide } from '../../lib/vm/prepare'

export interface Boot {
  readonly line: KernelLine
  /** Added to QEMU's own; a file of `files` is named by `{name}`. */
  readonly qemu?: readonly string[]
  readonly files?: Readonly<Record<string, Uint8Array>>
  /** Added to the kernel's command line. */
  readonly append?: string
  /** Shell commands of the init script, with /proc and /sys mounted. */
  readonly script?: string
  /** In place of the firmware's tables, where these are newer (Linux: initrd_table_override). */
  readonly override?: Uint8Array
}

const BOOT_TIMEOUT_MS = 90_000
const MEMORY = '512M'
const COMMAND_LINE = 'console=ttyS0 panic=-1 no_timer_check tsc=unstable'

/** @throws VmError without QEMU or a kernel, Error for a machine that does not end */
export async function boot(options: Boot): Promise<string> {
  const { tools, kernel } = await provide(defaultCacheDirectory(), options.line)
  const directory = mkdtempSync(join(tmpdir(), 'vhost-iotlb-acpi-'))
  try {
    for (const [name, bytes] of Object.entries(options.files ?? {})) {
      writeFileSync(join(directory, name), bytes)
    }
    const initrd = join(directory, 'initrd')
    writeFileSync(initrd, archive(readFileSync(tools.busybox), options))
    const own = (options.qemu ?? []).map((argument) =>
      argument.replace(/\{([^}]+)\}/, (_, name: string) => join(directory, name)),
    )
    return await run(
      [
        ...DIES_WITH_PARENT,
        tools.qemu,
        ...tools.qemuOptions,
        ...['-nodefaults', '-no-user-config', '-no-reboot', '-display', 'none', '-serial', 'stdio'],
        ...['-accel', 'tcg', '-cpu', 'Haswell-noTSX,-x2apic', '-m', MEMORY],
        ...['-kernel', kernel.image, '-initrd', initrd],
        ...['-append', `${COMMAND_LINE} ${options.append ?? ''}`],
        ...own,
      ],
      tools.env,
    )
  } finally {
    rmSync(directory, { recursive: true, force: true })
  }
}

/** What the kernel said, without time stamps. */
export function messages(console: string): string[] {
  return console.split('\n').map((line) => line.replace(/^\[ *\d+\.\d+\] /, '').trimEnd())
}

/** Tables come first, in an archive of their own that is not compressed. */
function archive(busybox: Uint8Array, { override, script = '' }: Boot): Buffer {
  const tables: CpioEntry[] = [
    { type: 'directory', path: 'kernel' },
    { type: 'directory', path: 'kernel/firmware' },
    { type: 'directory', path: 'kernel/firmware/acpi' },
    { type: 'file', path: 'kernel/firmware/acpi/table.aml', content: override ?? new Uint8Array() },
  ]
  const init = [
    '#!/bin/busybox sh',
    'busybox mount -t proc p /proc',
    'busybox mount -t sysfs s /sys',
  ]
  const root: CpioEntry[] = [
    ...['bin', 'proc', 'sys', 'dev'].map((path) => ({ type: 'directory' as const, path })),
    { type: 'file', path: 'bin/busybox', content: busybox, mode: 0o755 },
    {
      type: 'file',
      path: 'init',
      content: Buffer.from([...init, script, 'busybox poweroff -f', ''].join('\n')),
      mode: 0o755,
    },
  ]
  return Buffer.concat([
    ...(override === undefined ? [] : [cpioArchive(tables)]),
    cpioArchive(root),
  ])
}

function run([program, ...args]: string[], env: Readonly<Record<string, string>>): Promise<string> {
  return new Promise((resolve, reject) => {
    const child = spawn(program, args, {
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { ...process.env, ...env },
      timeout: BOOT_TIMEOUT_MS,
      killSignal: 'SIGKILL',
    })
    let console = ''
    let complaints = ''
    child.stdout.setEncoding('utf8').on('data', (text: string) => (console += text))
    child.stderr.setEncoding('utf8').on('data', (text: string) => (complaints += text))
    child.on('error', reject)
    child.on('close', (code, signal) => {
      if (code === 0) resolve(console.replaceAll('\r', ''))
      else reject(new Error(`QEMU ended with ${code ?? signal ?? '?'}:\n${complaints}${console}`))
    })
  })
}

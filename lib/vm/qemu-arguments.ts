/**
 * The command lines of QEMU and of the kernel in it. They are pure functions of what the VM is to
 * be; what was measured to work, and to break, is the reason of each unusual option.
 */

export type Accelerator = 'kvm' | 'tcg'

/** Numbers of descriptors that QEMU inherits, each one end of a socket pair. */
export interface Descriptors {
  readonly console: number
  readonly control: number
  readonly status: number
  readonly stdin: number
  readonly stdout: number
  readonly stderr: number
  /** The connection to the virtiofs server, if there is one. */
  readonly files?: number
}

export interface QemuSettings {
  readonly accelerator: Accelerator
  readonly cpus: number
  readonly memoryMiB: number
  /** Path of the kernel. */
  readonly kernel: string
  /** Path of the first root file system. */
  readonly image: string
  readonly descriptors: Descriptors
  /** Whether stdin and stdout are one terminal (`/dev/hvc0`). */
  readonly terminal: boolean
  /** The emulated processor has virtualisation (SVM) itself, for a `/dev/kvm` inside. */
  readonly nested?: boolean
}

/**
 * A named model: with `max`, two processors and one thread each, QEMU 7.2 oopsed once in code that
 * the kernel had patched. What this emulation lacks is taken away, or QEMU warns of it at each
 * start. So is `erms`: the emulation works `rep movsb` off byte by byte, 10 to 50 times as slow as
 * the loops that kernel and C library have for processors without it.
 */
const TCG_CPU = 'Haswell-noTSX,-pcid,-x2apic,-tsc-deadline,-invpcid,-erms'
/** The named model with SVM, which QEMU emulates (VMX it does not). */
const TCG_NESTED_CPU = 'EPYC,+svm,-sha-ni,-monitor,-misalignsse'

/**
 * `no_timer_check`: Linux 6.1 hung twice on "8254 timer not connected to IO-APIC" while the host
 * was loaded. `tsc=reliable`: the emulation takes the TSC of all processors from one clock of the
 * host; a kernel that does not trust it reads the HPET instead, which is an access to a device (16
 * µs beside 5), several times in each turn of an event loop. `mitigations=off`: nothing in there is
 * worth protecting from itself.
 */
const KERNEL_ARGUMENTS = [
  'console=ttyS0',
  'quiet',
  'panic=-1',
  'no_timer_check',
  'tsc=reliable',
  'mitigations=off',
]

export function kernelArguments(): string {
  return KERNEL_ARGUMENTS.join(' ')
}

export function qemuArguments(settings: QemuSettings): string[] {
  const { accelerator, cpus, memoryMiB, descriptors } = settings
  const kvm = accelerator === 'kvm'
  return [
    ...['-name', 'vhost-iotlb', '-nodefaults', '-no-user-config', '-no-reboot'],
    ...['-display', 'none', '-machine', 'q35'],
    ...['-accel', kvm ? 'kvm' : 'tcg,thread=multi', '-cpu', kvm ? 'host' : tcgCpu(settings)],
    ...['-smp', String(cpus), '-m', `${memoryMiB}M`],
    ...(descriptors.files === undefined ? [] : files(descriptors.files, memoryMiB)),
    ...socketChannel('console', descriptors.console),
    ...['-serial', 'chardev:console'],
    ...['-device', 'virtio-serial-pci,max_ports=8'],
    ...port('control', descriptors.control),
    ...port('status', descriptors.status),
    ...(settings.terminal ? terminal(descriptors.stdout) : port('stdout', descriptors.stdout)),
    ...port('stdin', descriptors.stdin),
    // Last: the guest takes its presence as a sign that the others are there.
    ...port('stderr', descriptors.stderr),
    ...['-kernel', settings.kernel, '-initrd', settings.image, '-append', kernelArguments()],
  ]
}

function tcgCpu({ nested = false }: QemuSettings): string {
  return nested ? TCG_NESTED_CPU : TCG_CPU
}

function files(descriptor: number, memoryMiB: number): string[] {
  return [
    // The file server maps the guest's memory, which must therefore be shared.
    ...['-object', `memory-backend-memfd,id=memory,size=${memoryMiB}M,share=on`],
    ...['-numa', 'node,memdev=memory'],
    ...socketChannel('files', descriptor),
    ...['-device', 'vhost-user-fs-pci,chardev=files,tag=host,queue-size=1024'],
  ]
}

function port(name: string, descriptor: number): string[] {
  return [
    ...socketChannel(name, descriptor),
    ...['-device', `virtserialport,chardev=${name},name=${name}`],
  ]
}

function terminal(descriptor: number): string[] {
  return [...socketChannel('terminal', descriptor), '-device', 'virtconsole,chardev=terminal']
}

function socketChannel(id: string, descriptor: number): string[] {
  return ['-chardev', `socket,id=${id},fd=${descriptor}`]
}

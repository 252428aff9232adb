import { describe, expect, it } from 'vitest'
import { kernelArguments, qemuArguments, type QemuSettings } from '../../lib/vm/qemu-arguments'

const SETTINGS: QemuSettings = {
  accelerator: 'tcg',
  cpus: 2,
  memoryMiB: 1024,
  kernel: '/cache/vmlinuz',
  image: '/cache/image.cpio',
  descriptors: { console: 3, control: 4, status: 5, stdin: 6, stdout: 7, stderr: 8, files: 9 },
  terminal: false,
}

/** The value after each option of that name. */
function values(settings: QemuSettings, option: string): string[] {
  const args = qemuArguments(settings)
  return args.flatMap((arg, index) => (arg === option ? [args[index + 1]] : []))
}

describe('qemuArguments', () => {
  it('emulates a named processor: the model "max" is known to break with two of them', () => {
    expect(values(SETTINGS, '-cpu')[0]).toMatch(/^Haswell-noTSX\b/)
    expect(values(SETTINGS, '-cpu')[0].split(',')).toContain('-erms')
    expect(values(SETTINGS, '-accel')).toEqual(['tcg,thread=multi'])
    expect(values(SETTINGS, '-smp')).toEqual(['2'])
  })

  it('emulates a processor with SVM for a machine that has /dev/kvm', () => {
    expect(values({ ...SETTINGS, nested: true }, '-cpu')[0]).toMatch(/^EPYC,\+svm\b/)
    expect(values({ ...SETTINGS, nested: true, accelerator: 'kvm' }, '-cpu')).toEqual(['host'])
  })

  it('takes the processor of the host where it is virtualised by hardware', () => {
    const settings: QemuSettings = { ...SETTINGS, accelerator: 'kvm' }
    expect(values(settings, '-cpu')).toEqual(['host'])
    expect(values(settings, '-accel')).toEqual(['kvm'])
  })

  it('shares all of the memory with the file server', () => {
    expect(values(SETTINGS, '-m')).toEqual(['1024M'])
    expect(values(SETTINGS, '-object')).toEqual([
      'memory-backend-memfd,id=memory,size=1024M,share=on',
    ])
  })

  it('gives each channel the descriptor that is inherited for it', () => {
    expect(values(SETTINGS, '-chardev')).toEqual([
      'socket,id=files,fd=9',
      'socket,id=console,fd=3',
      'socket,id=control,fd=4',
      'socket,id=status,fd=5',
      'socket,id=stdout,fd=7',
      'socket,id=stdin,fd=6',
      'socket,id=stderr,fd=8',
    ])
  })

  it('makes one console of standard input and output for a terminal', () => {
    const devices = values({ ...SETTINGS, terminal: true }, '-device')
    expect(devices).toContain('virtconsole,chardev=terminal')
    expect(devices.some((device) => device.endsWith('name=stdout'))).toBe(false)
    expect(values(SETTINGS, '-device').some((device) => device.startsWith('virtconsole'))).toBe(
      false,
    )
  })

  it('keeps the timer options without which 6.1 hung on a loaded host', () => {
    expect(kernelArguments().split(' ')).toEqual(
      expect.arrayContaining(['no_timer_check', 'tsc=reliable', 'panic=-1']),
    )
    expect(values(SETTINGS, '-append')).toEqual([kernelArguments()])
  })
})

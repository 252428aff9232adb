import { describe, expect, it } from 'vitest'
import { qemuGuestArguments, qemuVersion } from '../../../lib/cli/guest/qemu'

const GUEST = {
  image: { kernel: new Uint8Array(), commandLine: 'console=ttyS0 intel_iommu=on' },
  memoryMiB: 512,
  processors: 1,
  ats: true,
  mac: '02:00:00:00:00:02',
}
const FILES = { kernel: '/tmp/kernel', initrd: '/tmp/initrd' }

/** What follows each option of that name. */
function values(option: string, args: readonly string[]): readonly string[] {
  return args.filter((_, i) => args[i - 1] === option)
}

describe('the command line of a guest in QEMU', () => {
  it('has the kernel, its command line, memory and processors of the guest', () => {
    const args = qemuGuestArguments(GUEST, FILES)
    expect(values('-kernel', args)).toEqual([FILES.kernel])
    expect(values('-initrd', args)).toEqual([FILES.initrd])
    expect(values('-append', args)).toEqual([GUEST.image.commandLine])
    expect(values('-m', args)).toEqual(['512M'])
    expect(values('-smp', args)).toEqual(['1'])
  })

  it('has ATS at both ends or at neither: QEMU ends where only the card has it', () => {
    const devices = (ats: boolean): string =>
      values('-device', qemuGuestArguments({ ...GUEST, ats }, FILES)).join(' ')
    expect(devices(true)).toMatch(/intel-iommu,device-iotlb=on.* virtio-net-pci,.*,ats=on/)
    expect(devices(false)).toMatch(/intel-iommu,device-iotlb=off.* virtio-net-pci,.*,ats=off/)
  })
})

describe('the version of QEMU', () => {
  it('is the number in what it says, without what the distribution adds', () => {
    const said =
      'QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\nCopyright (c) 2003'
    expect(qemuVersion(said)).toBe('7.2.22')
    expect(qemuVersion('QEMU emulator version 10.0.2\n')).toBe('10.0.2')
    expect(qemuVersion('something else')).toBe('unknown')
  })
})

/**
 * Linux believes the DMAR tables of this library: it says so while it boots, and it drives an
 * emulated VT-d by one of them.
 */
import { describe, expect, it } from 'vitest'
import { gpa } from '../../lib/address'
import { buildDmar, parseDmar } from '../../lib/acpi/dmar'
import type { Dmar } from '../../lib/acpi/dmar-structures'
import { KERNEL_LINES } from '../../lib/vm/kernel'
import { boot, messages } from './boot'

/** Reserved by `memmap=`, and written by QEMU's loader: registers that Linux can look at. */
const REGISTERS = 0x10000000
const OTHER_REGISTERS = 0x10001000
const RESERVED = { first: gpa(0x10010000), last: gpa(0x1001ffff) }
/** VER, and CAP and ECAP as QEMU 7.2 has them. */
const VERSION = 0x10
const CAP = 0x00d2008c22260206n
const ECAP = 0xf46n

const EVERYTHING: Dmar = {
  hostAddressWidth: 39,
  drhd: [
    { base: REGISTERS, includePciAll: true, scopes: [{ type: 'ioapic', path: 'ff:00.0' }] },
    {
      base: OTHER_REGISTERS,
      scopes: [
        { type: 'endpoint', path: '00:1f.2' },
        { type: 'hpet', path: '00:1f.0' },
        { type: 'namespace', path: '00:1f.3', enumerationId: 1 },
      ],
    },
  ],
  rmrr: [{ range: RESERVED, scopes: [{ type: 'endpoint', path: '00:1f.2' }] }],
  atsr: [{ allPorts: true }, { segment: 1, scopes: [{ type: 'bridge', path: '00:1c.0/00.0' }] }],
  rhsa: [{ base: REGISTERS, proximityDomain: 0 }],
  andd: [{ deviceNumber: 1, objectName: '\\_SB.PCI0' }],
  satc: [
    { atcRequired: true, scopes: [{ type: 'endpoint', path: '00:1f.2' }] },
    { scopes: [{ type: 'endpoint', path: '00:1f.3' }] },
  ],
  sidp: [{ scopes: [{ type: 'endpoint', path: '00:1f.2', atcHardened: true }] }],
}

/** What Linux says of firmware that it does not believe. */
const COMPLAINT = /BIOS is broken|\[Firmware (Bug|Warn|Info)\].*(DMAR|DRHD|RMRR|ATSR|SATC)/

/** QEMU's own machine for a device that uses ATS: a VT-d, a root port, a network card. */
const QEMU_VTD = [
  ...[
    '-machine',
    'q35,kernel-irqchip=split',
    '-device',
    'intel-iommu,intremap=on,device-iotlb=on,aw-bits=39',
  ],
  ...['-device', 'pcie-root-port,id=rp0,bus=pcie.0,addr=2'],
  ...['-netdev', 'user,id=n'],
  ...['-device', 'virtio-net-pci,netdev=n,bus=rp0,romfile=,iommu_platform=on,ats=on'],
]
/** The same in our words. */
const QEMU_DMAR: Dmar = {
  hostAddressWidth: 39,
  interruptRemapping: true,
  drhd: [
    {
      base: 0xfed90000,
      scopes: [
        { type: 'ioapic', path: 'ff:00.0' },
        { type: 'endpoint', path: '00:00.0' },
        { type: 'bridge', path: '00:02.0' },
        { type: 'endpoint', path: '00:1f.0' },
        { type: 'endpoint', path: '00:1f.2' },
        { type: 'endpoint', path: '00:1f.3' },
      ],
    },
  ],
  atsr: [{ allPorts: true }],
}
/** The table that the kernel uses, who is translated, and the network card's ATS Control. */
const LOOK = `
busybox echo DMAR-BYTES: $(busybox base64 /sys/firmware/acpi/tables/DMAR | busybox tr -d '\\n')
busybox echo UNITS: $(busybox ls /sys/class/iommu)
busybox echo GROUPS: $(busybox ls -d /sys/kernel/iommu_groups/*/devices/0000:01:00.0)
busybox echo ATS-CONTROL: $(busybox od -An -tx2 -j262 -N2 /sys/bus/pci/devices/0000:01:00.0/config)
`

describe.each(KERNEL_LINES)('Linux %s', (line) => {
  it('reads each structure of a table, and complains of nothing', async () => {
    const console = await boot({
      line,
      files: { dmar: buildDmar(EVERYTHING), registers: registers() },
      qemu: [
        ...['-machine', 'q35', '-acpitable', 'file={dmar}'],
        ...[REGISTERS, OTHER_REGISTERS].flatMap((address) => [
          '-device',
          `loader,file={registers},addr=0x${address.toString(16)},force-raw=on`,
        ]),
      ],
      append: 'intel_iommu=off memmap=0x20000$0x10000000',
    })
    const said = messages(console).filter((text) => text.startsWith('DMAR: '))
    expect(said.filter((text) => !text.includes('IOMMU disabled'))).toEqual([
      'DMAR: Host address width 39',
      'DMAR: DRHD base: 0x00000010001000 flags: 0x0',
      `DMAR: dmar0: reg_base_addr 10001000 ver 1:0 cap ${hex(CAP)} ecap ${hex(ECAP)}`,
      'DMAR: DRHD base: 0x00000010000000 flags: 0x1',
      `DMAR: dmar1: reg_base_addr 10000000 ver 1:0 cap ${hex(CAP)} ecap ${hex(ECAP)}`,
      'DMAR: RMRR base: 0x00000010010000 end: 0x0000001001ffff',
      'DMAR: ATSR flags: 0x1',
      'DMAR: ATSR flags: 0x0',
      'DMAR: RHSA base: 0x00000010000000 proximity domain: 0x0',
      'DMAR: ANDD device: 1 name: \\_SB.PCI0',
      'DMAR: SATC flags: 0x1',
      'DMAR: SATC flags: 0x0',
      expect.stringMatching(/ACPI device "PNP0A08:00" under DMAR at 10001000 as 00:1f\.3/),
    ])
    expect(messages(console).filter((text) => COMPLAINT.test(text))).toEqual([])
  })

  it.each<[string, string, string]>([
    ['uses ATS behind a root port that an ATSR names', '00:02.0', '8000'],
    ['uses no ATS where the ATSR names another port', '00:03.0', '0000'],
  ])('drives a VT-d by a table of ours, and %s', async (_, path, control) => {
    const table = { ...QEMU_DMAR, atsr: [{ scopes: [{ type: 'bridge' as const, path }] }] }
    const override = buildDmar(table, { oemId: 'BOCHS', oemTableId: 'BXPC', oemRevision: 2 })
    const console = await boot({
      line,
      qemu: QEMU_VTD,
      append: 'intel_iommu=on',
      override,
      script: LOOK,
    })
    expect(answer(console, 'DMAR-BYTES')).toBe(Buffer.from(override).toString('base64'))
    expect(answer(console, 'UNITS')).toBe('dmar0')
    expect(answer(console, 'GROUPS')).toMatch(/iommu_groups\/\d+\/devices\/0000:01:00\.0$/)
    expect(answer(console, 'ATS-CONTROL')).toBe(control)
    expect(messages(console).filter((text) => COMPLAINT.test(text))).toEqual([])
  })
})

it('QEMU builds, byte by byte, the table that our words for its VT-d give', async () => {
  const console = await boot({
    line: '6.12',
    qemu: QEMU_VTD,
    append: 'intel_iommu=on',
    script: LOOK,
  })
  const bytes = Uint8Array.from(Buffer.from(answer(console, 'DMAR-BYTES'), 'base64'))
  const { identity, unknown } = parseDmar(bytes)
  expect(unknown).toEqual([])
  expect(identity.oemId).toBe('BOCHS')
  expect(buildDmar(QEMU_DMAR, identity)).toEqual(bytes)
})

function answer(console: string, name: string): string {
  const line = messages(console).find((text) => text.startsWith(`${name}: `))
  if (line === undefined) throw new Error(`the machine did not come to ${name}:\n${console}`)
  return line.slice(name.length + 2)
}

/** A page of registers of which VER, CAP and ECAP are there. */
function registers(): Uint8Array {
  const page = Buffer.alloc(4096)
  page.writeUInt32LE(VERSION, 0)
  page.writeBigUInt64LE(CAP, 8)
  page.writeBigUInt64LE(ECAP, 16)
  return page
}

function hex(value: bigint): string {
  return value.toString(16)
}

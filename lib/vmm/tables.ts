/**
 * The ACPI tables of the machine: what an operating system knows of it before it looks.
 *
 * Hardware-reduced ACPI: no timer, no PIC, no buttons; sleep and reset are one register each. ACPI
 * 6.5 5.2.5 (RSDP), 5.2.8 (XSDT), 5.2.9 (FADT), 5.2.12 (MADT); PCI Firmware 3.3 4.1.2 (MCFG).
 */
import { buildDmar } from '../acpi/dmar'
import type { Dmar } from '../acpi/dmar-structures'
import { buildTable, checksum, writeSlots } from '../acpi/table'
import type { Slot } from '../acpi/table'
import {
  busNumbers,
  concat,
  device,
  edgeInterrupt,
  eisaId,
  fixedMemory,
  integer,
  memoryWindow,
  name,
  packageOf,
  ports,
  resources,
  scope,
} from './aml'
import type { Aml } from './aml'
import {
  ECAM,
  INTEGRATED,
  IOAPIC_BASE,
  LOCAL_APIC_BASE,
  LOW,
  PCI_INTERRUPTS,
  PCI_WINDOW,
  POWER_PORTS,
  ROOT_PORT,
  SERIAL,
} from './layout'

/** Values that the guest writes to power off, and to reset. */
export const SLEEP_S5 = 5
export const RESET_VALUE = 1

export interface TablesOptions {
  readonly processors: number
  /** undefined: the machine has no remapping unit. */
  readonly dmar: Dmar | undefined
}

export interface Placed {
  readonly at: number
  readonly bytes: Uint8Array
}

/** The root pointer first, then all tables, each where the others say that it is. */
export function acpiTables({ processors, dmar }: TablesOptions): readonly Placed[] {
  const placed: Placed[] = []
  let at: number = LOW.tables + RSDP_ROOM
  const put = (bytes: Uint8Array): number => {
    const here = at
    placed.push({ at: here, bytes })
    at = (here + bytes.length + 63) & ~63
    return here
  }
  const dsdt = put(buildTable('DSDT', 2, namespace()))
  const pointers = [
    put(fadt(dsdt)),
    put(madt(processors)),
    put(mcfg()),
    ...(dmar === undefined ? [] : [put(buildDmar(dmar))]),
  ]
  const xsdt = new Uint8Array(8 * pointers.length)
  const view = new DataView(xsdt.buffer)
  pointers.forEach((pointer, i) => {
    view.setBigUint64(8 * i, BigInt(pointer), true)
  })
  const root = rootPointer(put(buildTable('XSDT', 1, xsdt)))
  return [{ at: LOW.tables, bytes: root }, ...placed]
}

const RSDP_ROOM = 64
const RSDP_BYTES = 36
const RSDP_V1_BYTES = 20

function rootPointer(xsdt: number): Uint8Array {
  const bytes = new Uint8Array(RSDP_BYTES)
  const view = new DataView(bytes.buffer)
  bytes.set(Buffer.from('RSD PTR '))
  bytes.set(Buffer.from('VIOTLB'), 9)
  view.setUint8(15, 2)
  view.setUint32(20, RSDP_BYTES, true)
  view.setBigUint64(24, BigInt(xsdt), true)
  view.setUint8(8, checksum(bytes.subarray(0, RSDP_V1_BYTES)))
  view.setUint8(32, checksum(bytes))
  return bytes
}

/** Offsets in the body, which starts 36 bytes into the table. */
const FADT = [
  { name: 'dsdt', offset: 4, size: 4 },
  { name: 'bootArchitecture', offset: 73, size: 2 },
  { name: 'flags', offset: 76, size: 4 },
  { name: 'resetRegister', offset: 80, size: 4 },
  { name: 'resetAddress', offset: 84, size: 8 },
  { name: 'resetValue', offset: 92, size: 1 },
  { name: 'minorVersion', offset: 95, size: 1 },
  { name: 'xDsdt', offset: 104, size: 8 },
  { name: 'sleepControl', offset: 208, size: 4 },
  { name: 'sleepControlAddress', offset: 212, size: 8 },
  { name: 'sleepStatus', offset: 220, size: 4 },
  { name: 'sleepStatusAddress', offset: 224, size: 8 },
] as const satisfies readonly Slot[]
const FADT_BODY = 240
/** WBINVD, no fixed power and sleep buttons, RESET_REG_SUP, HW_REDUCED_ACPI. */
const FADT_FLAGS = (1 << 0) | (1 << 4) | (1 << 5) | (1 << 10) | (1 << 20)
/** No VGA, no ASPM, no CMOS clock. */
const BOOT_ARCHITECTURE = (1 << 2) | (1 << 4) | (1 << 5)
/** A generic address: system I/O space, 8 bits at bit 0, byte access (5.2.3.2). */
const PORT_REGISTER = 0x01_00_08_01

function fadt(dsdt: number): Uint8Array {
  const body = new Uint8Array(FADT_BODY)
  const port = (offset: number): bigint => BigInt(POWER_PORTS.base + offset)
  writeSlots(body, FADT, {
    dsdt,
    bootArchitecture: BOOT_ARCHITECTURE,
    flags: FADT_FLAGS,
    resetRegister: PORT_REGISTER,
    resetAddress: port(POWER_PORTS.reset),
    resetValue: RESET_VALUE,
    minorVersion: 5,
    xDsdt: BigInt(dsdt),
    sleepControl: PORT_REGISTER,
    sleepControlAddress: port(POWER_PORTS.control),
    sleepStatus: PORT_REGISTER,
    sleepStatusAddress: port(POWER_PORTS.status),
  })
  return buildTable('FACP', 6, body)
}

const MADT_HEAD = [
  { name: 'localApic', offset: 0, size: 4 },
  { name: 'flags', offset: 4, size: 4 },
] as const satisfies readonly Slot[]

const MADT_LOCAL = [
  { name: 'type', offset: 0, size: 1 },
  { name: 'length', offset: 1, size: 1 },
  { name: 'processor', offset: 2, size: 1 },
  { name: 'apic', offset: 3, size: 1 },
  { name: 'enabled', offset: 4, size: 4 },
] as const satisfies readonly Slot[]

const MADT_IOAPIC = [
  { name: 'type', offset: 0, size: 1 },
  { name: 'length', offset: 1, size: 1 },
  { name: 'id', offset: 2, size: 1 },
  { name: 'address', offset: 4, size: 4 },
  { name: 'firstInterrupt', offset: 8, size: 4 },
] as const satisfies readonly Slot[]

function madt(processors: number): Uint8Array {
  const head = new Uint8Array(8)
  writeSlots(head, MADT_HEAD, { localApic: LOCAL_APIC_BASE, flags: 0 })
  const local = Array.from({ length: processors }, (_, id) => {
    const bytes = new Uint8Array(8)
    writeSlots(bytes, MADT_LOCAL, { type: 0, length: 8, processor: id, apic: id, enabled: 1 })
    return bytes
  })
  const io = new Uint8Array(12)
  const address = IOAPIC_BASE
  writeSlots(io, MADT_IOAPIC, { type: 1, length: 12, id: 0, address, firstInterrupt: 0 })
  return buildTable('APIC', 5, concat(head, ...local, io))
}

const MCFG_ALLOCATION = [
  { name: 'base', offset: 8, size: 8 },
  { name: 'segment', offset: 16, size: 2 },
  { name: 'firstBus', offset: 18, size: 1 },
  { name: 'lastBus', offset: 19, size: 1 },
] as const satisfies readonly Slot[]
const MCFG_BODY = 24

function mcfg(): Uint8Array {
  const body = new Uint8Array(MCFG_BODY)
  const { base, lastBus } = ECAM
  writeSlots(body, MCFG_ALLOCATION, { base: BigInt(base), segment: 0, firstBus: 0, lastBus })
  return buildTable('MCFG', 1, body)
}

/** A root complex with its windows and interrupts, a serial port, and the way to power off. */
function namespace(): Aml {
  const routes = [ROOT_PORT, INTEGRATED].flatMap((slot) =>
    PCI_INTERRUPTS.map((gsi, pin) =>
      packageOf(integer(slot.device * 0x10000 + 0xffff), integer(pin), integer(0), integer(gsi)),
    ),
  )
  return concat(
    name('\\_S5', packageOf(integer(SLEEP_S5), integer(0), integer(0), integer(0))),
    scope(
      '\\_SB',
      device(
        'PCI0',
        name('_HID', eisaId('PNP0A08')),
        name('_CID', eisaId('PNP0A03')),
        name('_UID', integer(0)),
        name('_BBN', integer(0)),
        name(
          '_CRS',
          resources(busNumbers(0, ECAM.lastBus), memoryWindow(PCI_WINDOW.base, PCI_WINDOW.bytes)),
        ),
        name('_PRT', packageOf(...routes)),
      ),
      // PCI Firmware 3.3 4.1.2: whose the ECAM is. Linux 6.1 does not use it otherwise.
      device(
        'MBRD',
        name('_HID', eisaId('PNP0C02')),
        name('_UID', integer(0)),
        name('_CRS', resources(fixedMemory(ECAM.base, ECAM.bytes))),
      ),
      device(
        'COM1',
        name('_HID', eisaId('PNP0501')),
        name('_UID', integer(0)),
        name('_CRS', resources(ports(SERIAL.port, 8), edgeInterrupt(SERIAL.irq))),
      ),
    ),
  )
}

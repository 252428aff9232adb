/**
 * Where things are in the machine's physical addresses and ports. Memory is from 0 to at most
 * 3 GiB, and goes on at 4 GiB; between them are the devices.
 */

/** Bus numbers 0 to 15, 1 MiB of configuration space each (PCIe 5.0 7.2.2). */
export const ECAM = { base: 0xe000_0000, bytes: 0x0100_0000, lastBus: 15 } as const
/** What Linux gives to BARs and bridges. */
export const PCI_WINDOW = { base: 0xc000_0000, bytes: 0x2000_0000 } as const
export const IOAPIC_BASE = 0xfec0_0000
export const LOCAL_APIC_BASE = 0xfee0_0000
/** The registers of the remapping unit, where QEMU has them too. */
export const REMAPPING_BASE = 0xfed9_0000

/** Sleep control, sleep status (ACPI 6.5 4.8.3.7) and reset register, one byte each. */
export const POWER_PORTS = { base: 0x600, control: 0, status: 1, reset: 2, bytes: 3 } as const
/** Status and command of a PC's keyboard controller, of which there is only the reset line. */
export const KEYBOARD_PORT = 0x64
export const SERIAL = { port: 0x3f8, irq: 4 } as const
/** A write there only passes time. */
export const DELAY_PORT = 0x80

/** Interrupts of PCI functions that have no messages: INTA to INTD. */
export const PCI_INTERRUPTS = [16, 17, 18, 19] as const

/** What the boot loader, which is this program, puts into the first mebibyte. */
export const LOW = {
  gdt: 0x500,
  bootParameters: 0x7000,
  pageTables: 0x9000,
  stack: 0x1_8000,
  commandLine: 0x2_0000,
  /** Above it is what a BIOS would have for itself. */
  end: 0x9_fc00,
  tables: 0xe_0000,
  /** Where a processor of a PC starts in real mode. */
  resetVector: 0xf_fff0,
  tablesEnd: 0x10_0000,
} as const

/** Device and function of what is on the root bus. */
export const ROOT_PORT = { device: 1, function: 0 } as const
export const INTEGRATED = { device: 2, function: 0 } as const

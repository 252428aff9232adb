/**
 * What ends a run of the machine: the registers for sleep and reset (ACPI 6.5 4.8.3.6, 4.8.3.7),
 * and the reset line of a PC's keyboard controller, for those who do not read ACPI.
 */
import type { MmioDevice } from '../iommu/iommu'
import { LOW, POWER_PORTS } from './layout'
import { RESET_VALUE, SLEEP_S5 } from './tables'
import type { Placed } from './tables'

const RESET_PORT = POWER_PORTS.base + POWER_PORTS.reset

/**
 * What a BIOS would have at the reset vector, in real mode: here it writes the reset register.
 * Linux jumps there, and tries nothing else first, on a machine with hardware-reduced ACPI and
 * without EFI (arch/x86/kernel/reboot.c).
 */
export const RESET_CODE: Placed = {
  at: LOW.resetVector,
  bytes: Uint8Array.of(
    ...[0xba, RESET_PORT & 0xff, RESET_PORT >> 8], // mov dx, RESET_PORT
    ...[0xb0, RESET_VALUE], // mov al, RESET_VALUE
    0xee, // out dx, al
    ...[0xf4, 0xeb, 0xfd], // hlt, for ever
  ),
}

const SLEEP_ENABLE = 0x20
const SLEEP_TYPE_SHIFT = 2
const SLEEP_TYPE = 7

export class Power implements MmioDevice {
  readonly #powerOff: () => void
  readonly #reset: () => void

  constructor(powerOff: () => void, reset: () => void) {
    this.#powerOff = powerOff
    this.#reset = reset
  }

  read(): bigint {
    return 0n
  }

  write(offset: number, value: bigint): void {
    const number = Number(value & 0xffn)
    if (offset === POWER_PORTS.reset && number === RESET_VALUE) this.#reset()
    if (offset !== POWER_PORTS.control || (number & SLEEP_ENABLE) === 0) return
    if (((number >> SLEEP_TYPE_SHIFT) & SLEEP_TYPE) === SLEEP_S5) this.#powerOff()
  }
}

/** The command of the 8042 that pulls the line which resets the processor. */
const PULSE_RESET = 0xfen

/**
 * Port 0x64 without a keyboard: ready for a command at any time, and with one that does something.
 */
export class KeyboardReset implements MmioDevice {
  readonly #reset: () => void

  constructor(reset: () => void) {
    this.#reset = reset
  }

  read(): bigint {
    return 0n
  }

  write(_offset: number, value: bigint): void {
    if (value === PULSE_RESET) this.#reset()
  }
}

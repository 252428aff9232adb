/** The two registers that end a run of the machine: sleep control and reset (ACPI 6.5 4.8.3.6, 4.8.3.7). */
import type { MmioDevice } from '../iommu/iommu'
import { POWER_PORTS } from './layout'
import { RESET_VALUE, SLEEP_S5 } from './tables'

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

/**
 * A PCI Express root port: the bridge that a device has to sit behind for an operating system to
 * take it for a PCI Express device with a link, and so to enable its ATS.
 *
 * It decodes nothing itself. The machine around it asks which buses the guest has put behind it.
 */
import { ConfigSpace } from './config-space'
import type { ResetKind } from './config-space'
import { Express } from './express'
import { BRIDGE_CONTROL, BUS_NUMBERS, bridgeHeader } from './header'
import { Listeners } from './listeners'

const BRIDGE_CLASS = 0x060400
/** A root port of QEMU; Linux needs no driver for it that would care. */
const VENDOR = 0x1b36
const DEVICE = 0x000c

export interface RootPortOptions {
  readonly vendor?: number
  readonly device?: number
  /** Port Number, 0 to 255: different for each port of a machine. */
  readonly port?: number
}

export class RootPort {
  readonly config: ConfigSpace
  readonly #busResets = new Listeners<[]>()
  #inReset = false

  /** @throws RangeError for numbers that do not fit their fields */
  constructor({ vendor = VENDOR, device = DEVICE, port = 0 }: RootPortOptions = {}) {
    const header = bridgeHeader({ vendor, device, classCode: BRIDGE_CLASS })
    this.config = new ConfigSpace(header, [new Express({ type: 'root-port', port })])
    this.config.onChange((name) => {
      if (name === 'bridgeControl') this.#bridgeControl()
    })
  }

  /** The buses behind the port, both inclusive; undefined while the guest has not set them. */
  get buses(): { readonly secondary: number; readonly subordinate: number } | undefined {
    const numbers = this.config.get('busNumbers')
    const secondary = BUS_NUMBERS.secondary.in(numbers)
    const subordinate = BUS_NUMBERS.subordinate.in(numbers)
    return secondary === 0 || subordinate < secondary ? undefined : { secondary, subordinate }
  }

  /** Called when the guest resets what is behind the port (Secondary Bus Reset becomes 1). */
  onBusReset(listener: () => void): Disposable {
    return this.#busResets.add(listener)
  }

  reset(kind: ResetKind = 'conventional'): void {
    this.config.reset(kind)
  }

  #bridgeControl(): void {
    const inReset = BRIDGE_CONTROL.secondaryBusReset.in(this.config.get('bridgeControl')) === 1
    if (inReset && !this.#inReset) this.#busResets.call()
    this.#inReset = inReset
  }
}

/**
 * The vendor-specific capabilities of a virtio function: where its structures are, and a window
 * through which configuration accesses reach them.
 *
 * virtio 1.3 4.1.4, `struct virtio_pci_cap`.
 */
import { layout } from '../bits'
import type { MmioDevice } from '../iommu/iommu'
import type { Capability, CapabilityRegisters } from './capabilities'
import { constant, register } from './config-register'
import type { ConfigField, ConfigRegister } from './config-register'

const CAPABILITY_ID = 0x09
const BYTES = 16

/** virtio 1.3 4.1.4, `cfg_type`. */
const TYPES = { common: 1, notify: 2, isr: 3, device: 4, pci: 5 } as const

export type StructureName = Exclude<keyof typeof TYPES, 'pci'>

const HEAD = [
  { name: 'length', from: 16, to: 23 },
  { name: 'type', from: 24, to: 31 },
] as const satisfies readonly ConfigField[]

const PLACE = [{ name: 'bar', from: 0, to: 7 }] as const satisfies readonly ConfigField[]

const WRITABLE_PLACE = [
  { name: 'bar', from: 0, to: 7, access: 'writable' },
] as const satisfies readonly ConfigField[]
const PLACE_FIELD = layout(32, PLACE).field

const WORD = [
  { name: 'bits', from: 0, to: 31, access: 'writable' },
] as const satisfies readonly ConfigField[]

/** Says where a structure is. @param multiplier of a notify structure: 4.1.4.4 */
export function structureCapability(
  name: StructureName,
  bar: number,
  place: { readonly offset: number; readonly bytes: number },
  multiplier?: number,
): Capability {
  const length = multiplier === undefined ? BYTES : BYTES + 4
  return {
    name,
    id: CAPABILITY_ID,
    bytes: length,
    registers: [
      register('head', 0, HEAD, { length, type: TYPES[name] }),
      register('place', 4, PLACE, { bar }),
      constant('offset', 8, place.offset),
      constant('length', 12, place.bytes),
      ...(multiplier === undefined ? [] : [constant('multiplier', 16, multiplier)]),
    ],
  }
}

/**
 * 4.1.4.9: the guest writes a BAR, an offset and a length of 1, 2 or 4 into the capability; each
 * access to its last word then is an access to the BAR. Anything else in those fields: no access.
 */
export class PciAccess implements Capability {
  readonly name = 'pci'
  readonly id = CAPABILITY_ID
  readonly bytes = BYTES + 4
  readonly registers: readonly ConfigRegister[] = [
    register('head', 0, HEAD, { length: BYTES + 4, type: TYPES.pci }),
    register('place', 4, WRITABLE_PLACE),
    register('offset', 8, WORD),
    register('length', 12, WORD),
    register('data', 16, WORD),
  ]
  #own: CapabilityRegisters | undefined

  constructor(
    readonly bar: number,
    readonly barBytes: number,
    readonly target: MmioDevice,
  ) {}

  attach(registers: CapabilityRegisters): void {
    this.#own = registers
  }

  reading(name: string): void {
    const place = this.#place()
    if (name !== 'data' || place === undefined) return
    this.#own?.set('data', this.target.read(place.offset, place.length))
  }

  written(name: string): void {
    const place = this.#place()
    if (name !== 'data' || place === undefined || this.#own === undefined) return
    const value = BigInt.asUintN(8 * place.length, this.#own.get('data'))
    this.target.write(place.offset, value, place.length)
  }

  #place(): { readonly offset: number; readonly length: number } | undefined {
    if (this.#own === undefined) return undefined
    const bar = PLACE_FIELD.bar.in(this.#own.get('place'))
    const offset = Number(this.#own.get('offset'))
    const length = Number(this.#own.get('length'))
    if (bar !== this.bar || !LENGTHS.includes(length)) return undefined
    if (offset % length !== 0 || offset + length > this.barBytes) return undefined
    return { offset, length }
  }
}

const LENGTHS: readonly number[] = [1, 2, 4]

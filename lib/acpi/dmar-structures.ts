/**
 * What a DMAR table says, in words: one interface a remapping structure.
 *
 * Neither bytes nor rules: those are `dmar.ts` and `dmar-rules.ts`. VT-d 4.1 chapter 8.
 */
import type { Gpa, Range } from '../address'
import type { DecodedScope, DeviceScope } from './device-scope'
import type { TableIdentity } from './table'

/** VT-d 4.1 8.3: one remapping unit. */
export interface Drhd {
  /** PCI segment, 0 where it is left out. */
  readonly segment?: number
  /** Of its registers; 4 KiB aligned, not 0. */
  readonly base: Gpa | bigint | number
  /** Size of its registers: a power of two from 4096 (the default) to 2^27. */
  readonly registerBytes?: number
  /** INCLUDE_PCI_ALL: in front of all devices of the segment that no other unit claims. */
  readonly includePciAll?: boolean
  readonly scopes?: readonly DeviceScope[]
}

/** VT-d 4.1 8.4: memory that the firmware lets devices use, which must stay mapped one to one. */
export interface Rmrr {
  readonly segment?: number
  /** Inclusive, whole 4 KiB pages. */
  readonly range: Range<Gpa>
  readonly scopes: readonly DeviceScope[]
}

/** VT-d 4.1 8.5: root ports that pass ATS requests on. Either all of the segment's, or a list. */
export interface Atsr {
  readonly segment?: number
  /** ALL_PORTS. */
  readonly allPorts?: boolean
  /** Bridges alone. */
  readonly scopes?: readonly DeviceScope[]
}

/** VT-d 4.1 8.6: the memory that is near to a remapping unit. */
export interface Rhsa {
  /** The register base of a unit of this table. */
  readonly base: Gpa | bigint | number
  /** As in the SRAT, 0 to 2^32-1. */
  readonly proximityDomain: number
}

/** VT-d 4.1 8.7: a device that only ACPI's namespace names, for scopes of type namespace. */
export interface Andd {
  /** 1 to 255. */
  readonly deviceNumber: number
  /** Such as `'\\_SB.I2C0'`. */
  readonly objectName: string
}

/** VT-d 4.1 8.8: devices integrated in the SoC, behind no root port, that have an ATC. */
export interface Satc {
  readonly segment?: number
  /** ATC_REQUIRED: the devices do not work without their ATC. */
  readonly atcRequired?: boolean
  /** Endpoints alone. */
  readonly scopes: readonly DeviceScope[]
}

/** VT-d 4.1 8.9: properties of devices integrated in the SoC; they are in the scopes. */
export interface Sidp {
  readonly segment?: number
  /** Endpoints alone. */
  readonly scopes: readonly DeviceScope[]
}

/** DMAR flags (VT-d 4.1 8.1). */
export interface DmarFlags {
  /** INTR_REMAP: the platform supports interrupt remapping. */
  readonly interruptRemapping?: boolean
  /** X2APIC_OPT_OUT: the firmware asks not to use x2APIC. */
  readonly x2apicOptOut?: boolean
  /**
   * DMA_CTRL_PLATFORM_OPT_IN_FLAG: DMA outside of reserved memory is safe to block from boot on.
   */
  readonly dmaControlOptIn?: boolean
}

export interface Dmar extends DmarFlags {
  /** Bits of a physical address that DMA can reach, 12 to 64. The table holds one less. */
  readonly hostAddressWidth: number
  readonly drhd: readonly Drhd[]
  readonly rmrr?: readonly Rmrr[]
  readonly atsr?: readonly Atsr[]
  readonly rhsa?: readonly Rhsa[]
  readonly andd?: readonly Andd[]
  readonly satc?: readonly Satc[]
  readonly sidp?: readonly Sidp[]
}

export type Decoded<T> = Required<Omit<T, 'scopes' | 'base'>> &
  ('scopes' extends keyof T ? { readonly scopes: readonly DecodedScope[] } : unknown) &
  ('base' extends keyof T ? { readonly base: Gpa } : unknown)

/** As decoded: nothing left out. */
export interface DecodedDmar extends Required<DmarFlags> {
  readonly hostAddressWidth: number
  readonly drhd: readonly Decoded<Drhd>[]
  readonly rmrr: readonly Decoded<Rmrr>[]
  readonly atsr: readonly Decoded<Atsr>[]
  readonly rhsa: readonly Decoded<Rhsa>[]
  readonly andd: readonly Decoded<Andd>[]
  readonly satc: readonly Decoded<Satc>[]
  readonly sidp: readonly Decoded<Sidp>[]
  /** Structures of a type that VT-d 4.1 does not define; software ignores them (8.2). */
  readonly unknown: readonly { readonly type: number; readonly bytes: Uint8Array }[]
  readonly identity: Required<TableIdentity>
}

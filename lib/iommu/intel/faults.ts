/**
 * Why VT-d refuses a request: one table, for the fault records, for `Fault.reason` and for
 * `explain`. Codes are those of VT-d 5.10, 7.1.3, table 30; codes from 0x100 are this library's own
 * and are never recorded.
 */
import { INTERRUPT_WINDOW } from '../../memory/address-space'
import type { FaultReason } from '../../memory/address-space'

export interface IntelFaultReason extends FaultReason {
  /** For people: what the guest's tables or the request did. */
  readonly words: string
  /**
   * Qualified faults are not recorded when the context or PASID entry sets FPD (7.1.3): the entry
   * must have been found before it can say so.
   */
  readonly qualified: boolean
}

type Row = readonly [code: number, name: string, qualified: boolean, words: string]

const ROWS = [
  [0x01, 'root-not-present', false, 'the root entry of the bus is not present'],
  [0x02, 'context-not-present', true, 'the context entry of the function is not present'],
  [
    0x03,
    'context-invalid',
    true,
    'the context entry asks for a width or type that is not supported, or its table is not memory',
  ],
  [0x04, 'beyond-width', true, 'the address is beyond the width of the tables'],
  [0x05, 'write-denied', true, 'the tables do not grant writing'],
  [0x06, 'read-denied', true, 'the tables do not grant reading'],
  [0x07, 'table-access', true, 'a paging table below the first one is not memory'],
  [0x08, 'root-access', false, 'the root table is not memory'],
  [0x09, 'context-access', false, 'the context table is not memory'],
  [0x0a, 'root-reserved', false, 'the root entry sets reserved bits'],
  [0x0b, 'context-reserved', true, 'the context entry sets reserved bits'],
  [0x0c, 'paging-reserved', true, 'a paging entry sets reserved bits'],
  [0x0d, 'type-blocked', true, 'the translation type blocks requests of a device TLB'],
  [0x0e, 'output-interrupt', true, 'the tables lead into the interrupt window 0xfee00000'],
  [0x30, 'sm-root-table-invalid', false, 'the table mode of RTADDR is not supported'],
  [0x38, 'sm-root-access', false, 'the scalable-mode root table is not memory'],
  [0x39, 'sm-root-not-present', false, 'the scalable-mode root entry is not present'],
  [0x3a, 'sm-root-reserved', false, 'the scalable-mode root entry sets reserved bits'],
  [0x40, 'sm-context-access', false, 'the scalable-mode context table is not memory'],
  [0x41, 'sm-context-not-present', true, 'the scalable-mode context entry is not present'],
  [0x42, 'sm-context-reserved', true, 'the scalable-mode context entry sets reserved bits'],
  [0x43, 'sm-context-invalid', true, 'RID_PASID is beyond the PASID directory'],
  [0x44, 'sm-device-tlb-off', true, 'the context entry does not enable the device TLB'],
  [0x50, 'sm-pasid-directory-access', false, 'the PASID directory is not memory'],
  [0x51, 'sm-pasid-directory-not-present', true, 'the PASID directory entry is not present'],
  [0x52, 'sm-pasid-directory-reserved', true, 'the PASID directory entry sets reserved bits'],
  [0x58, 'sm-pasid-access', false, 'the PASID table is not memory'],
  [0x59, 'sm-pasid-not-present', true, 'the PASID entry is not present'],
  [0x5a, 'sm-pasid-reserved', true, 'the PASID entry sets reserved bits'],
  [0x5b, 'sm-pasid-invalid', true, 'the PASID entry asks for what is not supported'],
  [0x70, 'fs-access', true, 'a first-stage table is not memory'],
  [0x71, 'fs-not-present', true, 'a first-stage entry is not present'],
  [0x72, 'fs-reserved', true, 'a first-stage entry sets reserved bits'],
  [0x73, 'fs-root-access', true, 'the top first-stage table is not memory'],
  [0x74, 'nested-beyond-width', true, 'a first-stage entry leads beyond the second stage'],
  [0x75, 'nested-fs-root-denied', true, 'the second stage denies the top first-stage table'],
  [0x76, 'nested-fs-denied', true, 'the second stage denies a first-stage table'],
  [0x77, 'nested-fs-write-denied', true, 'the second stage denies setting accessed or dirty'],
  [0x78, 'ss-access', true, 'a second-stage table is not memory'],
  [0x79, 'ss-not-present', true, 'a second-stage entry is not present'],
  [0x7a, 'ss-reserved', true, 'a second-stage entry sets reserved bits'],
  [0x7b, 'ss-root-access', true, 'the top second-stage table is not memory'],
  [0x80, 'not-canonical', true, 'the address is not canonical for the first stage'],
  [0x81, 'user-denied', true, 'a first-stage entry is not for user requests'],
  [0x83, 'beyond-host-width', true, 'the address is passed through beyond the host'],
  [0x84, 'sm-beyond-width', true, 'the address is beyond the width of the second stage'],
  [0x85, 'sm-write-denied', true, 'the tables do not grant writing'],
  [0x86, 'sm-read-denied', true, 'the tables do not grant reading'],
  [0x87, 'sm-output-interrupt', true, 'the tables lead into the interrupt window 0xfee00000'],
  [0x91, 'fs-update-failed', true, 'the accessed or dirty bit could not be set'],
  [
    INTERRUPT_WINDOW.code,
    'interrupt-window',
    false,
    'accesses to 0xfee00000 are interrupts, not memory',
  ],
] as const satisfies readonly Row[]

export type FaultName = (typeof ROWS)[number][1]

/** Codes by name: `CODE['write-denied']` is 5. */
export const CODE = Object.fromEntries(ROWS.map(([code, name]) => [name, code])) as Readonly<
  Record<FaultName, number>
>

export const FAULT_REASONS: readonly IntelFaultReason[] = ROWS.map(
  ([code, name, qualified, words]) => ({ code, name, qualified, words }),
)

const BY_CODE = new Map(FAULT_REASONS.map((reason) => [reason.code, reason]))

/** The row of a code; an unknown code gets a row that says so. */
export function faultReason(code: number): IntelFaultReason {
  return BY_CODE.get(code) ?? { code, name: 'unknown', qualified: false, words: 'unknown reason' }
}

/**
 * Whether FPD in a context or PASID entry hides a fault of this reason. QEMU leaves reserved bits
 * in a context entry out.
 */
export function isQualified(code: number, qemu: boolean): boolean {
  return faultReason(code).qualified && !(qemu && code === CODE['context-reserved'])
}

/** Whether the reason has a number in the specification, and so a place in a fault record. */
export function isRecorded(code: number): boolean {
  return code < 0x100
}

/**
 * The words that everybody uses: three kinds of address, ranges and access rights.
 *
 * The kinds are branded because mixing an iova with a gpa is the bug of this field. A brand costs
 * nothing at run time. Hot paths count 4 KiB pages in plain numbers instead (a 64-bit address has
 * at most 2^52 pages, exact in a double); they are named `…Page` and never leave a layer unnamed.
 */

declare const brand: unique symbol

/** What the device says: an I/O virtual address, 0 to 2^64-1. */
export type Iova = bigint & { readonly [brand]: 'iova' }
/** A guest-physical address, 0 to 2^52-1 (VT-d 4.1 3.6: at most 52 bits of host address width). */
export type Gpa = bigint & { readonly [brand]: 'gpa' }
/** A host virtual address of this process (`uaddr` in linux/vhost_types.h), 0 to 2^64-1. */
export type Hva = bigint & { readonly [brand]: 'hva' }

/** Inclusive on both ends, so that the last byte of the address space can be named. */
export interface Range<A extends bigint> {
  readonly first: A
  readonly last: A
}

export type Access = 'none' | 'read' | 'write' | 'readwrite'

/** `Access` as the bits of VHOST_ACCESS_RO and VHOST_ACCESS_WO (linux/vhost_types.h). */
export type AccessBits = 0 | 1 | 2 | 3
export const READ = 1
export const WRITE = 2
export const READWRITE = 3

export const KiB = 1024
export const MiB = 1024 * KiB
export const GiB = 1024 * MiB

export const PAGE_SHIFT = 12
export const PAGE_SIZE = 4096
/** The last 4 KiB page of a 64-bit address space. */
export const LAST_PAGE = 2 ** 52 - 1

const LAST_64 = (1n << 64n) - 1n
const LAST_52 = (1n << 52n) - 1n

/** @throws RangeError outside 0 to 2^64-1 */
export function iova(value: bigint | number): Iova {
  return checked(value, LAST_64, 'iova') as Iova
}

/** @throws RangeError outside 0 to 2^52-1 */
export function gpa(value: bigint | number): Gpa {
  return checked(value, LAST_52, 'gpa') as Gpa
}

/** @throws RangeError outside 0 to 2^64-1 */
export function hva(value: bigint | number): Hva {
  return checked(value, LAST_64, 'hva') as Hva
}

/** The 4 KiB page that holds an address: a number from 0 to 2^52-1. */
export function pageOf(address: bigint): number {
  return Number(address >> 12n)
}

/** The byte range of the inclusive page range `[firstPage, lastPage]`. */
export function iovaRange(firstPage: number, lastPage: number): Range<Iova> {
  return {
    first: (BigInt(firstPage) << 12n) as Iova,
    last: ((BigInt(lastPage) << 12n) | 0xfffn) as Iova,
  }
}

/** The first byte of a page. */
export function iovaOfPage(page: number): Iova {
  return (BigInt(page) << 12n) as Iova
}

const ACCESSES: readonly Access[] = ['none', 'read', 'write', 'readwrite']

export function accessOf(bits: AccessBits): Access {
  return ACCESSES[bits]
}

/** @throws TypeError for anything but the four words of `Access` */
export function accessBits(access: Access): AccessBits {
  const bits = ACCESSES.indexOf(access)
  if (bits < 0) throw new TypeError(`access must be one of ${ACCESSES.join(', ')}: ${access}`)
  return bits as AccessBits
}

function checked(value: bigint | number, last: bigint, kind: string): bigint {
  if (typeof value === 'number' && !Number.isSafeInteger(value)) {
    throw new RangeError(`${kind} must be a bigint or a safe integer: ${value}`)
  }
  const address = BigInt(value)
  if (address < 0n || address > last) {
    throw new RangeError(`${kind} must be from 0 to 0x${last.toString(16)}: ${value.toString()}`)
  }
  return address
}

/** Numbers, addresses and places among the options of a command, as commander's parsers. */
import { InvalidArgumentError } from 'commander'
import type { DumpPart } from './memory-dump'

/** @throws InvalidArgumentError for what is not written in decimal digits, or is above 2^53 - 1 */
export function wholeNumber(value: string): number {
  const number = Number(value)
  if (!/^\d+$/.test(value) || !Number.isSafeInteger(number)) {
    throw new InvalidArgumentError('a whole number is needed')
  }
  return number
}

/** As `wholeNumber`, and not 0. */
export function positive(value: string): number {
  const number = Number(value)
  if (!/^\d+$/.test(value) || !Number.isSafeInteger(number) || number === 0) {
    throw new InvalidArgumentError('a positive whole number is needed')
  }
  return number
}

/** An address or register: hexadecimal with or without 0x, as Linux and QEMU print them. */
export function address(value: string): bigint {
  const digits = value.replace(/^0x/i, '')
  if (!/^[0-9a-f]{1,16}$/i.test(digits)) {
    throw new InvalidArgumentError('a hexadecimal number of up to 64 bits is needed')
  }
  return BigInt(`0x${digits}`)
}

/** `FILE` or `FILE@GPA`, collected. */
export function dumpPart(value: string, before: readonly DumpPart[] = []): readonly DumpPart[] {
  const mark = value.lastIndexOf('@')
  const told = mark > 0 && /^(0x)?[0-9a-f]+$/i.test(value.slice(mark + 1))
  const part = told
    ? { path: value.slice(0, mark), at: Number(address(value.slice(mark + 1))) }
    : { path: value, at: 0 }
  return [...before, part]
}

/** Numbers among the options of a command, as commander's parsers. */
import { InvalidArgumentError } from 'commander'

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

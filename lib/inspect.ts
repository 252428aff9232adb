/**
 * What an object shows of itself in `console.log`, a REPL and an assertion's message: its state in
 * one glance, not its private machinery. Nothing is computed that costs more than reading it.
 */
import { inspect } from 'node:util'
import type { InspectOptions } from 'node:util'

/** Under this symbol a class has its method `(depth, options) => summary(…)`. */
export const shown: typeof inspect.custom = inspect.custom

/** `Name { field: value, … }`; `[Name]` where the depth is used up. */
export function summary(
  name: string,
  fields: Readonly<Record<string, unknown>>,
  depth: number,
  options: InspectOptions,
): string {
  if (depth < 0) return `[${name}]`
  const given = Object.entries(fields).filter(([, value]) => value !== undefined)
  return `${name} ${inspect(Object.fromEntries(given), options)}`
}

/** A value that stands for itself, without the quotes of a string. */
export function plain(text: string): object {
  return { [shown]: () => text }
}

export function hex(value: number | bigint): object {
  return plain(`0x${value.toString(16)}`)
}

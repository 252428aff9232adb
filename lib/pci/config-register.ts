/**
 * Configuration registers from tables of fields: each field says whether the guest may write it,
 * clears it by writing 1, and whether it outlives a function level reset.
 *
 * Configuration space is made of 32-bit registers; a 64-bit one is a base address. What the bits
 * mean is for the files that have the tables.
 */
import { layout } from '../bits'
import type { Field, Layout, Register } from '../bits'

/** A field without `access` is read-only. */
export interface ConfigField<Name extends string = string> extends Field<Name> {
  readonly access?: 'writable' | 'write1clear' | 'writeOnly'
  /** 0 where it is left out. */
  readonly reset?: number
  /** Outlives a function level reset (PCIe 5.0 6.6.2). */
  readonly sticky?: true
}

export interface ConfigRegister extends Register {
  /** Bits that outlive a function level reset. */
  readonly sticky?: bigint
}

/** A register of 32 bits with the fields of `fields`; `values` are instead of their resets. */
export function register<const Fields extends readonly ConfigField[]>(
  name: string,
  offset: number,
  fields: Fields,
  values?: Readonly<Partial<Record<Fields[number]['name'], number>>>,
): ConfigRegister {
  const given = (values ?? {}) as Readonly<Record<string, number | undefined>>
  const { field } = layout(32, fields) as Layout<string>
  let made = { reset: 0n, writable: 0n, write1clear: 0n, writeOnly: 0n, sticky: 0n }
  for (const { name: of, access, reset = 0, sticky } of fields) {
    const { bits } = field[of]
    made = {
      reset: made.reset | field[of].of(given[of] ?? reset),
      writable: made.writable | (access === 'writable' || access === 'writeOnly' ? bits : 0n),
      write1clear: made.write1clear | (access === 'write1clear' ? bits : 0n),
      writeOnly: made.writeOnly | (access === 'writeOnly' ? bits : 0n),
      sticky: made.sticky | (sticky === true ? bits : 0n),
    }
  }
  return { name, offset, size: 4, ...made }
}

/** A register of 32 bits that never changes. */
export function constant(name: string, offset: number, reset: number): ConfigRegister {
  return { name, offset, size: 4, reset: BigInt(reset) }
}

/**
 * A case: one fact about vhost-net, seen from user space, and what a right device shows.
 *
 * A case only looks. What it saw is compared with what is expected here, so that the same case
 * tells about any kernel, and about the fake. Where kernels differ and both are documented, the
 * difference is an outcome of its own; it is shown, and no failure.
 */
import { messageOf } from '../../errors'
import type { BareDevice } from './bare-device'
import { Bench } from './bench'
import type { BenchOptions } from './bench'
import { ScriptedBench, tell } from './script'
import type { Operation } from './script'

/** What may be seen. The first outcome of a case is the usual one. */
export interface Outcome {
  readonly seen: string
  /** The kernels that show this, where it is not all of them. */
  readonly where?: string
  /** A mistake that later kernels do not make. */
  readonly bug?: boolean
}

export interface Case {
  /** `'K1'`, or the commit or number of a mistake of the kernel's. */
  readonly about: string
  readonly name: string
  readonly expected: readonly Outcome[]
  observe(open: OpenBench): string
}

export type OpenDevice = () => BareDevice
export type OpenBench = (options?: BenchOptions) => Bench

/**
 * right: as usual. differs: as documented for some kernels. affected: a known mistake is there.
 * wrong: nobody has written that down.
 */
export type Verdict = 'right' | 'differs' | 'affected' | 'wrong'

export interface Finding {
  readonly about: string
  readonly name: string
  readonly verdict: Verdict
  readonly seen: string
  /** The kernels of a `differs` or `affected`. */
  readonly where?: string
}

/** Puts one case to a device. What a device throws is seen, too. */
export function examined(one: Case, openDevice: OpenDevice): Finding {
  const opened: Bench[] = []
  let seen: string
  try {
    seen = one.observe((options) => {
      const bench = new Bench(openDevice(), options)
      opened.push(bench)
      return bench
    })
  } catch (error) {
    seen = messageOf(error)
  } finally {
    for (const bench of opened.splice(0)) bench[Symbol.dispose]()
  }
  const { about, name, expected } = one
  const outcome = expected.find((each) => each.seen === seen)
  if (outcome === undefined) return { about, name, verdict: 'wrong', seen }
  const { where, bug } = outcome
  if (where === undefined) return { about, name, verdict: 'right', seen }
  return { about, name, verdict: bug === true ? 'affected' : 'differs', seen, where }
}

/** A case with one right outcome. */
export function fact(
  about: string,
  name: string,
  seen: string,
  observe: (open: OpenBench) => string,
): Case {
  return { about, name, expected: [{ seen }], observe }
}

/** A case that is a script: what is told after each operation. */
export function scripted(
  about: string,
  name: string,
  script: readonly Operation[],
  telling: readonly string[],
): Case {
  return fact(about, name, telling.join('\n'), (open) =>
    tell(new ScriptedBench(open()), script).join('\n'),
  )
}

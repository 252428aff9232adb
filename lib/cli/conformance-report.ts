/** What was seen, as a table: a line for each case, a column for each kernel. */
import type { Finding, Verdict } from '../testing/conformance/case'
import type { Detected } from '../testing/conformance/detected'
import type { FuzzResult } from '../testing/conformance/fuzz/fuzz'

/** One kernel, examined. */
export interface Examined {
  readonly kernel: string
  readonly findings: readonly Finding[]
  readonly detected: readonly Detected[]
  /** Random sequences, done to the kernel and to the fake. */
  readonly fuzz?: FuzzResult
}

const MARKS: Readonly<Record<Verdict, string>> = {
  right: 'ok',
  differs: 'differs',
  affected: 'affected',
  wrong: 'WRONG',
}

/** Whether nothing was seen that nobody has written down. */
export function sound({ findings, fuzz }: Examined): boolean {
  const same = fuzz === undefined || fuzz.differences.length === 0
  return same && findings.every(({ verdict }) => verdict !== 'wrong')
}

export function report(kernels: readonly Examined[]): string {
  const [first] = kernels
  const about = Math.max(...first.findings.map((finding) => finding.about.length))
  const columns = kernels.map(({ kernel }) => kernel.padEnd(WIDTH)).join(' ')
  const rows = first.findings.map(({ about: fact, name }, i) => {
    const marks = kernels.map(({ findings }) => MARKS[findings[i].verdict].padEnd(WIDTH))
    return `${marks.join(' ')} ${fact.padEnd(about)}  ${name}`
  })
  const lines = [columns, ...rows, '', ...kernels.flatMap(notes)]
  lines.push(...kernels.flatMap(sequences), ...kernels.flatMap(found))
  return lines.map((line) => line.trimEnd()).join('\n')
}

const WIDTH = 16

/** What is not as usual, with what was seen. */
function notes({ kernel, findings }: Examined): string[] {
  const unusual = findings.filter(({ verdict }) => verdict !== 'right')
  const lines = unusual.map(({ verdict, about, name, seen, where }) => {
    const documented = where === undefined ? 'documented nowhere' : `as ${where}`
    return `  ${MARKS[verdict]}: ${about}, ${name}\n    seen: ${seen.replaceAll('\n', '\n          ')}\n    ${documented}`
  })
  const counts = (['right', 'differs', 'affected', 'wrong'] as const).map((verdict) => {
    const count = findings.filter((finding) => finding.verdict === verdict).length
    return `${count} ${MARKS[verdict]}`
  })
  return [`${kernel}: ${counts.join(', ')}`, ...lines, '']
}

/** How many sequences were done, of what, and where kernel and fake differed. */
function sequences({ kernel, fuzz }: Examined): string[] {
  if (fuzz === undefined) return []
  const { seed, sequences: count, steps, kinds, differences, unsteady } = fuzz
  const counted = Object.entries(kinds).sort(([, a], [, b]) => b - a)
  const lines = differences.flatMap(({ sequence, text, other }) => [
    `  sequence ${sequence}: the fake says "${other}" at the end of`,
    ...text
      .trimEnd()
      .split('\n')
      .map((line) => `    ${line}`),
  ])
  return [
    `${kernel}: ${count} random sequences from seed ${seed}, ${steps} steps, ` +
      `${differences.length} differ from the fake, ${unsteady} did once and not again`,
    `  ${counted.map(([kind, times]) => `${kind} ${times}`).join(', ')}`,
    ...lines,
    '',
  ]
}

function found({ kernel, detected }: Examined): string[] {
  const width = Math.max(...detected.map(({ what }) => what.length))
  const lines = detected.map(({ what, found, so }) => `  ${what.padEnd(width)}  ${found}: ${so}`)
  return [`${kernel}: found at start, or done so that it need not be known`, ...lines, '']
}

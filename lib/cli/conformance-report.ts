/** What was seen, as a table: a line for each case, a column for each kernel. */
import type { Finding, Verdict } from '../testing/conformance/case'
import type { Detected } from '../testing/conformance/detected'

/** One kernel, examined. */
export interface Examined {
  readonly kernel: string
  readonly findings: readonly Finding[]
  readonly detected: readonly Detected[]
}

const MARKS: Readonly<Record<Verdict, string>> = {
  right: 'ok',
  differs: 'differs',
  affected: 'affected',
  wrong: 'WRONG',
}

/** Whether nothing was seen that nobody has written down. */
export function sound({ findings }: Examined): boolean {
  return findings.every(({ verdict }) => verdict !== 'wrong')
}

export function report(kernels: readonly Examined[]): string {
  const [first] = kernels
  const about = Math.max(...first.findings.map((finding) => finding.about.length))
  const columns = kernels.map(({ kernel }) => kernel.padEnd(WIDTH)).join(' ')
  const rows = first.findings.map(({ about: fact, name }, i) => {
    const marks = kernels.map(({ findings }) => MARKS[findings[i].verdict].padEnd(WIDTH))
    return `${marks.join(' ')} ${fact.padEnd(about)}  ${name}`
  })
  const lines = [columns, ...rows, '', ...kernels.flatMap(notes), ...kernels.flatMap(found)]
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

function found({ kernel, detected }: Examined): string[] {
  const width = Math.max(...detected.map(({ what }) => what.length))
  const lines = detected.map(({ what, found, so }) => `  ${what.padEnd(width)}  ${found}: ${so}`)
  return [`${kernel}: found at start, or done so that it need not be known`, ...lines, '']
}

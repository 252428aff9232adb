/** The bench's results as text for people: Markdown tables, which read well on a terminal too. */
import { SECTIONS } from './figures'
import type { Report, Row, Section } from './figures'

export function table(report: Report): string {
  const sections = (Object.keys(SECTIONS) as Section[]).flatMap((section) => {
    const rows = report.rows.filter((row) => row.section === section)
    return rows.length === 0 ? [] : [sectionText(section, rows)]
  })
  return [environment(report), ...sections, targets(report), missing(report)]
    .filter((text) => text !== '')
    .join('\n\n')
}

/** The page that the bench keeps. */
export function page(report: Report): string {
  const head =
    '# Bench results\n\nWritten by `vhost-iotlb bench`. Rates under an emulated processor'
  return `${head} are ratios within this page; counts are exact.\n\n${table(report)}\n`
}

function environment({ env }: Report): string {
  return Object.entries(env)
    .map(([name, value]) => `- ${name}: ${value}`)
    .join('\n')
}

function sectionText(section: Section, rows: readonly Row[]): string {
  const { title, against } = SECTIONS[section]
  const names = [...new Set(rows.flatMap(({ figures }) => Object.keys(figures)))]
  const compared = rows.some(({ ratio }) => ratio !== undefined)
  const head = ['', ...names, ...(compared ? [`ratio to ${against}`] : [])]
  const body = rows.map((row) => [
    row.note === undefined ? row.name : `${row.name} (${row.note})`,
    ...names.map((name) => (name in row.figures ? short(row.figures[name]) : '')),
    ...(compared ? [row.ratio === undefined ? '' : row.ratio.toFixed(2)] : []),
  ])
  return `## ${title}\n\n${grid([head, ...body])}`
}

function targets({ targets }: Report): string {
  if (targets.length === 0) return ''
  const body = targets.map(({ name, value, unit, target, met }) => [
    name,
    short(value),
    unit,
    target,
    met ? 'met' : 'not met',
  ])
  return `## Targets\n\n${grid([['', 'value', 'unit', 'target', ''], ...body])}`
}

function missing({ notMeasured }: Report): string {
  if (notMeasured.length === 0) return ''
  return `## Not measured\n\n${notMeasured.map(({ name, reason }) => `- ${name}: ${reason}`).join('\n')}`
}

/** Counts as they are, the rest with three digits that matter. */
export function short(value: number): string {
  if (Number.isInteger(value)) return String(value)
  if (Math.abs(value) >= 1000) return String(Math.round(value))
  return String(Number(value.toPrecision(3)))
}

function grid(rows: readonly (readonly string[])[]): string {
  const widths = rows[0].map((_, at) => Math.max(3, ...rows.map((row) => row[at].length)))
  const text = (row: readonly string[]): string => {
    const cells = row.map((cell, at) =>
      at === 0 ? cell.padEnd(widths[at]) : cell.padStart(widths[at]),
    )
    return `| ${cells.join(' | ')} |`
  }
  const rule = widths.map((width, at) =>
    at === 0 ? '-'.repeat(width) : `${'-'.repeat(width - 1)}:`,
  )
  return [text(rows[0]), text(rule), ...rows.slice(1).map(text)].join('\n')
}

/**
 * The command `bench`: compiles what is in C, measures here or in a nested VM, says and keeps it.
 */
import { execFileSync } from 'node:child_process'
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { cpus, release, tmpdir } from 'node:os'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { messageOf } from '../errors'
import type { KernelLine } from '../vm/kernel'
import { runInVm } from '../vm/run-in-vm'
import { compared, evaluated } from './bench/figures'
import type { Report } from './bench/figures'
import type { Measured } from './bench/contestant'
import { page, table } from './bench/report'
import { benchAlone, benchWithVhost } from './bench/run'
import type { BenchPlan } from './bench/run'
import type { WHERES } from './choices'
import { hostCan } from './demo-command'
import { printProgress } from './progress'

export interface BenchOptions {
  readonly where: (typeof WHERES)[number]
  readonly kernel: KernelLine
  readonly json: boolean
  readonly quick: boolean
  readonly only?: readonly string[]
  /** Keeps the results in the repository's `vm-tests/bench`, where that is. */
  readonly keep: boolean
  /** For the part that runs in the VM: prints what it measured, and no more. */
  readonly part?: boolean
  readonly programs?: string
}

const SOURCES = join(__dirname, '../../vm-tests/bench')
const PROGRAMS = ['tap-loop', 'walk', 'miss-loop'] as const
/** On a loaded machine all takes longer; it is there for what hangs. */
const LIMIT_SECONDS = 3600

/** @returns the exit status: 0 when it was measured, whether targets are met or not */
export async function bench(options: BenchOptions): Promise<number> {
  if (options.part) {
    const plan = planOf(options, options.programs)
    console.log(JSON.stringify(await benchWithVhost(plan, console.error)))
    return 0
  }
  const directory = mkdtempSync(join(tmpdir(), 'vhost-iotlb-bench-'))
  try {
    const programs = compiled(directory)
    const report = await measured(options, planOf(options, programs))
    console.log(options.json ? JSON.stringify(report) : table(report))
    if (options.keep) await keep(report)
    return 0
  } finally {
    rmSync(directory, { recursive: true, force: true })
  }
}

async function measured(options: BenchOptions, plan: BenchPlan): Promise<Report> {
  const inside = options.where === 'vm' || (options.where === 'auto' && !hostCan())
  const started = Date.now()
  const first = inside
    ? await inVm(options, plan)
    : { ...(await benchWithVhost(plan, console.error)), env: environment() }
  const alone = await benchAlone(plan, console.error)
  const rows = compared([...first.rows, ...alone.rows])
  const env = {
    date: new Date(started).toISOString().slice(0, 10),
    ...first.env,
    seconds: Math.round((Date.now() - started) / 1000),
    ...(plan.quick ? { effort: 'quick' } : {}),
  }
  return { env, rows, ...evaluated(rows, [...first.missing, ...alone.missing], plan.only) }
}

function planOf({ quick, only = [] }: BenchOptions, programs: string | undefined): BenchPlan {
  return { quick, only, programs }
}

function environment(): Record<string, string | number> {
  const all = cpus()
  const model = all.length === 0 ? 'unknown' : all[0].model
  return { kernel: release(), node: process.version, processor: model, processors: all.length }
}

/** undefined where there are no sources, as in an installed package, or no compiler. */
function compiled(directory: string): string | undefined {
  if (!existsSync(SOURCES)) return undefined
  try {
    for (const name of PROGRAMS) {
      execFileSync('gcc', ['-O2', '-o', join(directory, name), join(SOURCES, `${name}.c`)])
    }
    return directory
  } catch (error) {
    console.error(`bench: ${messageOf(error)}`)
    return undefined
  }
}

async function inVm(
  options: BenchOptions,
  { programs }: BenchPlan,
): Promise<Measured & { readonly env: Report['env'] }> {
  const flags = [
    ...['--where', 'host', '--part', ...(options.quick ? ['--quick'] : [])],
    ...(programs === undefined ? [] : ['--programs', programs]),
    ...(options.only === undefined ? [] : ['--only', options.only.join(',')]),
  ]
  let accelerator = 'unknown'
  const { status, stdout, release } = await runInVm({
    command: [process.execPath, join(__dirname, 'main.js'), 'bench', ...flags],
    projectDirectory: process.cwd(),
    kernel: options.kernel,
    modules: ['pktgen'],
    timeoutSeconds: LIMIT_SECONDS,
    stdout: 'capture',
    onProgress: (progress) => {
      accelerator = /\((kvm|tcg),/.exec(progress.text)?.[1] ?? accelerator
      printProgress(progress)
    },
  })
  if (status !== 0) throw new Error(`the part in the VM ended with status ${status}`)
  const env = { ...environment(), kernel: release, machine: `nested VM, ${accelerator}` }
  return { ...(JSON.parse(stdout) as Measured), env }
}

/** A page, and a drawing where the drawing library is installed. */
async function keep(report: Report): Promise<void> {
  if (!existsSync(SOURCES))
    throw new Error('--keep needs the repository: there is no vm-tests/bench')
  writeFileSync(join(SOURCES, 'RESULTS.md'), page(report))
  const plot = pathToFileURL(join(SOURCES, 'plot.mjs')).href
  const { draw } = (await import(plot)) as {
    readonly draw: (report: Report) => Promise<string | undefined>
  }
  const svg = await draw(report)
  if (svg === undefined) console.error('bench: no plot: npm install vega vega-lite')
  else writeFileSync(join(SOURCES, 'results.svg'), svg)
}

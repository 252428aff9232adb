/** The command `conformance`: what the kernel's vhost-net does, case by case, kernel by kernel. */
import { existsSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { CASES } from '../testing/conformance/cases'
import { examined } from '../testing/conformance/case'
import { detected } from '../testing/conformance/detected'
import { fuzz } from '../testing/conformance/fuzz/fuzz'
import type { FuzzResult } from '../testing/conformance/fuzz/fuzz'
import { KernelDevice, kernelName } from '../testing/conformance/kernel-device'
import { FakeVhostNet } from '../testing/fake-vhost-net'
import type { KernelLine } from '../vm/kernel'
import { runInVm } from '../vm/run-in-vm'
import type { KERNELS, WHERES } from './choices'
import { report, sound } from './conformance-report'
import type { Examined } from './conformance-report'
import { hostCan } from './demo-command'
import { printProgress } from './progress'

export interface ConformanceOptions {
  readonly where: (typeof WHERES)[number]
  readonly kernel: (typeof KERNELS)[number]
  readonly json: boolean
  /** Random sequences on top of the cases; 0 for none. */
  readonly fuzz: number
  readonly seed: number
  /** For the part that runs in the VM: prints what it saw, and no more. */
  readonly part?: boolean
}

/** Where sequences that differ are kept, in a checkout. */
const CORPUS = join(__dirname, '../../test/corpus/vhost-net')
/** For what hangs; and for each sequence beside it. */
const LIMIT_SECONDS = 900
const SEQUENCE_SECONDS = 2

/** @returns the exit status: 0 when nothing was seen that nobody has written down */
export async function conformance(options: ConformanceOptions): Promise<number> {
  if (options.part) {
    console.log(JSON.stringify(onHost(options)))
    return 0
  }
  const inside = options.where === 'vm' || (options.where === 'auto' && !hostCan())
  const lines = options.kernel === 'both' ? (['6.12', '6.1'] as const) : [options.kernel]
  const kernels: Examined[] = []
  if (inside) for (const line of lines) kernels.push(await inVm(line, options))
  else kernels.push(onHost(options))
  for (const kernel of kernels) keep(kernel)
  console.log(options.json ? JSON.stringify(kernels) : report(kernels))
  return kernels.every(sound) ? 0 : 1
}

/** @throws SystemError without vhost-net, taps or the capabilities for them */
function onHost(options: ConformanceOptions): Examined {
  // First, so that a host without vhost-net is told so before any case is.
  const asked = detected()
  const findings = CASES.map((one, i) => {
    const finding = examined(one, () => new KernelDevice())
    console.error(`${i + 1}/${CASES.length} ${finding.verdict}: ${one.about}, ${one.name}`)
    return finding
  })
  const seen = { kernel: kernelName(), findings, detected: asked }
  return options.fuzz === 0 ? seen : { ...seen, fuzz: fuzzed(options) }
}

/** The kernel against the fake. */
function fuzzed({ seed, fuzz: sequences }: ConformanceOptions): FuzzResult {
  using kernel = new KernelDevice()
  using fake = new FakeVhostNet({ limit: kernel.limit })
  return fuzz(kernel, fake, seed, sequences, console.error)
}

async function inVm(kernel: KernelLine, { fuzz, seed }: ConformanceOptions): Promise<Examined> {
  const flags = ['--part', '--fuzz', String(fuzz), '--seed', String(seed)]
  const { status, stdout } = await runInVm({
    command: [process.execPath, join(__dirname, 'main.js'), 'conformance', ...flags],
    projectDirectory: process.cwd(),
    kernel,
    timeoutSeconds: LIMIT_SECONDS + fuzz * SEQUENCE_SECONDS,
    stdout: 'capture',
    onProgress: printProgress,
  })
  if (status !== 0) throw new Error(`the part in the VM ended with status ${status}`)
  return JSON.parse(stdout) as Examined
}

/** Each difference as a file of the corpus, for the tests to repeat. */
function keep({ kernel, fuzz: result }: Examined): void {
  if (result === undefined || !existsSync(CORPUS)) return
  for (const { sequence, text } of result.differences) {
    const name = `${kernel.toLowerCase().replace(' ', '-')}-seed-${result.seed}-${sequence}.txt`
    writeFileSync(
      join(CORPUS, name),
      `# ${kernel}, seed ${result.seed}, sequence ${sequence}\n${text}`,
    )
    console.error(`kept: test/corpus/vhost-net/${name}`)
  }
}

/** The command `conformance`: what the kernel's vhost-net does, case by case, kernel by kernel. */
import { join } from 'node:path'
import { CASES } from '../testing/conformance/cases'
import { examined } from '../testing/conformance/case'
import { detected } from '../testing/conformance/detected'
import { KernelDevice } from '../testing/conformance/kernel-device'
import type { KernelLine } from '../vm/kernel'
import { runInVm } from '../vm/run-in-vm'
import { report, sound } from './conformance-report'
import type { Examined } from './conformance-report'
import { hostCan } from './demo-command'
import type { WHERES } from './demo-command'

export const KERNELS = ['6.12', '6.1', 'both'] as const

export interface ConformanceOptions {
  readonly where: (typeof WHERES)[number]
  readonly kernel: (typeof KERNELS)[number]
  readonly json: boolean
  /** For the part that runs in the VM: prints what it saw, and no more. */
  readonly part?: boolean
}

/** @returns the exit status: 0 when nothing was seen that nobody has written down */
export async function conformance(options: ConformanceOptions): Promise<number> {
  if (options.part) {
    console.log(JSON.stringify(onHost()))
    return 0
  }
  const inside = options.where === 'vm' || (options.where === 'auto' && !hostCan())
  const lines = options.kernel === 'both' ? (['6.12', '6.1'] as const) : [options.kernel]
  const kernels: Examined[] = []
  if (inside) for (const line of lines) kernels.push(await inVm(line))
  else kernels.push(onHost())
  console.log(options.json ? JSON.stringify(kernels) : report(kernels))
  return kernels.every(sound) ? 0 : 1
}

/** @throws SystemError without vhost-net, taps or the capabilities for them */
function onHost(): Examined {
  let kernel = ''
  const findings = CASES.map((one, i) => {
    const finding = examined(one, () => {
      const device = new KernelDevice()
      kernel = device.name
      return device
    })
    console.error(`${i + 1}/${CASES.length} ${finding.verdict}: ${one.about}, ${one.name}`)
    return finding
  })
  return { kernel, findings, detected: detected() }
}

async function inVm(kernel: KernelLine): Promise<Examined> {
  const { status, stdout } = await runInVm({
    command: [process.execPath, join(__dirname, 'main.js'), 'conformance', '--part'],
    projectDirectory: process.cwd(),
    kernel,
    timeoutSeconds: LIMIT_SECONDS,
    stdout: 'capture',
    onProgress: ({ text, elapsedMs }) => {
      console.error(`${(elapsedMs / 1000).toFixed(1).padStart(5)} s  ${text}`)
    },
  })
  if (status !== 0) throw new Error(`the part in the VM ended with status ${status}`)
  return JSON.parse(stdout) as Examined
}

/** For what hangs. */
const LIMIT_SECONDS = 900

/** The command `guest`: the experiment with a stock guest, in the nested VM or on this host. */
import { accessSync, constants } from 'node:fs'
import { join } from 'node:path'
import { defaultCacheDirectory } from '../vm/cache'
import { runInVm } from '../vm/run-in-vm'
import type { KernelLine } from '../vm/kernel'
import { testpmd } from '../vm/testpmd'
import type { GuestMode } from '../vmm/debian-guest'
import type { GUEST_PAGES, LOOK_AHEADS, PEERS, WHERES } from './choices'
import { hostCan } from './demo-command'
import { dpdkExperiment } from './guest/dpdk'
import { guestExperiment } from './guest/experiment'
import { printProgress } from './progress'

export interface GuestOptions {
  readonly where: (typeof WHERES)[number]
  readonly mode: GuestMode
  readonly packets: number
  readonly lookAhead: (typeof LOOK_AHEADS)[number]
  readonly ats: boolean
  readonly exits?: true
  readonly kernel: KernelLine
  /** DPDK in the guest, with memory of such pages, instead of the kernel's own driver. */
  readonly dpdk?: (typeof GUEST_PAGES)[number]
  /** What then runs the same guest, for comparison. */
  readonly beside?: (typeof PEERS)[number]
  readonly json: boolean
}

const VM_SECONDS = 1800
/** The guest with DPDK has up to 4 GiB of it. */
const VM_MEMORY = { kernel: 2048, dpdk: 6144 } as const

/** @returns the exit status: 0 only if nothing was lost */
export async function guest(options: GuestOptions): Promise<number> {
  const inside = options.where === 'vm' || (options.where === 'auto' && !hostHasKvm())
  return inside ? inVm(options) : onHost(options)
}

async function onHost(options: GuestOptions): Promise<number> {
  const { mode, packets, lookAhead, ats, exits, kernel: line, dpdk: pages, beside, json } = options
  const common = { line, packets, lookAhead, ats, print: json ? console.error : console.log }
  const own = { ...(exits && { shareRegisters: false }), ...(beside && { beside }) }
  const result = await (pages === undefined
    ? guestExperiment({ ...common, mode, ...own })
    : dpdkExperiment({ ...common, pages }))
  if (json) console.log(JSON.stringify(result))
  return result.ok ? 0 : 1
}

async function inVm(options: GuestOptions): Promise<number> {
  const { mode, packets, lookAhead, ats, exits, kernel, dpdk, beside, json } = options
  // There, nothing can be fetched.
  if (dpdk !== undefined) await testpmd(defaultCacheDirectory())
  const flags = [
    ...['--where', 'host', '--kernel', kernel, '--mode', mode, '--packets', String(packets)],
    ...['--look-ahead', lookAhead, ...(ats ? [] : ['--no-ats']), ...(json ? ['--json'] : [])],
    ...(exits ? ['--exits'] : []),
    ...(dpdk === undefined ? [] : ['--dpdk', dpdk]),
    ...(beside === undefined ? [] : ['--beside', beside]),
  ]
  const { status } = await runInVm({
    command: [process.execPath, join(__dirname, 'main.js'), 'guest', ...flags],
    projectDirectory: process.cwd(),
    kernel,
    nested: true,
    memoryMiB: dpdk === undefined ? VM_MEMORY.kernel : VM_MEMORY.dpdk,
    modules: ['pktgen'],
    timeoutSeconds: VM_SECONDS,
    onProgress: printProgress,
  })
  return status
}

function hostHasKvm(): boolean {
  try {
    accessSync('/dev/kvm', constants.R_OK | constants.W_OK)
    return hostCan()
  } catch {
    return false
  }
}

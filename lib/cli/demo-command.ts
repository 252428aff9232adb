/** Where the demonstration runs, and what of it goes to which stream. */
import { accessSync, constants } from 'node:fs'
import { join } from 'node:path'
import { runInVm } from '../vm/run-in-vm'
import type { KernelLine } from '../vm/kernel'
import type { WHERES } from './choices'
import { demonstrate } from './demo'
import type { DemoResult } from './demo'
import { progressLine } from './progress'
import { beginRecording, recordFlag } from './record'

export interface DemoOptions {
  readonly where: (typeof WHERES)[number]
  readonly mapping: DemoResult['mapping']
  readonly kernel: KernelLine
  readonly json: boolean
  /** Where a trace of the run goes. */
  readonly record?: string
}

/** @returns the exit status: 0 only if every frame arrived */
export async function demo(options: DemoOptions): Promise<number> {
  const inside = options.where === 'vm' || (options.where === 'auto' && !hostCan())
  return inside ? inVm(options) : onHost(options)
}

async function onHost({ mapping, json, record }: DemoOptions): Promise<number> {
  using recording = beginRecording(record, { command: 'demo', mapping })
  // Progress is for people; with --json the object alone is on standard output.
  const print = (line: string): void => {
    if (json) console.error(line)
    else console.log(line)
  }
  const result = await demonstrate(mapping, print, recording?.recorder)
  if (json) console.log(JSON.stringify(result))
  return result.ok ? 0 : 1
}

async function inVm({ mapping, kernel, json, record }: DemoOptions): Promise<number> {
  const flags = [
    '--where',
    'host',
    '--mapping',
    mapping,
    ...(json ? ['--json'] : []),
    ...recordFlag(record),
  ]
  const say = json ? console.error : console.log
  const { status } = await runInVm({
    command: [process.execPath, join(__dirname, 'main.js'), 'demo', ...flags],
    projectDirectory: process.cwd(),
    kernel,
    timeoutSeconds: 120,
    onProgress: (progress) => {
      say(progressLine(progress))
    },
  })
  return status
}

/** Root, and the nodes of vhost-net and of taps. */
export function hostCan(): boolean {
  if (process.getuid?.() !== 0) return false
  try {
    for (const path of ['/dev/vhost-net', '/dev/net/tun']) {
      accessSync(path, constants.R_OK | constants.W_OK)
    }
    return true
  } catch {
    return false
  }
}

/** The option `--record` of commands that run a device: a trace file, and who writes it. */
import { isAbsolute, relative, resolve } from 'node:path'
import { release } from 'node:os'
import { traceFile } from '../trace/codec'
import { Recorder } from '../trace/recorder'

/** Of each frame that is recorded; enough for every header. */
export const FRAME_BYTES = 256

export class Recording implements Disposable {
  readonly recorder: Recorder
  readonly #file: ReturnType<typeof traceFile>

  constructor(path: string, about: Readonly<Record<string, string | number>>) {
    this.#file = traceFile(path, { about: { ...about, kernel: release(), node: process.version } })
    this.recorder = new Recorder(this.#file.sink)
  }

  [Symbol.dispose](): void {
    this.#file.close()
    console.error(`${this.#file.events} events recorded`)
  }
}

export function beginRecording(
  path: string | undefined,
  about: Readonly<Record<string, string | number | undefined>>,
): Recording | undefined {
  if (path === undefined) return undefined
  const known = Object.entries(about).filter((entry) => entry[1] !== undefined)
  return new Recording(path, Object.fromEntries(known) as Record<string, string | number>)
}

/**
 * For the same command in a VM, which sees the current directory and can't write elsewhere.
 * @throws RangeError for a path outside of it
 */
export function recordFlag(path: string | undefined): readonly string[] {
  if (path === undefined) return []
  const below = relative(process.cwd(), resolve(path))
  if (below.startsWith('..') || isAbsolute(below)) {
    throw new RangeError(`a VM writes below the current directory only, so not to ${path}`)
  }
  return ['--record', below]
}

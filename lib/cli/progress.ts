/** What commands say while the nested VM comes up. */
import type { VmProgress } from '../vm/run-in-vm'

/** One line: the seconds since the beginning, and what has come. */
export function progressLine({ text, elapsedMs }: VmProgress): string {
  return `${(elapsedMs / 1000).toFixed(1).padStart(5)} s  ${text}`
}

/** To standard error: standard output is for results. */
export function printProgress(progress: VmProgress): void {
  console.error(progressLine(progress))
}

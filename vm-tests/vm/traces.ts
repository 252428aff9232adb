/**
 * Finds what a VM may leave behind on the host: every process that was started below one with a mark
 * in its environment carries the mark too.
 */
import { readdirSync, readFileSync } from 'node:fs'

/** Names of the living processes, other than this one, with `mark` in their environment. */
export function processesWith(mark: string): string[] {
  return readdirSync('/proc').flatMap((id) => {
    if (!/^\d+$/.test(id) || Number(id) === process.pid) return []
    try {
      if (!readFileSync(`/proc/${id}/environ`, 'latin1').includes(mark)) return []
      const [, name, state] = /\((.*)\) (.)/.exec(readFileSync(`/proc/${id}/stat`, 'latin1'))!
      return state === 'Z' ? [] : [name]
    } catch {
      // It ended between two looks.
      return []
    }
  })
}

/** Waits until `condition` holds, and says whether it did within that time. */
export async function within(milliseconds: number, condition: () => boolean): Promise<boolean> {
  const end = Date.now() + milliseconds
  while (!condition()) {
    if (Date.now() > end) return false
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
  return true
}

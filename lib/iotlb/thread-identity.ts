/**
 * Whether a thread of this process has ended, said for certain and without its event loop's help:
 * what `turnstile.ts` asks about who holds it.
 */
import { readFileSync, readlinkSync } from 'node:fs'

/** A thread of this process, so that no later one is taken for it. */
export interface ThreadIdentity {
  readonly thread: number
  /** When it began, in ticks of the system's clock, modulo 2^31. */
  readonly born: number
}

/** Field 22 of proc_pid_stat(5), counted behind the name, which is field 2. */
const STARTTIME = 22 - 3

/** The calling thread. @throws Error without /proc */
export function currentThread(): ThreadIdentity {
  const thread = Number(readlinkSync('/proc/thread-self').split('/')[2])
  const born = bornOf(thread)
  if (born === undefined) throw new Error('/proc does not show this thread')
  return { thread, born }
}

/** Whether a thread of this process has ended: proof, no guess. False where it can't be told. */
export function hasEnded({ thread, born }: ThreadIdentity): boolean {
  try {
    return bornOf(thread) !== born
  } catch {
    return false
  }
}

function bornOf(thread: number): number | undefined {
  let stat: string
  try {
    stat = readFileSync(`/proc/self/task/${thread}/stat`, 'latin1')
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    if (code === 'ENOENT' || code === 'ESRCH') return undefined
    throw error
  }
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
  return Number(BigInt(fields[STARTTIME]) & 0x7fffffffn)
}

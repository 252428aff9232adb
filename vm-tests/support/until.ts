import { setTimeout as sleep } from 'node:timers/promises'

/** Waits for what somebody else does in his own time. @throws Error if it does not happen */
export async function until(condition: () => boolean, within = 10_000): Promise<void> {
  const end = performance.now() + within
  while (!condition()) {
    if (performance.now() > end) throw new Error(`not within ${within} ms: ${String(condition)}`)
    await sleep(1)
  }
}

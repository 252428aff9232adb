/** The command `top`: asks a process for samples, and shows them once a second. */
import { readdirSync } from 'node:fs'
import { connect } from 'node:net'
import type { Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import { rates } from '../monitor/monitor'
import type { MonitorSample } from '../monitor/monitor'
import { plainLines, screen } from '../monitor/screen'
import { SOCKET_NAME } from '../monitor/serve'

export interface TopOptions {
  /** Seconds between samples. */
  readonly interval: number
  /** Samples to show; without it until the process ends or somebody interrupts. */
  readonly count?: number
  readonly json: boolean
}

const CLEAR = '\x1b[H\x1b[J'
/** What a socket says whose other end has gone. */
const ENDED: readonly (string | undefined)[] = ['EPIPE', 'ECONNRESET']

/** @returns the exit status: 0 when the process that was watched ends */
export async function top(from: string | undefined, options: TopOptions): Promise<number> {
  const samples = new Samples(connect(socketPath(from)))
  try {
    let before = await samples.next()
    const stop = new AbortController()
    process.once('SIGINT', () => {
      stop.abort()
    })
    for (let shown = 0; before !== undefined && shown < (options.count ?? Infinity); shown++) {
      const waited = await sleep(options.interval * 1000, true, { signal: stop.signal }).catch(
        () => false,
      )
      const now: MonitorSample | undefined = waited ? await samples.next() : undefined
      if (now !== undefined) show(before, now, options.json)
      before = now
    }
    return 0
  } finally {
    samples.close()
  }
}

/** A screen where there is a terminal; lines elsewhere. */
export function show(before: MonitorSample, now: MonitorSample, json: boolean): void {
  if (json) {
    console.log(JSON.stringify({ ...now, rates: rates(before, now) }))
  } else if (process.stdout.isTTY) {
    process.stdout.write(`${CLEAR}${screen(before, now).join('\n')}\n`)
  } else {
    for (const line of plainLines(before, now)) console.log(line)
  }
}

/** @throws Error where there is no such socket, or several */
function socketPath(from: string | undefined): string {
  if (from !== undefined) {
    return /^\d+$/.test(from) ? join(tmpdir(), `vhost-iotlb-${from}.sock`) : from
  }
  const found = readdirSync(tmpdir()).filter((name) => SOCKET_NAME.test(name))
  if (found.length === 1) return join(tmpdir(), found[0])
  const pids = found.map((name) => SOCKET_NAME.exec(name)?.at(1)).join(', ')
  throw new Error(
    found.length === 0
      ? 'no process serves its counters: call serveStats(nic), or run l2fwd --stats'
      : `which one? vhost-iotlb top with one of ${pids}`,
  )
}

/** Samples of a socket, one for each question. */
class Samples {
  readonly #socket: Socket
  readonly #lines: AsyncIterator<string>
  readonly #failed: Promise<never>
  #answered = false

  constructor(socket: Socket) {
    this.#socket = socket
    this.#failed = new Promise<never>((_, reject) => socket.on('error', reject))
    // It may fail while nobody waits for an answer.
    this.#failed.catch(() => undefined)
    this.#lines = createInterface({ input: socket })[Symbol.asyncIterator]()
  }

  /** undefined once the process has ended, which a write may be the first to hear of. */
  async next(): Promise<MonitorSample | undefined> {
    if (!this.#socket.destroyed) this.#socket.write('sample\n')
    try {
      const line = await Promise.race([this.#lines.next(), this.#failed])
      if (line.done === true) return undefined
      this.#answered = true
      return JSON.parse(line.value) as MonitorSample
    } catch (error) {
      if (this.#answered && ENDED.includes((error as NodeJS.ErrnoException).code)) return undefined
      throw error
    }
  }

  close(): void {
    this.#socket.destroy()
  }
}

/** A program of the project that runs until it is interrupted, as its user would run it. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'

export class Running implements AsyncDisposable {
  said = ''
  readonly #child
  readonly #ended
  #listeners: (() => void)[] = []

  private constructor(script: string, args: readonly string[]) {
    this.#child = spawn(process.execPath, [script, ...args])
    for (const stream of [this.#child.stdout, this.#child.stderr]) {
      stream.on('data', (chunk: Buffer) => {
        this.said += chunk.toString()
        this.#tell()
      })
    }
    this.#ended = once(this.#child, 'close')
    void this.#ended.then(() => {
      this.#tell()
    })
  }

  /** Resolves after its first line, which says that it works. */
  static async start(script: string, ...args: readonly string[]): Promise<Running> {
    const running = new Running(script, args)
    await running.says(/\n/)
    return running
  }

  /** Resolves when it has said so. @throws Error with what it said where it ends before */
  async says(what: RegExp): Promise<RegExpExecArray> {
    for (;;) {
      const found = what.exec(this.said)
      if (found !== null) return found
      if (this.#child.exitCode !== null) throw new Error(`it ended, and said:\n${this.said}`)
      await new Promise<void>((resolve) => this.#listeners.push(resolve))
    }
  }

  /** @returns all that it said */
  async interrupt(): Promise<string> {
    this.#child.kill('SIGINT')
    await this.#ended
    return this.said
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#child.kill('SIGKILL')
    await this.#ended
  }

  #tell(): void {
    for (const listener of this.#listeners.splice(0)) listener()
  }
}

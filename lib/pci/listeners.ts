/** Who wants to hear of something. Calls are synchronous, in the order of registration. */
export class Listeners<Arguments extends readonly unknown[]> {
  readonly #entries = new Set<{ readonly listener: (...values: Arguments) => void }>()

  /** The same function may be added twice; disposing ends its own registration alone. */
  add(listener: (...values: Arguments) => void): Disposable {
    const entry = { listener }
    this.#entries.add(entry)
    return { [Symbol.dispose]: () => void this.#entries.delete(entry) }
  }

  call(...values: Arguments): void {
    for (const { listener } of this.#entries) listener(...values)
  }
}

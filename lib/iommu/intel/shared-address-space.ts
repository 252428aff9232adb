/**
 * A requester's address space as another thread of the process sees it.
 *
 * The tables are in guest memory, which both threads have; what they hang from (the root, its mode,
 * the two switches) is in a few words of shared memory. Nothing else is kept here: no fault is
 * recorded, and nobody is notified, because registers and notifiers are with the unit, in the
 * thread that owns it. The words are written and read under the lock of whoever shares them.
 */
import type { Access, AccessBits, Iova } from '../../address'
import { PageTranslation, translateByPage } from '../../memory/address-space'
import type {
  AddressSpace,
  AddressSpaceState,
  Fault,
  SharedAddressSpaceMaker,
  Translation,
} from '../../memory/address-space'
import type { TableMemory } from '../table-memory'
import type { Capabilities } from './capabilities'
import { faultReason } from './faults'
import { Translator } from './translator'

/** What is in which shared word. */
export const SHARED = { enabled: 0, rootPage: 1, mode: 2, ats: 3, generation: 4 } as const
export const SHARED_WORDS = 5

/** What the other thread starts with; `postMessage` can carry it. */
export interface SharedIntelState {
  readonly source: number
  readonly capabilities: Capabilities
  /** Over a SharedArrayBuffer. */
  readonly words: Float64Array
}

/** A refused request, for the thread that has the fault recording registers. */
export interface IntelRefusal {
  readonly page: number
  readonly code: number
  readonly wanted: AccessBits
  readonly faultDisabled: boolean
  readonly reachedTables: boolean
}

export class SharedIntelAddressSpace implements AddressSpace {
  readonly #translator: Translator
  readonly #source: number
  readonly #words: Float64Array
  readonly #refused: (refusal: IntelRefusal) => void
  readonly #scratch = new PageTranslation()

  constructor(
    state: SharedIntelState,
    memory: TableMemory,
    refused: (refusal: IntelRefusal) => void,
  ) {
    this.#translator = new Translator(memory, state.capabilities)
    this.#source = state.source
    this.#words = state.words
    this.#refused = refused
  }

  get requester(): number {
    return this.#source
  }

  get state(): AddressSpaceState {
    return this.#current().state(this.#source)
  }

  get generation(): number {
    return this.#words[SHARED.generation]
  }

  /** @throws TypeError for an access that is none of the four words */
  translate(at: Iova, wanted: Access): Translation | Fault {
    return translateByPage(this, this.#scratch, at, wanted, faultReason)
  }

  translatePage(page: number, wanted: AccessBits, out: PageTranslation): boolean {
    const translator = this.#current()
    const ats = this.#words[SHARED.ats] !== 0
    const code = translator.translate(this.#source, ats, page, wanted, out)
    out.reason = code
    if (code === 0) return true
    out.firstPage = page
    out.lastPage = page
    out.gpaPage = 0
    out.access = 0
    if (wanted !== 0 && !out.quiet) {
      const { faultDisabled, reachedTables } = translator
      this.#refused({ page, code, wanted, faultDisabled, reachedTables })
    }
    return false
  }

  /** Nothing ends here by itself: the unit's own thread hears of it. */
  notify(): Disposable {
    return { [Symbol.dispose]: () => undefined }
  }

  #current(): Translator {
    const words = this.#words
    const translator = this.#translator
    translator.enabled = words[SHARED.enabled] !== 0
    translator.rootPage = words[SHARED.rootPage]
    translator.mode = words[SHARED.mode]
    return translator
  }
}

/** For `SharedTranslation`. */
export const openShared: SharedAddressSpaceMaker = (data, memory, refused) =>
  new SharedIntelAddressSpace(data as SharedIntelState, memory, refused)

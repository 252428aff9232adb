/**
 * A request in words: every entry that the unit reads for it, from the root to the leaf or to the
 * entry that refuses. For people who debug a guest's tables; it changes and records nothing.
 *
 * The walk is the unit's own, with a trace: what is said here cannot differ from what is done.
 */
import { accessOf, pageOf } from '../../address'
import type { AccessBits, Iova } from '../../address'
import type { Layout } from '../../bits'
import { PageTranslation } from '../../memory/address-space'
import { requesterName } from '../iommu'
import type { WalkStep } from '../iommu'
import { readWords } from '../table-memory'
import type { TableMemory } from '../table-memory'
import type { Capabilities } from './capabilities'
import { faultReason } from './faults'
import { FIRST_STAGE_ENTRY } from './first-stage'
import {
  PASID_DIRECTORY_ENTRY,
  PASID_ENTRY,
  SCALABLE_CONTEXT_ENTRY,
  SCALABLE_ROOT_ENTRY,
} from './pasid-table'
import { CONTEXT_ENTRY, ROOT_ENTRY } from './root-context'
import { SECOND_STAGE_ENTRY } from './second-stage'
import { Translator } from './translator'
import type { EntryKind } from './walk-trace'

const LAYOUTS: Readonly<Record<EntryKind, Layout<string>>> = {
  'root entry': ROOT_ENTRY,
  'context entry': CONTEXT_ENTRY,
  'scalable-mode root entry': SCALABLE_ROOT_ENTRY,
  'scalable-mode context entry': SCALABLE_CONTEXT_ENTRY,
  'PASID directory entry': PASID_DIRECTORY_ENTRY,
  'PASID table entry': PASID_ENTRY,
  'first-stage entry': FIRST_STAGE_ENTRY,
  'second-stage entry': SECOND_STAGE_ENTRY,
}

/** What SRTP and TE latched. */
export interface LatchedState {
  readonly enabled: boolean
  readonly rootPage: number
  readonly mode: number
}

/** @param wanted none asks for whatever is granted */
export function explainRequest(
  memory: TableMemory,
  has: Capabilities,
  latched: LatchedState,
  source: number,
  ats: boolean,
  at: Iova,
  wanted: AccessBits = 0,
): readonly WalkStep[] {
  const steps: WalkStep[] = []
  const translator = new Translator(memory, has)
  translator.enabled = latched.enabled
  translator.rootPage = latched.rootPage
  translator.mode = latched.mode
  translator.trace = {
    entry: (kind, entryAt, level) => steps.push(describe(memory, kind, entryAt, level)),
  }
  const out = new PageTranslation()
  const code = translator.translate(source, ats, pageOf(at), wanted, out)
  const who = `${requesterName(source)} at ${hex(at)}`
  if (code === 0) {
    steps.push({ what: 'translation', means: `${who}: ${granted(out, latched.enabled)}` })
  } else {
    const { name, words } = faultReason(code)
    const hidden = translator.faultDisabled ? '; not recorded, since FPD is set' : ''
    const number = code < 0x100 ? `fault ${hex(code)}` : 'no fault'
    steps.push({ what: 'refusal', means: `${who}: ${number}, ${name}: ${words}${hidden}` })
  }
  return steps
}

function describe(memory: TableMemory, kind: EntryKind, at: number, level: number): WalkStep {
  const layout = LAYOUTS[kind]
  const what = level === 0 ? kind : kind.replace('entry', `level ${level}`)
  const words = new Uint32Array(layout.words)
  const address = BigInt(at)
  if (!readWords(memory, at, words)) return { what, at: address, means: 'not in guest memory' }
  const value = words.reduceRight((sum, word) => (sum << 32n) | BigInt(word), 0n)
  return { what, at: address, value, means: fieldsOf(layout, words) }
}

/** The fields that are not 0, and reserved bits where one is set. */
function fieldsOf(layout: Layout<string>, words: Uint32Array): string {
  const set = Object.values(layout.field)
    .filter((field) => field.read(words) !== 0)
    .map((field) => `${field.name}=${hex(field.read(words))}`)
  if (words.some((word, i) => (word & layout.reserved[i]) !== 0)) set.push('reserved bits')
  return set.length === 0 ? 'all zero' : set.join(' ')
}

function granted(out: PageTranslation, enabled: boolean): string {
  const [size, from, to] = [out.lastPage - out.firstPage + 1, out.firstPage, out.gpaPage].map(
    (pages) => hex(BigInt(pages) << 12n),
  )
  const how = enabled ? '' : ' (translation is off)'
  return `${accessOf(out.access)} of ${size} bytes from iova ${from} to gpa ${to}${how}`
}

function hex(value: number | bigint): string {
  return `0x${value.toString(16)}`
}

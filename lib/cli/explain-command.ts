/**
 * `vhost-iotlb explain`: one request through the tables of a memory dump, entry by entry.
 *
 * For whoever has a guest whose device faults, and wants to know at which entry and why. What the
 * unit could do is told by its CAP and ECAP, which Linux prints when it boots; the walk is that of
 * the emulated unit itself.
 */
import { accessBits, iova as asIova } from '../address'
import type { Access } from '../address'
import { CAP, ECAP, capabilities } from '../iommu/intel/capabilities'
import type { Capabilities, IntelIommuOptions } from '../iommu/intel/capabilities'
import { explainRequest } from '../iommu/intel/explain'
import { RTADDR } from '../iommu/intel/registers'
import { TABLE_MODE, UNSUPPORTED_MODE } from '../iommu/intel/translator'
import { requesterName, sourceId } from '../iommu/iommu'
import type { WalkStep } from '../iommu/iommu'
import { MemoryDump } from './memory-dump'
import type { DumpPart } from './memory-dump'

export interface ExplainOptions {
  readonly memory: readonly DumpPart[]
  /** RTADDR, with its table mode. */
  readonly root: bigint
  readonly cap?: bigint
  readonly ecap?: bigint
  readonly hostWidth?: number
  readonly access: Access
  readonly ats: boolean
  readonly json: boolean
}

/** Exit status: translated, or refused; 1 is the command's own failure. */
const TRANSLATED = 0
const REFUSED = 2
const WIDTHS = [57, 48, 39] as const
/** CAP.SAGAW has a bit for each of these widths, from bit 1 on (VT-d 5.10 11.4.2). */
const SAGAW_BIT = { 39: 1, 48: 2, 57: 3 } as const

/** @returns the exit status */
export function explain(requester: string, at: bigint, options: ExplainOptions): number {
  const source = sourceId(requester)
  const told = RTADDR.field.TTM.in(options.root)
  const has = unitOf(options, told === TABLE_MODE.scalable)
  const mode = told === TABLE_MODE.scalable && !has.scalable ? UNSUPPORTED_MODE : told
  using memory = new MemoryDump(options.memory)
  const steps = explainRequest(
    memory,
    has,
    { enabled: true, rootPage: RTADDR.field.RTA.in(options.root), mode },
    source,
    options.ats,
    asIova(at),
    accessBits(options.access),
  )
  const granted = steps.at(-1)?.what === 'translation'
  const found = { requester: requesterName(source), iova: hex(at), access: options.access, granted }
  console.log(
    options.json
      ? JSON.stringify({ ...found, steps: steps.map(plain) }, null, 2)
      : steps.map(line).join('\n'),
  )
  return granted ? TRANSLATED : REFUSED
}

/** Where CAP or ECAP is not told, the unit can do all that the emulated one can. */
function unitOf(options: ExplainOptions, scalable: boolean): Capabilities {
  const { cap, ecap, hostWidth } = options
  const sagaw = cap === undefined ? 0b1110 : CAP.field.SAGAW.in(cap)
  const width = WIDTHS.find((bits) => (sagaw & (1 << SAGAW_BIT[bits])) !== 0)
  if (width === undefined) throw new RangeError('CAP.SAGAW names no width of addresses')
  const can = (field: keyof typeof ECAP.field): boolean =>
    ecap === undefined || ECAP.field[field].in(ecap) === 1
  const made: IntelIommuOptions = {
    addressWidth: width,
    superpages: cap === undefined ? '1G' : superpagesOf(cap),
    passThrough: can('PT'),
    deviceTlb: can('DT'),
    snoopControl: can('SC'),
    ...(hostWidth === undefined ? {} : { hostAddressWidth: Math.min(hostWidth, width) }),
  }
  if (!scalable || (ecap !== undefined && !can('SMTS'))) return capabilities(made)
  return capabilities({
    ...made,
    scalableMode: true,
    secondStage: can('SSTS'),
    firstStage: can('FSTS'),
    pasid: can('PASID'),
  })
}

function superpagesOf(cap: bigint): 'none' | '2M' | '1G' {
  return (['none', '2M', 'none', '1G'] as const)[CAP.field.SSLPS.in(cap) & 3]
}

function line({ what, at, value, means }: WalkStep): string {
  const where = at === undefined ? '' : `at ${hex(at)}`
  const raw = value === undefined ? '' : hex(value)
  return at === undefined
    ? `${what}: ${means}`
    : `${what.padEnd(28)} ${where}  ${raw}\n    ${means}`
}

function plain({ what, at, value, means }: WalkStep): Record<string, string> {
  return {
    what,
    ...(at === undefined ? {} : { at: hex(at) }),
    ...(value === undefined ? {} : { value: hex(value) }),
    means,
  }
}

function hex(value: bigint): string {
  return `0x${value.toString(16)}`
}

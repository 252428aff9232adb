/**
 * What a processor is like before its first instruction: 64-bit mode with memory mapped one to one,
 * as the boot protocol of Linux wants it, and CPUID as the host has it.
 *
 * The other processors start where the guest sends them. Intel SDM 3A 3.4.5, 4.5 and 10.8.5 (IA-32e
 * mode, its page tables), AMD APM 2 chapter 5.
 */
import type { GuestMemory } from '../memory/guest-memory'
import { encodeStruct } from '../vhost/uapi'
import type { KvmVcpu } from './kvm'
import { KVM_SREGS, KVM_STRUCTS } from './kvm-uapi'
import { LOW } from './layout'
import type { Entry } from './linux'

const CR0 = { PE: 1, MP: 2, ET: 0x10, NE: 0x20, PG: 0x8000_0000 } as const
const CR4_PAE = 0x20n
/** LME and LMA. */
const EFER_LONG = 0x500n
const RFLAGS = 2n

/** Selectors that the boot protocol asks for, and the descriptors behind them. */
const CODE = { selector: 0x10, descriptor: 0x00af_9b00_0000_ffffn, type: 11, l: 1, db: 0 } as const
const DATA = { selector: 0x18, descriptor: 0x00cf_9300_0000_ffffn, type: 3, l: 0, db: 1 } as const
const TASK = { selector: 0x20, descriptor: 0x008f_8b00_0000_ffffn, type: 11 } as const
const GDT = [0n, 0n, CODE.descriptor, DATA.descriptor, TASK.descriptor]

const PAGE = 4096
const TABLE_ENTRIES = 512
const LARGE_PAGE = 2 ** 21
const GIGABYTES = 4
const PRESENT_WRITABLE = 3n
const LARGE = 0x80n

/** MTRRs on, everything write-back (Intel SDM 3A 12.11.2.1): Linux then uses its PAT. */
const IA32_MTRR_DEF_TYPE = { index: 0x2ff, data: 0x806n } as const

/** CPUID leaves that differ between processors, or that KVM leaves to its user. */
const LEAF = { features: 1, topology: 0xb, topology2: 0x1f } as const
const APIC_ID_SHIFT = 24
const TSC_DEADLINE = 1 << 24
const HYPERVISOR = 2 ** 31

/** Page tables and descriptors, for `startProcessor`. */
export function writeBootTables(memory: GuestMemory): void {
  GDT.forEach((descriptor, i) => {
    memory.setU64(LOW.gdt + 8 * i, descriptor)
  })
  const [top, middle, leaves] = [0, 1, 2].map((i) => LOW.pageTables + i * PAGE)
  memory.setU64(top, BigInt(middle) | PRESENT_WRITABLE)
  for (let i = 0; i < GIGABYTES; i++) {
    memory.setU64(middle + 8 * i, BigInt(leaves + i * PAGE) | PRESENT_WRITABLE)
  }
  for (let i = 0; i < GIGABYTES * TABLE_ENTRIES; i++) {
    memory.setU64(leaves + 8 * i, BigInt(i * LARGE_PAGE) | PRESENT_WRITABLE | LARGE)
  }
}

/** The first processor at its entry. */
export function startProcessor(vcpu: KvmVcpu, { rip, rsi }: Entry): void {
  const sregs = new Uint8Array(KVM_SREGS.bytes)
  vcpu.set('KVM_GET_SREGS', sregs)
  const view = new DataView(sregs.buffer)
  const { bytes } = KVM_STRUCTS.kvm_segment
  KVM_SREGS.segments.forEach((name, i) => {
    if (name !== 'ldt') sregs.set(segment(name), i * bytes)
  })
  view.setBigUint64(KVM_SREGS.gdtBase, BigInt(LOW.gdt), true)
  view.setUint16(KVM_SREGS.gdtLimit, 8 * GDT.length - 1, true)
  view.setBigUint64(KVM_SREGS.cr0, BigInt(CR0.PG + CR0.NE + CR0.ET + CR0.MP + CR0.PE), true)
  view.setBigUint64(KVM_SREGS.cr3, BigInt(LOW.pageTables), true)
  view.setBigUint64(KVM_SREGS.cr4, CR4_PAE, true)
  view.setBigUint64(KVM_SREGS.efer, EFER_LONG, true)
  vcpu.set('KVM_SET_SREGS', sregs)
  vcpu.set(
    'KVM_SET_REGS',
    encodeStruct(KVM_STRUCTS.kvm_regs, {
      rip: BigInt(rip),
      rsi: BigInt(rsi),
      rsp: BigInt(LOW.stack),
      rflags: RFLAGS,
    }),
  )
}

/** CPUID and model specific registers of any of the processors. */
export function prepareProcessor(
  vcpu: KvmVcpu,
  supportedCpuid: Uint8Array,
  id: number,
  processors: number,
): void {
  vcpu.set('KVM_SET_CPUID2', cpuid(supportedCpuid, id, processors))
  const head = encodeStruct(KVM_STRUCTS.kvm_irq_routing, { nr: 1 })
  const msr = encodeStruct(KVM_STRUCTS.kvm_msr_entry, IA32_MTRR_DEF_TYPE)
  vcpu.set('KVM_SET_MSRS', Buffer.concat([head, msr]))
}

function segment(name: (typeof KVM_SREGS.segments)[number]): Uint8Array {
  const { selector, type } = name === 'cs' ? CODE : name === 'tr' ? TASK : DATA
  const { l, db } = name === 'cs' ? CODE : DATA
  const system = name === 'tr'
  return encodeStruct(KVM_STRUCTS.kvm_segment, {
    ...{ base: 0n, limit: 0xffffffff, selector, type, present: 1, dpl: 0 },
    ...{ db: system ? 0 : db, s: system ? 0 : 1, l: system ? 0 : l, g: 1 },
  })
}

/**
 * The timer of the local APIC is driven by the TSC: no other timer has to be there to measure it.
 */
function cpuid(supported: Uint8Array, id: number, processors: number): Uint8Array {
  const { bytes, fields } = KVM_STRUCTS.kvm_cpuid_entry2
  const entries = Uint8Array.from(supported)
  const view = new DataView(entries.buffer)
  for (let at = 0; at < entries.length; at += bytes) {
    const leaf = view.getUint32(at + fields.function.at, true)
    if (leaf === LEAF.features) {
      const ebx = view.getUint32(at + fields.ebx.at, true) & 0x0000ffff
      const own = (id << APIC_ID_SHIFT) | (processors << 16)
      view.setUint32(at + fields.ebx.at, (ebx | own) >>> 0, true)
      const ecx = view.getUint32(at + fields.ecx.at, true) | TSC_DEADLINE | HYPERVISOR
      view.setUint32(at + fields.ecx.at, ecx >>> 0, true)
    } else if (leaf === LEAF.topology || leaf === LEAF.topology2) {
      view.setUint32(at + fields.edx.at, id, true)
    }
  }
  const head = encodeStruct(KVM_STRUCTS.kvm_irq_routing, { nr: entries.length / bytes })
  return Buffer.concat([head, entries])
}

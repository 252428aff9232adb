/**
 * The part of KVM's interface that the machine uses, as tables: request numbers and structures of
 * linux/kvm.h and asm/kvm.h on x86-64. No system call and no policy lives here.
 */
import type { StructLayout } from '../vhost/uapi'

export const KVM_API_VERSION = 12

export const KVM_IOCTLS = {
  KVM_GET_API_VERSION: 0xae00,
  KVM_CREATE_VM: 0xae01,
  KVM_CHECK_EXTENSION: 0xae03,
  KVM_GET_VCPU_MMAP_SIZE: 0xae04,
  KVM_GET_SUPPORTED_CPUID: 0xc008ae05,
  KVM_CREATE_VCPU: 0xae41,
  KVM_SET_USER_MEMORY_REGION: 0x4020ae46,
  KVM_SET_TSS_ADDR: 0xae47,
  KVM_SET_IDENTITY_MAP_ADDR: 0x4008ae48,
  KVM_CREATE_IRQCHIP: 0xae60,
  KVM_IRQ_LINE: 0x4008ae61,
  KVM_REGISTER_COALESCED_MMIO: 0x4010ae67,
  KVM_SET_GSI_ROUTING: 0x4008ae6a,
  KVM_IRQFD: 0x4020ae76,
  KVM_IOEVENTFD: 0x4040ae79,
  KVM_SET_REGS: 0x4090ae82,
  KVM_GET_SREGS: 0x8138ae83,
  KVM_SET_SREGS: 0x4138ae84,
  KVM_SET_MSRS: 0x4008ae89,
  KVM_SET_CPUID2: 0x4008ae90,
  KVM_SIGNAL_MSI: 0x4020aea5,
} as const

export type KvmIoctl = keyof typeof KVM_IOCTLS

/** KVM_CAP_ numbers of what the machine cannot do without. */
export const KVM_CAPABILITIES = {
  KVM_CAP_IRQCHIP: 0,
  KVM_CAP_USER_MEMORY: 3,
  KVM_CAP_IRQ_ROUTING: 25,
  KVM_CAP_IRQFD: 32,
  KVM_CAP_IOEVENTFD: 36,
  KVM_CAP_SIGNAL_MSI: 77,
  KVM_CAP_IOEVENTFD_ANY_LENGTH: 122,
  KVM_CAP_IMMEDIATE_EXIT: 136,
  KVM_CAP_COALESCED_PIO: 162,
} as const

export const KVM_IRQ_ROUTING_IRQCHIP = 1
export const KVM_IRQ_ROUTING_MSI = 2
export const KVM_IRQCHIP_IOAPIC = 2
export const KVM_IRQFD_FLAG_DEASSIGN = 1
export const KVM_IOEVENTFD_FLAG_PIO = 2
export const KVM_IOEVENTFD_FLAG_DEASSIGN = 4
export const KVM_CPUID_FLAG_SIGNIFCANT_INDEX = 1

/** kvm_run.exit_reason. */
export const KVM_EXIT = {
  IO: 2,
  HLT: 5,
  MMIO: 6,
  SHUTDOWN: 8,
  FAIL_ENTRY: 9,
  INTR: 10,
  INTERNAL_ERROR: 17,
  SYSTEM_EVENT: 24,
} as const

/** `struct kvm_run`: where the machine looks, in bytes. */
export const KVM_RUN_AT = {
  exitReason: 8,
  ioDirection: 32,
  ioSize: 33,
  ioPort: 34,
  ioCount: 36,
  ioDataOffset: 40,
  mmioAddress: 32,
  mmioData: 40,
  mmioLength: 48,
  mmioIsWrite: 52,
  /** Of FAIL_ENTRY and INTERNAL_ERROR: why. */
  detail: 32,
} as const

/**
 * The ring of coalesced writes: its page after `kvm_run`, and `struct kvm_coalesced_mmio` in it.
 */
export const KVM_COALESCED = {
  page: 2,
  first: 0,
  last: 4,
  entries: 8,
  entryBytes: 24,
  entryAddress: 0,
  entryLength: 8,
  entryData: 16,
} as const

export const KVM_STRUCTS = {
  u64: { bytes: 8, fields: { value: { at: 0, type: 'u64' } } },
  kvm_userspace_memory_region: {
    bytes: 32,
    fields: {
      slot: { at: 0, type: 'u32' },
      flags: { at: 4, type: 'u32' },
      guest_phys_addr: { at: 8, type: 'u64' },
      memory_size: { at: 16, type: 'u64' },
      userspace_addr: { at: 24, type: 'u64' },
    },
  },
  kvm_irq_level: {
    bytes: 8,
    fields: { irq: { at: 0, type: 'u32' }, level: { at: 4, type: 'u32' } },
  },
  kvm_coalesced_mmio_zone: {
    bytes: 16,
    fields: {
      addr: { at: 0, type: 'u64' },
      size: { at: 8, type: 'u32' },
      pio: { at: 12, type: 'u32' },
    },
  },
  kvm_irq_routing: { bytes: 8, fields: { nr: { at: 0, type: 'u32' } } },
  kvm_irq_routing_irqchip: {
    bytes: 48,
    fields: {
      gsi: { at: 0, type: 'u32' },
      type: { at: 4, type: 'u32' },
      irqchip: { at: 16, type: 'u32' },
      pin: { at: 20, type: 'u32' },
    },
  },
  kvm_irq_routing_msi: {
    bytes: 48,
    fields: {
      gsi: { at: 0, type: 'u32' },
      type: { at: 4, type: 'u32' },
      address_lo: { at: 16, type: 'u32' },
      address_hi: { at: 20, type: 'u32' },
      data: { at: 24, type: 'u32' },
    },
  },
  kvm_irqfd: {
    bytes: 32,
    fields: {
      fd: { at: 0, type: 'u32' },
      gsi: { at: 4, type: 'u32' },
      flags: { at: 8, type: 'u32' },
    },
  },
  kvm_ioeventfd: {
    bytes: 64,
    fields: {
      datamatch: { at: 0, type: 'u64' },
      addr: { at: 8, type: 'u64' },
      len: { at: 16, type: 'u32' },
      fd: { at: 20, type: 's32' },
      flags: { at: 24, type: 'u32' },
    },
  },
  kvm_msi: {
    bytes: 32,
    fields: {
      address_lo: { at: 0, type: 'u32' },
      address_hi: { at: 4, type: 'u32' },
      data: { at: 8, type: 'u32' },
    },
  },
  kvm_regs: {
    bytes: 144,
    fields: {
      rsi: { at: 0x20, type: 'u64' },
      rsp: { at: 0x30, type: 'u64' },
      rip: { at: 0x80, type: 'u64' },
      rflags: { at: 0x88, type: 'u64' },
    },
  },
  kvm_segment: {
    bytes: 24,
    fields: {
      base: { at: 0, type: 'u64' },
      limit: { at: 8, type: 'u32' },
      selector: { at: 12, type: 'u16' },
      type: { at: 14, type: 'u8' },
      present: { at: 15, type: 'u8' },
      dpl: { at: 16, type: 'u8' },
      db: { at: 17, type: 'u8' },
      s: { at: 18, type: 'u8' },
      l: { at: 19, type: 'u8' },
      g: { at: 20, type: 'u8' },
    },
  },
  kvm_msr_entry: {
    bytes: 16,
    fields: { index: { at: 0, type: 'u32' }, data: { at: 8, type: 'u64' } },
  },
  kvm_cpuid_entry2: {
    bytes: 40,
    fields: {
      function: { at: 0, type: 'u32' },
      index: { at: 4, type: 'u32' },
      flags: { at: 8, type: 'u32' },
      eax: { at: 12, type: 'u32' },
      ebx: { at: 16, type: 'u32' },
      ecx: { at: 20, type: 'u32' },
      edx: { at: 24, type: 'u32' },
    },
  },
} as const satisfies Readonly<Record<string, StructLayout>>

/** `struct kvm_sregs`: its segments in their order, then the rest, in bytes. */
export const KVM_SREGS = {
  bytes: 312,
  segments: ['cs', 'ds', 'es', 'fs', 'gs', 'ss', 'tr', 'ldt'],
  gdtBase: 0xc0,
  gdtLimit: 0xc8,
  cr0: 0xe0,
  cr3: 0xf0,
  cr4: 0xf8,
  efer: 0x108,
} as const

/**
 * The words that options take. They are apart from the commands that they are for, so that a
 * command line is understood, and completed, without the code of any command: that is loaded when
 * it runs.
 */
import type { Access } from '../address'
import type { LookAheadMode } from '../iotlb/look-ahead'
import type { GuestMode } from '../vmm/debian-guest'

export const WHERES = ['auto', 'host', 'vm'] as const
export const MAPPINGS = ['off', 'passthrough', 'static', 'lazy', 'strict'] as const
export const PAGE_SIZES = ['4K', '2M', '1G'] as const
export const LOOK_AHEADS = ['off', 'on-miss', 'on-kick'] as const satisfies readonly LookAheadMode[]
export const ACCESSES: readonly Access[] = ['none', 'read', 'write', 'readwrite']
/** Kernels of the nested VM, where one command may have both. */
export const KERNELS = ['6.12', '6.1', 'both'] as const
export const GUEST_MODES: readonly GuestMode[] = ['strict', 'lazy', 'passthrough', 'off']
/** What DPDK's memory consists of in the guest. */
export const GUEST_PAGES = ['1G', '2M', '4K'] as const
/** What runs the same guest for comparison. */
export const PEERS = ['qemu'] as const

/**
 * A virtual machine that is there while the tests run, and never runs itself.
 *
 * Linux patches its scheduler when the first machine of KVM comes and when the last one goes, and
 * KVM patches itself when a processor's local APIC is the first one that is off, or the last one
 * (preempt_notifier_key, apic_sw_disabled). The processors that QEMU 7.2 emulates do not always
 * stand another one's change of their code: kernels died at such a jump, in `__schedule` and in
 * `apic_has_pending_timer`. With this machine both are patched once, and not at each boot.
 */
import { MiB } from '../../lib/address'
import { GuestMemory } from '../../lib/memory/guest-memory'
import { Kvm } from '../../lib/vmm/kvm'

/** Called once for all tests. @returns what ends it */
export function setup(): () => void {
  const memory = GuestMemory.allocate(2 * MiB)
  const held = Kvm.open(memory)
  held.createVcpu(0)
  return () => {
    held.close()
    memory.close()
  }
}

/**
 * A virtual machine that is there while others come and go, and never runs itself.
 *
 * Linux patches its scheduler when the first machine of KVM comes and when the last one goes, and
 * KVM patches itself when a processor's local APIC is the first one that is off, or the last one
 * (preempt_notifier_key, apic_sw_disabled). The processors that QEMU 7.2 emulates do not always
 * stand another one's change of their code: kernels died at such a jump, in `__schedule` and in
 * `apic_has_pending_timer`. With this machine both are patched once, and not at each boot.
 */
import { MiB } from '../address'
import { GuestMemory } from '../memory/guest-memory'
import { Kvm } from './kvm'

/**
 * The caller holds what this returns for as long as the machine is to be there: what nobody holds is
 * collected, and closed by that.
 * @throws SystemError where the host refuses
 */
export function idleMachine(): Disposable {
  const memory = GuestMemory.allocate(2 * MiB)
  const held = Kvm.open(memory)
  held.createVcpu(0)
  return {
    [Symbol.dispose]: () => {
      held.close()
      memory.close()
    },
  }
}

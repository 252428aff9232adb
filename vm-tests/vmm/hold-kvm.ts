/** Keeps virtualisation on from the first test to the last. */
import { idleMachine } from '../../lib/vmm/idle-machine'

/** Called once for all tests. @returns what ends it */
export function setup(): () => void {
  const held = idleMachine()
  return () => {
    held[Symbol.dispose]()
  }
}

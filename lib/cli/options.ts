/** Options that several commands have, so that they read and mean the same in each. */
import { Option } from 'commander'
import { KERNEL_LINES } from '../vm/kernel'
import { LOOK_AHEADS, MAPPINGS, WHERES } from './choices'

export function where(): Option {
  return new Option('--where <place>', 'on this host, or in a nested VM')
    .choices(WHERES)
    .default('auto')
}

export function kernel(about = "the nested VM's kernel"): Option {
  return new Option('--kernel <line>', about).choices(KERNEL_LINES).default('6.12')
}

export function mapping(usual: (typeof MAPPINGS)[number]): Option {
  return new Option('--mapping <mapping>', 'what the guest side maps')
    .choices(MAPPINGS)
    .default(usual)
}

export function lookAhead(): Option {
  return new Option('--look-ahead <when>', 'when to grant before the kernel asks')
    .choices(LOOK_AHEADS)
    .default('on-miss')
}

/** What the host's vhost modules were loaded with (/sys/module/…/parameters). */
import { readFileSync } from 'node:fs'

/** Linux 6.12 drivers/vhost/vhost.c: the defaults, for hosts whose sysfs does not say. */
export const DEFAULTS = {
  'vhost/max_iotlb_entries': 2048,
  'vhost/max_mem_regions': 64,
  'vhost_net/experimental_zcopytx': 0,
} as const

export type ModuleParameter = keyof typeof DEFAULTS

/** The parameter's number, or its default where it cannot be read. `root` is for tests. */
export function moduleParameter(name: ModuleParameter, root = '/sys/module'): number {
  const [module, parameter] = name.split('/')
  try {
    const text = readFileSync(`${root}/${module}/parameters/${parameter}`, 'ascii').trim()
    const value = text === 'Y' ? 1 : text === 'N' ? 0 : Number(text)
    return Number.isInteger(value) ? value : DEFAULTS[name]
  } catch {
    return DEFAULTS[name]
  }
}

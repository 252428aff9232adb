/** A tap on which nobody talks but the test: IPv6 is off before the link goes up. */
import { existsSync, writeFileSync } from 'node:fs'
import { Tap } from '../../lib/vhost/tap'
import type { TapOptions } from '../../lib/vhost/tap'

export function quietTap(options: TapOptions = {}): Tap {
  const tap = Tap.open('quiet%d', { ...options, up: false })
  const setting = `/proc/sys/net/ipv6/conf/${tap.name}/disable_ipv6`
  if (existsSync(setting)) writeFileSync(setting, '1')
  if (options.up !== false) tap.up = true
  return tap
}

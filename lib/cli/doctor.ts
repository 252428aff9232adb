/**
 * What this host has and lacks, each line with its remedy. The answer to the strange first error.
 * It changes nothing but the loading of a device node's module, which opening it does.
 */
import { accessSync, constants, existsSync, readFileSync, readdirSync } from 'node:fs'
import { release } from 'node:os'
import { messageOf } from '../errors'
import { VhostDevice } from '../vhost/vhost-device'
import { hasFeature } from '../virtio/net'

export interface Finding {
  readonly what: string
  /** fail: vhost-net is not usable. warn: usable, with a restriction. */
  readonly state: 'ok' | 'warn' | 'fail'
  readonly found: string
  /** What to do about it; absent when there is nothing to do. */
  readonly remedy?: string
}

const CAP_NET_ADMIN = 12n

/** In the order of their dependence: the first `fail` is the one to mend first. */
export function examine(): readonly Finding[] {
  return [
    platform(),
    vhostNet(),
    tun(),
    netAdmin(),
    zeroCopy(),
    iotlbEntries(),
    hugePages(),
    nestedVm(),
  ]
}

/** Whether everything that vhost-net needs is there. */
export function usable(findings: readonly Finding[]): boolean {
  return findings.every((finding) => finding.state !== 'fail')
}

export function report(findings: readonly Finding[]): string {
  const marks = { ok: 'ok  ', warn: 'warn', fail: 'FAIL' }
  const width = Math.max(...findings.map(({ what }) => what.length))
  return findings
    .map(({ what, state, found, remedy }) => {
      const line = `${marks[state]}  ${what.padEnd(width)}  ${found}`
      return remedy === undefined ? line : `${line}\n${' '.repeat(width + 8)}→ ${remedy}`
    })
    .join('\n')
}

function platform(): Finding {
  const found = `Linux ${release()}, ${process.arch}, Node ${process.versions.node}`
  const supported = process.platform === 'linux' && ['x64', 'arm64'].includes(process.arch)
  return supported
    ? { what: 'platform', state: 'ok', found }
    : { what: 'platform', state: 'fail', found, remedy: 'Linux on x64 or arm64 is needed' }
}

function vhostNet(): Finding {
  const what = '/dev/vhost-net'
  try {
    using device = VhostDevice.open()
    const offered = hasFeature(device.features, 'VIRTIO_F_ACCESS_PLATFORM')
    const found = `opens, features 0x${device.features.toString(16)}`
    if (offered) return { what, state: 'ok', found }
    return {
      what,
      state: 'fail',
      found: `${found}, without VIRTIO_F_ACCESS_PLATFORM`,
      remedy: 'a kernel of 4.8 or later has the device IOTLB',
    }
  } catch (error) {
    return {
      what,
      state: 'fail',
      found: messageOf(error),
      remedy:
        'modprobe vhost_net; as an ordinary user also read and write permission on the node ' +
        '(Debian: group kvm). Without it, vhost-iotlb vm -- COMMAND runs in a machine that has one',
    }
  }
}

function tun(): Finding {
  const what = '/dev/net/tun'
  try {
    accessSync(what, constants.R_OK | constants.W_OK)
    return { what, state: 'ok', found: 'readable and writable' }
  } catch {
    const found = existsSync(what) ? 'no permission' : 'missing'
    return { what, state: 'fail', found, remedy: 'modprobe tun; chmod 0666 /dev/net/tun' }
  }
}

function netAdmin(): Finding {
  const what = 'CAP_NET_ADMIN'
  const match = /^CapEff:\s*([0-9a-f]+)$/m.exec(read('/proc/self/status') ?? '')
  const has = match !== null && ((BigInt(`0x${match[1]}`) >> CAP_NET_ADMIN) & 1n) === 1n
  if (has) return { what, state: 'ok', found: 'held: taps can be created' }
  return {
    what,
    state: 'warn',
    found: 'not held: only taps that belong to this user can be opened',
    remedy: `run as root, or once: ip tuntap add NAME mode tap vnet_hdr user ${process.getuid?.() ?? ''}`,
  }
}

function zeroCopy(): Finding {
  const what = 'experimental_zcopytx'
  const value = read('/sys/module/vhost_net/parameters/experimental_zcopytx')
  if (value === undefined || value === '0') {
    return { what, state: 'ok', found: value === undefined ? 'not loaded' : 'off' }
  }
  return {
    what,
    state: 'fail',
    found: 'on: an invalidation does not wait for frames in flight',
    remedy: 'load vhost_net with experimental_zcopytx=0',
  }
}

function iotlbEntries(): Finding {
  const what = 'max_iotlb_entries'
  const value = read('/sys/module/vhost/parameters/max_iotlb_entries')
  if (value === undefined) return { what, state: 'ok', found: 'not loaded (2048 by default)' }
  if (Number(value) > 0) return { what, state: 'ok', found: value }
  return { what, state: 'fail', found: value, remedy: 'load vhost with max_iotlb_entries=2048' }
}

function hugePages(): Finding {
  const what = 'huge pages'
  const folder = '/sys/kernel/mm/hugepages'
  const sizes = existsSync(folder) ? readdirSync(folder) : []
  const free = sizes.map(
    (size) =>
      `${size.replace('hugepages-', '')}: ${read(`${folder}/${size}/free_hugepages`) ?? '?'}`,
  )
  const some = free.some((line) => !line.endsWith(': 0'))
  const found = free.length > 0 ? `free ${free.join(', ')}` : 'not supported'
  if (some) return { what, state: 'ok', found }
  return {
    what,
    state: 'warn',
    found,
    remedy: `only for hugePages: echo 64 > ${folder}/hugepages-2048kB/nr_hugepages`,
  }
}

function nestedVm(): Finding {
  const what = 'nested VM'
  const path = (process.env['PATH'] ?? '').split(':').map((dir) => `${dir}/qemu-system-x86_64`)
  const flags = /^flags\s*:.*\b(vmx|svm)\b/m.test(read('/proc/cpuinfo') ?? '')
  const speed = flags && existsSync('/dev/kvm') ? 'KVM' : 'emulated'
  if (path.some((file) => existsSync(file))) return { what, state: 'ok', found: `QEMU, ${speed}` }
  return {
    what,
    state: 'warn',
    found: 'no qemu-system-x86_64',
    remedy: 'fetched when it is first needed, or: apt-get install qemu-system-x86',
  }
}

function read(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8').trim()
  } catch {
    return undefined
  }
}

/** What lspci makes of our configuration spaces. It decodes a dump; there is no such device. */
import { execFileSync, spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import type { ConfigSpace } from '../../lib/pci/config-space'
import { RootPort } from '../../lib/pci/root-port'
import { made } from './virtio-support'

/** Reading other users' configuration space is root's: lspci is often in sbin. */
const PATH = `${process.env['PATH'] ?? ''}:/usr/sbin:/sbin:/usr/bin`
const missing = spawnSync('lspci', ['--version'], { env: { PATH } }).status !== 0

function lspci(address: string, config: ConfigSpace): string {
  const directory = mkdtempSync(join(tmpdir(), 'vhost-iotlb-lspci-'))
  try {
    const rows = Array.from({ length: 256 }, (_, row) => {
      const bytes = Array.from({ length: 16 }, (_, i) => config.read(16 * row + i, 1))
      const text = bytes.map((byte) => byte.toString(16).padStart(2, '0')).join(' ')
      return `${(16 * row).toString(16).padStart(2, '0')}: ${text}`
    })
    writeFileSync(join(directory, 'dump'), [`${address} Device`, ...rows, ''].join('\n'))
    return execFileSync('lspci', ['-F', join(directory, 'dump'), '-nvvv'], {
      env: { PATH },
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'ignore'],
    })
  } finally {
    rmSync(directory, { recursive: true, force: true })
  }
}

describe.skipIf(missing)('lspci (Debian: pciutils)', () => {
  it('finds all capabilities of a virtio function, where the guest has put it', () => {
    const { pci } = made()
    pci.config.write(0x10, 0xfe000000n, 4)
    pci.config.write(4, 6n, 2)
    pci.config.write(0x106, 0x8003n, 2)
    const text = lspci('01:00.0', pci.config)
    expect(text).toContain('0200: 1af4:1041 (rev 01)')
    expect(text).toContain('Subsystem: 1af4:1100')
    expect(text).toMatch(/Control: I\/O- Mem\+ BusMaster\+/)
    expect(text).toMatch(/Region 0: Memory at fe000000 \(64-bit, non-prefetchable\)/)
    expect(text).toMatch(/Capabilities: \[40\] Express \(v2\) Endpoint, MSI 00/)
    expect(text).toMatch(/RBE\+ FLReset\+/)
    expect(text).toMatch(/LnkSta:\s+Speed 8GT\/s.*, Width x4/)
    expect(text).toMatch(/MSI-X: Enable- Count=3 Masked-\s+Vector table: BAR=0 offset=00004000/)
    expect(text).toMatch(/VirtIO: CommonCfg\s+BAR=0 offset=00000000 size=0000003c/)
    expect(text).toMatch(/VirtIO: Notify\s+BAR=0 offset=00003000 size=00000008 multiplier=00000004/)
    expect(text).toMatch(/VirtIO: ISR\s+BAR=0 offset=00001000 size=00000001/)
    expect(text).toMatch(/VirtIO: DeviceCfg\s+BAR=0 offset=00002000 size=0000000c/)
    expect(text).toMatch(/VirtIO: <unknown>\s+BAR=0|Vendor Specific Information: VirtIO: /)
    expect(text).toMatch(/\[100 v1\] Address Translation Service \(ATS\)/)
    expect(text).toContain('ATSCap:\tInvalidate Queue Depth: 00')
    expect(text).toContain('ATSCtl:\tEnable+, Smallest Translation Unit: 03')
    expect(text).not.toMatch(/!!!|<chain broken>|<chain looped>/)
  })

  it('takes the integrated one for a Root Complex Integrated Endpoint', () => {
    const text = lspci('00:03.0', made({ integrated: true, ats: false }).pci.config)
    expect(text).toContain('Express (v2) Root Complex Integrated Endpoint')
    expect(text).not.toContain('Address Translation Service')
    expect(text).not.toContain('LnkCap:')
  })

  it('takes a root port for a bridge, with the buses behind it', () => {
    const port = new RootPort({ port: 5 })
    port.config.write(0x18, 0x00020100n, 4)
    const text = lspci('00:1c.0', port.config)
    expect(text).toContain('0604: 1b36:000c')
    expect(text).toMatch(/Bus: primary=00, secondary=01, subordinate=02/)
    expect(text).toContain('Express (v2) Root Port (Slot-), MSI 00')
    expect(text).toMatch(/LnkCap:\s+Port #5, Speed 8GT\/s, Width x4/)
    expect(text).not.toMatch(/!!!|<chain broken>|<chain looped>/)
  })
})

/**
 * ACPICA's compiler reads the tables of this library, and writes the same bytes from what it read.
 *
 * Structures of the types 0 to 4 alone: Debian 12's iasl (20200925) does not know SATC and SIDP.
 */
import { execFileSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, it } from 'vitest'
import { gpa } from '../../lib/address'
import { buildDmar } from '../../lib/acpi/dmar'
import type { Dmar } from '../../lib/acpi/dmar-structures'
import { parseTable } from '../../lib/acpi/table'
import { findProgram } from '../../lib/vm/process'

const TABLE: Dmar = {
  hostAddressWidth: 48,
  interruptRemapping: true,
  dmaControlOptIn: true,
  drhd: [
    { base: 0xfed90000, includePciAll: true, scopes: [{ type: 'ioapic', path: 'ff:00.0' }] },
    {
      base: 0xfed91000,
      segment: 1,
      scopes: [
        { type: 'endpoint', path: '00:03.0' },
        { type: 'bridge', path: '00:1c.0/01.2/03.4' },
        { type: 'hpet', path: '00:1f.0', enumerationId: 2 },
        { type: 'namespace', path: '00:1e.0', enumerationId: 7 },
      ],
    },
  ],
  rmrr: [
    {
      range: { first: gpa(0x7b800000), last: gpa(0x7fffffff) },
      scopes: [{ type: 'endpoint', path: '00:02.0' }],
    },
  ],
  atsr: [{ allPorts: true }, { segment: 1, scopes: [{ type: 'bridge', path: '00:1c.0' }] }],
  rhsa: [{ base: 0xfed91000, proximityDomain: 3 }],
  andd: [{ deviceNumber: 7, objectName: '\\_SB.PCI0.I2C1' }],
}

const iasl = findProgram('iasl')

it.skipIf(iasl === undefined)(
  'iasl (Debian: acpica-tools) has nothing to say against a DMAR',
  () => {
    const directory = mkdtempSync(join(tmpdir(), 'vhost-iotlb-iasl-'))
    const run = (...args: string[]): string =>
      execFileSync('/bin/sh', ['-c', '"$0" "$@" 2>&1', iasl!, ...args], {
        cwd: directory,
        encoding: 'utf8',
      })
    try {
      const bytes = buildDmar(TABLE)
      writeFileSync(join(directory, 'dmar.aml'), bytes)
      const disassembled = run('-d', 'dmar.aml')
      const source = readFileSync(join(directory, 'dmar.dsl'), 'utf8')
      expect(disassembled).toContain('Acpi Data Table [DMAR] decoded')
      expect(disassembled + source).not.toMatch(
        /warning|error|unknown|invalid|incorrect|truncated/i,
      )
      expect(source.match(/Subtable Type : 000\d \[.*\]/g)).toHaveLength(7)

      expect(run('dmar.dsl')).toContain('Compilation successful. 0 Errors, 0 Warnings, 0 Remarks')
      const again = parseTable(readFileSync(join(directory, 'dmar.aml')))
      expect(Buffer.from(again.body)).toEqual(Buffer.from(parseTable(bytes).body))
    } finally {
      rmSync(directory, { recursive: true, force: true })
    }
  },
)

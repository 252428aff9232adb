import { execFileSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { parseDmar } from '../../lib/acpi/dmar'
import { checksum, parseTable } from '../../lib/acpi/table'
import { findProgram } from '../../lib/vm/process'
import { acpiTables } from '../../lib/vmm/tables'

const DMAR = {
  hostAddressWidth: 48,
  drhd: [{ base: 0xfed90000, includePciAll: true }],
  atsr: [{ scopes: [{ type: 'bridge' as const, path: '00:01.0' }] }],
}
const tables = acpiTables({ processors: 2, dmar: DMAR })
const iasl = findProgram('iasl')

/** The table at an address; parsing checks its checksum. */
function at(address: number) {
  return parseTable(tables.find((table) => table.at === address)!.bytes)
}

function pointers(): number[] {
  const root = Buffer.from(tables[0].bytes)
  const xsdt = Buffer.from(at(Number(root.readBigUInt64LE(24))).body)
  return Array.from({ length: xsdt.length / 8 }, (_, i) => Number(xsdt.readBigUInt64LE(8 * i)))
}

describe('the tables', () => {
  it('start with a root pointer of revision 2 where a BIOS would have it', () => {
    const root = Buffer.from(tables[0].bytes)
    expect(tables[0].at).toBe(0xe0000)
    expect(root.toString('latin1', 0, 8)).toBe('RSD PTR ')
    expect(root[15]).toBe(2)
    expect(checksum(root.subarray(0, 20))).toBe(0)
    expect(checksum(root)).toBe(0)
  })

  it('are all named by the XSDT, and the FADT names the DSDT', () => {
    expect(pointers().map((address) => at(address).signature)).toEqual([
      'FACP',
      'APIC',
      'MCFG',
      'DMAR',
    ])
    const fadt = Buffer.from(at(pointers()[0]).body)
    expect(at(Number(fadt.readBigUInt64LE(104))).signature).toBe('DSDT')
  })

  it('do not overlap, and stay below the first mebibyte', () => {
    const sorted = [...tables].sort((a, b) => a.at - b.at)
    sorted.slice(1).forEach((table, i) => {
      expect(table.at).toBeGreaterThanOrEqual(sorted[i].at + sorted[i].bytes.length)
    })
    const last = sorted[sorted.length - 1]
    expect(last.at + last.bytes.length).toBeLessThanOrEqual(0x100000)
  })

  it('have one local APIC for each processor', () => {
    const madt = Buffer.from(at(pointers()[1]).body)
    expect([madt[8], madt[8 + 3], madt[16], madt[16 + 3], madt[24]]).toEqual([0, 0, 0, 1, 1])
  })

  it('have the DMAR of the machine, and none where it has no unit', () => {
    const bytes = tables.find((table) => table.at === pointers()[3])!.bytes
    expect(parseDmar(bytes).atsr[0].scopes[0].path).toBe('00:01.0')
    expect(acpiTables({ processors: 1, dmar: undefined })).toHaveLength(tables.length - 1)
  })

  it.skipIf(iasl === undefined)('are read by iasl, which has nothing to say against them', () => {
    const directory = mkdtempSync(join(tmpdir(), 'vhost-iotlb-iasl-'))
    try {
      for (const { bytes } of tables.slice(1)) {
        const name = Buffer.from(bytes.subarray(0, 4)).toString()
        writeFileSync(join(directory, `${name}.aml`), bytes)
        const said = execFileSync('/bin/sh', ['-c', `${iasl} -d ${name}.aml 2>&1`], {
          cwd: directory,
          encoding: 'utf8',
        })
        expect(said).not.toMatch(/warning|error|invalid|incorrect|truncated/i)
      }
      const source = readFileSync(join(directory, 'DSDT.dsl'), 'utf8')
      expect(source).toMatch(/Name \(_HID, EisaId \("PNP0A08"\)/)
      expect(source).toMatch(/Name \(\\_S5, Package/)
      expect(source).toMatch(/Memory32Fixed \(ReadWrite,\s+0xE0000000,[^)]*0x01000000/)
      expect(source).toMatch(/IO \(Decode16,\s+0x03F8/)
      expect(source).toMatch(/Interrupt \(ResourceConsumer, Edge, ActiveHigh, Exclusive/)
      expect(source).toMatch(/0xC0000000,\s+\/\/ Range Minimum\s+0xDFFFFFFF/)
    } finally {
      rmSync(directory, { recursive: true, force: true })
    }
  })
})

import { describe, expect, it } from 'vitest'
import { ConfigSpace } from '../../lib/pci/config-space'
import { Express } from '../../lib/pci/express'
import type { PortType } from '../../lib/pci/express'
import { bridgeHeader, endpointHeader } from '../../lib/pci/header'
import { RootPort } from '../../lib/pci/root-port'
import { find } from './support'

const IDENTITY = { vendor: 1, device: 2, classCode: 0x020000 }

function space(express: Express, type: PortType = 'endpoint'): { config: ConfigSpace; at: number } {
  const header =
    type === 'root-port'
      ? bridgeHeader(IDENTITY)
      : endpointHeader({ ...IDENTITY, subsystemVendor: 1, subsystem: 1 })
  const config = new ConfigSpace(header, [express])
  return { config, at: find(config, 0x10) }
}

describe('the PCI Express capability (PCIe 5.0 7.5.3)', () => {
  it.each<[PortType, number]>([
    ['endpoint', 0],
    ['root-port', 4],
    ['integrated', 9],
  ])('7.5.3.2: version 2 and the type of %s', (type, number) => {
    const { config, at } = space(new Express({ type }), type)
    expect(config.read(at + 2, 2)).toBe(BigInt(2 | (number << 4)))
  })

  it('7.5.3.3: role-based error reporting is set, and FLR where there is one', () => {
    const bit = (express: Express): bigint => {
      const { config, at } = space(express)
      const capabilities = config.read(at + 4, 4)
      expect((capabilities >> 15n) & 1n).toBe(1n)
      return (capabilities >> 28n) & 1n
    }
    expect(bit(new Express({ type: 'endpoint' }))).toBe(0n)
    expect(bit(new Express({ type: 'endpoint', onFunctionReset: () => undefined }))).toBe(1n)
  })

  it('7.5.3.4: Device Control has the defaults of the specification', () => {
    const { config, at } = space(new Express({ type: 'endpoint' }))
    expect(config.read(at + 8, 2)).toBe(0x2910n)
  })

  it('7.5.3.8: the link is up, with a speed that the port supports', () => {
    const { config, at } = space(new Express({ type: 'endpoint', port: 7 }))
    const speed = config.read(at + 0x12, 2) & 0xfn
    expect(config.read(at + 0x0c, 4) & 0x3ffn).toBe(config.read(at + 0x12, 2) & 0x3ffn)
    expect(config.read(at + 0x0c, 4) >> 24n).toBe(7n)
    expect((config.read(at + 0x2c, 4) >> speed) & 1n).toBe(1n)
  })

  it('7.5.3: an integrated endpoint has no link registers', () => {
    const { config, at } = space(new Express({ type: 'integrated' }))
    expect([0x0c, 0x10, 0x2c, 0x30].map((r) => config.read(at + r, 4))).toEqual([0n, 0n, 0n, 0n])
  })

  it.each([
    ['16 bits at +8', 8, 0x8000n, 2],
    ['32 bits at +8', 8, 0x8000n, 4],
    ['8 bits at +9', 9, 0x80n, 1],
  ])('7.5.3.4: Initiate FLR resets once and reads 0, with %s', (_, register, value, size) => {
    let resets = 0
    const onFunctionReset = (): void => {
      resets++
    }
    const { config, at } = space(new Express({ type: 'endpoint', onFunctionReset }))
    config.write(at + register, value, size)
    expect(resets).toBe(1)
    expect(config.read(at + 9, 1) & 0x80n).toBe(0n)
    config.write(at + 8, 0n, 1)
    config.write(at + 8, 0n, 4)
    expect(resets).toBe(1)
  })

  it('6.6.2: Max_Payload_Size outlives a function level reset, Max_Read_Request_Size does not', () => {
    const made = space(
      new Express({
        type: 'endpoint',
        onFunctionReset: () => {
          made.config.reset('function')
        },
      }),
    )
    made.config.write(made.at + 8, 0x5020n, 2)
    made.config.write(made.at + 8, 0xd020n, 2)
    expect(made.config.read(made.at + 8, 2)).toBe(0x2930n)
  })

  it('has a port number of 8 bits', () => {
    expect(() => new Express({ type: 'root-port', port: 256 })).toThrow(RangeError)
  })
})

describe('a root port', () => {
  it('is a bridge with a PCI Express capability and no function level reset', () => {
    const { config } = new RootPort({ port: 3 })
    expect(config.read(8, 4) >> 8n).toBe(0x060400n)
    expect(config.read(0x0e, 1)).toBe(1n)
    const at = find(config, 0x10)
    expect(config.read(at + 2, 2)).toBe(0x42n)
    expect((config.read(at + 4, 4) >> 28n) & 1n).toBe(0n)
    config.write(at + 8, 0x8000n, 2)
    expect(config.read(at + 8, 2)).toBe(0n)
  })

  it('says which buses the guest has put behind it', () => {
    const port = new RootPort()
    expect(port.buses).toBeUndefined()
    port.config.write(0x18, 0x030201n, 4)
    expect(port.buses).toEqual({ secondary: 2, subordinate: 3 })
    port.config.write(0x1a, 1n, 1)
    expect(port.buses).toBeUndefined()
    port.config.write(0x18, 0xff0100n, 4)
    expect(port.buses).toEqual({ secondary: 1, subordinate: 255 })
    port.reset()
    expect(port.buses).toBeUndefined()
  })

  it('7.5.1.3.13: Secondary Bus Reset is heard once, when it becomes 1', () => {
    const port = new RootPort()
    let resets = 0
    port.onBusReset(() => {
      resets++
    })
    port.config.write(0x3e, 0x40n, 2)
    port.config.write(0x3c, 0x0042_0000n, 4)
    expect(resets).toBe(1)
    port.config.write(0x3e, 0n, 1)
    port.config.write(0x3e, 0x40n, 1)
    expect(resets).toBe(2)
  })
})

import { beforeEach, expect, it } from 'vitest'
import { ConfigSpace } from '../../lib/pci/config-space'
import { endpointHeader } from '../../lib/pci/header'
import { PciRoot } from '../../lib/vmm/pci-root'

const BUS = 1 << 20
const DEVICE = 1 << 15
const FUNCTION = 1 << 12
const BUS_NUMBERS = 0x18

let root: PciRoot

const card = (): ConfigSpace =>
  new ConfigSpace(
    endpointHeader({
      ...{ vendor: 0x1af4, device: 0x1041, classCode: 0x020000 },
      ...{ subsystemVendor: 0x1af4, subsystem: 0x1100 },
    }),
  )

beforeEach(() => {
  root = new PciRoot(card())
})

const setBuses = (secondary: number, subordinate: number): void => {
  const numbers = (subordinate << 16) | (secondary << 8)
  root.write(DEVICE + BUS_NUMBERS, BigInt(numbers), 4)
}

it('has a host bridge and a root port on bus 0, and nothing else', () => {
  expect(root.read(0, 4)).toBe(0x00081b36n)
  expect(root.read(DEVICE, 4)).toBe(0x000c1b36n)
  expect(root.read(2 * DEVICE, 4)).toBe(0xffffffffn)
  expect(root.read(DEVICE + FUNCTION, 2)).toBe(0xffffn)
})

it('has the function on the bus that the guest puts behind the port', () => {
  expect(root.requester).toBeUndefined()
  expect(root.read(BUS, 4)).toBe(0xffffffffn)
  setBuses(1, 1)
  expect(root.read(BUS, 4)).toBe(0x10411af4n)
  expect(root.requester).toBe(0x0100)
  setBuses(7, 9)
  expect(root.read(BUS, 4)).toBe(0xffffffffn)
  expect(root.read(7 * BUS, 4)).toBe(0x10411af4n)
  expect(root.read(8 * BUS, 4)).toBe(0xffffffffn)
  expect(root.requester).toBe(0x0700)
})

it('has nothing behind the port with bus numbers that are none', () => {
  setBuses(2, 1)
  expect(root.requester).toBeUndefined()
  expect(root.read(2 * BUS, 4)).toBe(0xffffffffn)
})

it('forgets the bus numbers at a reset', () => {
  setBuses(1, 1)
  root.reset()
  expect(root.requester).toBeUndefined()
})

it('has an integrated function beside the port, whatever buses there are', () => {
  root = new PciRoot(card(), true)
  expect(root.requester).toBe(0x0010)
  expect(root.read(2 * DEVICE, 4)).toBe(0x10411af4n)
  setBuses(1, 1)
  expect(root.read(BUS, 4)).toBe(0xffffffffn)
  expect(root.requester).toBe(0x0010)
})

import { expect, it, vi } from 'vitest'
import { Bus } from '../../lib/vmm/bus'

const device = () => ({ read: vi.fn(() => 7n), write: vi.fn() })

it('takes an access to the device that is there, with its own offset', () => {
  const bus = new Bus()
  const [low, high] = [device(), device()]
  bus.add(0x1000, 0x10, low)
  bus.add(0x2000, 0x10, high)
  expect(bus.read(0x2008, 4)).toBe(7n)
  bus.write(0x100f, 1n, 1)
  expect(high.read).toHaveBeenCalledWith(8, 4)
  expect(low.write).toHaveBeenCalledWith(15, 1n, 1)
})

it('reads all ones where there is nothing, or not all of it', () => {
  const bus = new Bus()
  bus.add(0x1000, 0x10, device())
  expect(bus.read(0x1010, 2)).toBe(0xffffn)
  expect(bus.read(0x100e, 4)).toBe(0xffffffffn)
  expect(() => {
    bus.write(0xfff, 0n, 8)
  }).not.toThrow()
})

it('gives a word to a device that takes numbers as one, where it is aligned there', () => {
  const bus = new Bus()
  const words = { ...device(), writeWord: vi.fn() }
  const other = device()
  bus.add(0x1000, 0x10, words)
  bus.add(0x2000, 0x10, other)
  bus.writeWord(0x1008, 0xffffffff)
  bus.writeWord(0x1006, 5)
  bus.writeWord(0x2004, 6)
  bus.writeWord(0x3000, 7)
  expect(words.writeWord.mock.calls).toEqual([[8, 0xffffffff]])
  expect(words.write.mock.calls).toEqual([[6, 5n, 4]])
  expect(other.write.mock.calls).toEqual([[4, 6n, 4]])
})

it('lets the device that came first answer, until it leaves', () => {
  const bus = new Bus()
  const [first, second] = [device(), device()]
  const place = bus.add(0, 8, first)
  bus.add(0, 8, second)
  bus.read(0, 1)
  place[Symbol.dispose]()
  bus.read(0, 1)
  expect(first.read).toHaveBeenCalledTimes(1)
  expect(second.read).toHaveBeenCalledTimes(1)
})

import { describe, expect, it } from 'vitest'
import fc from 'fast-check'
import { NetConfig } from '../../lib/pci/virtio-net-config'
import { STATUS } from '../../lib/pci/virtio-transport'
import { accesses, capabilityList, extendedList, find } from './support'
import { NEEDED, RegisterDriver, RecordingBackend, ResettingBackend, made } from './virtio-support'

const VENDOR_SPECIFIC = 9
const DEVICE = 0x2000
const ISR = 0x1000
const TABLE = 0x4000

/** As Linux finds them: by type, with BAR, offset and length. */
function structures(pci: ReturnType<typeof made>['pci']) {
  return capabilityList(pci.config)
    .filter(({ id }) => id === VENDOR_SPECIFIC)
    .map(({ offset }) => ({
      type: Number(pci.config.read(offset + 3, 1)),
      bar: Number(pci.config.read(offset + 4, 1)),
      offset: Number(pci.config.read(offset + 8, 4)),
      length: Number(pci.config.read(offset + 12, 4)),
      at: offset,
    }))
}

/** MSI-X on, vector n going to address 0xfee00000 with data n. */
function enableMsix({ pci }: ReturnType<typeof made>): number[] {
  const sent: number[] = []
  pci.onMessage(({ data }) => sent.push(data))
  for (let i = 0; i < 3; i++) {
    pci.bar.write(TABLE + 16 * i, 0xfee00000n, 8)
    pci.bar.write(TABLE + 16 * i + 8, BigInt(i), 8)
  }
  pci.config.write(find(pci.config, 0x11) + 2, 0x8000n, 2)
  return sent
}

describe('a virtio function (virtio 1.3 4.1.2)', () => {
  it('is 1af4:1041, an Ethernet controller, of revision 1', () => {
    const { pci } = made()
    expect(pci.config.read(0, 4)).toBe(0x10411af4n)
    expect(pci.config.read(8, 4)).toBe(0x02000001n)
    expect(pci.config.read(0x2e, 2)).toBeGreaterThanOrEqual(0x40n)
  })

  it('has one 64-bit BAR of 32 KiB', () => {
    const { pci } = made()
    for (let at = 0x10; at < 0x28; at += 4) pci.config.write(at, 0xffffffffn, 4)
    expect([0x10, 0x14, 0x18].map((at) => pci.config.read(at, 4))).toEqual([
      0xffff8004n,
      0xffffffffn,
      0n,
    ])
  })

  it('lists PCI Express, MSI-X, the five structures, and ATS', () => {
    const { pci } = made()
    expect(capabilityList(pci.config).map(({ id }) => id)).toEqual([0x10, 0x11, 9, 9, 9, 9, 9])
    expect(extendedList(pci.config).map(({ id }) => id)).toEqual([0x0f])
    expect(extendedList(made({ ats: false }).pci.config)).toEqual([])
  })

  it('4.1.4: says where the structures are, each inside the BAR', () => {
    const { pci } = made()
    expect(structures(pci).map(({ type, bar, length }) => [type, bar, length])).toEqual([
      [1, 0, 60],
      [2, 0, 8],
      [3, 0, 1],
      [4, 0, 12],
      [5, 0, 0],
    ])
    const places = structures(pci).slice(0, 4)
    for (const { offset, length } of places) expect(offset + length).toBeLessThan(pci.barBytes)
    expect(new Set(places.map(({ offset }) => offset >> 12)).size).toBe(4)
  })

  it('4.1.4.4: queue n is kicked at queue_notify_off times the multiplier', () => {
    const device = made({ queues: 4 })
    const { pci, driver, log } = device
    const notify = structures(pci)[1]
    const multiplier = Number(pci.config.read(notify.at + 16, 4))
    driver.start({ queues: [0, 1, 2, 3] })
    log.length = 0
    for (const queue of [3, 0, 2]) {
      driver.set('queueSelect', queue)
      const place = notify.offset + Number(driver.get('queueNotifyOff')) * multiplier
      expect(place).toBe(pci.notifyOffset(queue))
      pci.bar.write(place, BigInt(queue), 2)
    }
    expect(log).toEqual(['kick 3', 'kick 0', 'kick 2'])
  })

  it('has as many queues as it says', () => {
    expect(made({ queues: 6 }).driver.get('numQueues')).toBe(6n)
  })
})

describe('the common configuration in any width (virtio 1.3 4.1.3.1)', () => {
  it('64-bit fields may be written as two halves', () => {
    const { pci, driver } = made()
    pci.bar.write(32, 0x9abcdef0n, 4)
    pci.bar.write(36, 0x12345678n, 4)
    expect(driver.get('queueDesc')).toBe(0x123456789abcdef0n)
  })

  it('a part of a field keeps the rest of it', () => {
    const { pci, driver } = made()
    driver.set('queueDesc', 0x1111_2222_3333_4444n)
    pci.bar.write(35, 0xaan, 1)
    pci.bar.write(36, 0xbbbbn, 2)
    expect(driver.get('queueDesc')).toBe(0x1111_bbbb_aa33_4444n)
  })

  it('an access over several fields reaches all of them', () => {
    const { pci, driver } = made()
    pci.bar.write(20, 0x0001_0003n, 4)
    expect(driver.get('status')).toBe(3n)
    expect(driver.get('queueSelect')).toBe(1n)
    expect(pci.bar.read(20, 4)).toBe(0x0001_0003n)
  })

  it('bytes after the structure read as 0', () => {
    const { pci } = made()
    pci.bar.write(60, 0xffffffffn, 4)
    expect(pci.bar.read(60, 4)).toBe(0n)
  })

  it('4.1.5.1.2.1: a vector beyond the table reads back as NO_VECTOR', () => {
    const { driver } = made({ vectors: 3 })
    for (const name of ['configVector', 'queueVector'] as const) {
      expect(driver.get(name)).toBe(0xffffn)
      driver.set(name, 2)
      expect(driver.get(name)).toBe(2n)
      driver.set(name, 3)
      expect(driver.get(name)).toBe(0xffffn)
    }
  })
})

describe('the device configuration (virtio 1.3 5.1.4)', () => {
  it('has mac, status, max_virtqueue_pairs and mtu', () => {
    const { pci } = made()
    const bytes = Array.from({ length: 12 }, (_, i) => Number(pci.bar.read(DEVICE + i, 1)))
    expect(bytes).toEqual([0x52, 0x54, 0, 0x12, 0x34, 0x56, 1, 0, 1, 0, 0xdc, 5])
    expect(pci.bar.read(DEVICE + 10, 2)).toBe(1500n)
    expect(pci.bar.read(DEVICE, 8)).toBe(0x0001_5634_1200_5452n)
    expect(pci.bar.read(DEVICE + 12, 1)).toBe(0n)
    expect(pci.bar.read(DEVICE + 8, 8)).toBe(0n)
  })

  it('cannot be written', () => {
    const { pci } = made()
    pci.bar.write(DEVICE, 0n, 8)
    expect(pci.bar.read(DEVICE, 4)).toBe(0x12005452n)
  })

  it('4.1.4.3.1: a change has another generation, and an interrupt once the driver is there', () => {
    const device = made()
    const sent = enableMsix(device)
    const { driver, configuration, pci } = device
    configuration.setLink('down')
    expect(sent).toEqual([])
    driver.start()
    driver.set('configVector', 2)
    const generation = driver.get('generation')
    configuration.setLink('up')
    configuration.setLink('up')
    expect(driver.get('generation')).toBe(generation + 1n)
    expect(pci.bar.read(DEVICE + 6, 2)).toBe(1n)
    expect(sent).toEqual([2])
  })

  it('the generation has 8 bits', () => {
    const { driver, configuration } = made()
    for (let i = 0; i < 256; i++) configuration.setLink(i % 2 === 0 ? 'down' : 'up')
    expect(driver.get('generation')).toBe(0n)
  })

  it.each<[string, ConstructorParameters<typeof NetConfig>[0], new () => Error]>([
    ['an address of five bytes', { mac: '52:54:00:12:34' }, TypeError],
    ['bytes that are seven', { mac: new Uint8Array(7) }, TypeError],
    ['a multicast address', { mac: '01:00:5e:00:00:01' }, RangeError],
    ['an MTU of 67', { mtu: 67 }, RangeError],
    ['an MTU of 65536', { mtu: 65536 }, RangeError],
    ['no queue pair', { maxQueuePairs: 0 }, RangeError],
  ])('refuses %s', (_, options, error) => {
    expect(() => new NetConfig(options)).toThrow(error)
  })

  it('offers the features of the fields that were given', () => {
    expect(new NetConfig().features).toBe(1n << 16n)
    expect(new NetConfig({ mac: Uint8Array.of(2, 0, 0, 0, 0, 1) }).features).toBe(0x10020n)
    expect(new NetConfig({ mtu: 9000, link: 'down' }).features).toBe(0x10008n)
  })
})

describe('interrupts (virtio 1.3 4.1.5)', () => {
  it('with MSI-X are the vector of the queue', () => {
    const device = made()
    const sent = enableMsix(device)
    const { driver, backend } = device
    driver.start({ queues: [] })
    driver.set('status', 0)
    driver.status(STATUS.ACKNOWLEDGE | STATUS.DRIVER)
    driver.accept(NEEDED)
    driver.status(STATUS.FEATURES_OK)
    driver.queue(0, {}, 1)
    driver.queue(1, {}, 0xffff)
    driver.status(STATUS.DRIVER_OK)
    backend.call(0)
    backend.call(1)
    expect(sent).toEqual([1])
  })

  it('without MSI-X assert INTA until the ISR status is read (4.1.4.5)', () => {
    const { driver, backend, pci, configuration } = made()
    const levels: boolean[] = []
    pci.onInterrupt((asserted) => levels.push(asserted))
    driver.start()
    backend.call(0)
    backend.call(1)
    expect(levels).toEqual([true])
    expect(pci.config.read(6, 1) & 8n).toBe(8n)
    expect(pci.bar.read(ISR, 1)).toBe(1n)
    expect(levels).toEqual([true, false])
    expect(pci.config.read(6, 1) & 8n).toBe(0n)
    configuration.setLink('down')
    backend.call(0)
    expect(pci.bar.read(ISR, 1)).toBe(3n)
    expect(pci.bar.read(ISR, 1)).toBe(0n)
  })

  it('Interrupt Disable keeps INTA silent, not the status', () => {
    const { driver, backend, pci } = made()
    const levels: boolean[] = []
    pci.onInterrupt((asserted) => levels.push(asserted))
    driver.start()
    driver.enableFunction(0x406n)
    backend.call(0)
    expect(levels).toEqual([])
    expect(pci.config.read(6, 1) & 8n).toBe(8n)
    driver.enableFunction()
    expect(levels).toEqual([true])
    enableMsix({ ...made(), pci })
    expect(levels).toEqual([true, false])
  })

  it('3.1.1: are not sent before DRIVER_OK, nor after a reset', () => {
    const device = made()
    const { driver, backend, pci } = device
    const levels: boolean[] = []
    pci.onInterrupt((asserted) => levels.push(asserted))
    backend.call(0)
    driver.start()
    driver.set('status', 0)
    backend.call(0)
    expect(levels).toEqual([])
  })

  it('2.1.2: DEVICE_NEEDS_RESET is a change of the configuration, told once', () => {
    const { driver, backend, pci } = made()
    driver.start()
    backend.fail(0)
    expect(pci.bar.read(ISR, 1)).toBe(2n)
    backend.fail(1)
    expect(pci.bar.read(ISR, 1)).toBe(0n)
  })

  it('with MSI-X wait until the function may write memory', () => {
    const device = made()
    const { driver, backend, pci, configuration } = device
    driver.start()
    driver.set('configVector', 2)
    pci.config.write(4, 2n, 2)
    const sent = enableMsix(device)
    configuration.setLink('down')
    expect(sent).toEqual([])
    driver.enableFunction()
    expect(sent).toEqual([2])
    expect(backend.running).toBe(true)
  })

  it('before bus mastering is on no message leaves', () => {
    const device = made()
    const sent = enableMsix(device)
    device.pci.msix.raise(1)
    expect(sent).toEqual([])
    device.driver.enableFunction()
    expect(sent).toEqual([1])
  })

  it('2.4.1: a reset deasserts INTA and clears the ISR status', () => {
    const { driver, backend, pci } = made()
    const levels: boolean[] = []
    pci.onInterrupt((asserted) => levels.push(asserted))
    driver.start()
    backend.call(0)
    driver.set('status', 0)
    expect(levels).toEqual([true, false])
    expect(pci.config.read(6, 1) & 8n).toBe(0n)
    expect(pci.bar.read(ISR, 1)).toBe(0n)
  })
})

describe('configuration access to structures (virtio 1.3 4.1.4.9)', () => {
  function window() {
    const device = made()
    const { at } = structures(device.pci)[4]
    const { config } = device.pci
    return {
      ...device,
      at,
      aim: (offset: number, length: number, bar = 0) => {
        config.write(at + 4, BigInt(bar), 1)
        config.write(at + 8, BigInt(offset), 4)
        config.write(at + 12, BigInt(length), 4)
      },
    }
  }

  it('reads what the BAR has', () => {
    const { pci, at, aim } = window()
    aim(DEVICE, 4)
    expect(pci.config.read(at + 16, 4)).toBe(0x12005452n)
    aim(DEVICE + 5, 1)
    expect(pci.config.read(at + 16, 1)).toBe(0x56n)
    aim(18, 2)
    expect(pci.config.read(at + 16, 2)).toBe(2n)
  })

  it('writes to the BAR, in the length that was set', () => {
    const { pci, driver, at, aim } = window()
    aim(20, 1)
    pci.config.write(at + 16, 0xffffff03n, 4)
    expect(driver.get('status')).toBe(3n)
    expect(driver.get('queueSelect')).toBe(0n)
  })

  it('a driver can be run through it alone', () => {
    const { pci, at, aim, log, driver } = window()
    const through = new RegisterDriver(
      Object.create(pci, {
        bar: {
          value: {
            read: (offset: number, size: number): bigint => {
              if (size === 8) throw new Error('too wide')
              aim(offset, size)
              return pci.config.read(at + 16, size)
            },
            write: (offset: number, value: bigint, size: number): void => {
              for (let i = 0; i < size; i += 4) {
                aim(offset + i, Math.min(size, 4))
                pci.config.write(at + 16, (value >> BigInt(8 * i)) & 0xffffffffn, 4)
              }
            },
          },
        },
      }) as typeof pci,
    )
    expect(through.start()).toBe(15)
    through.kick(1)
    expect(log.at(-1)).toBe('kick 1')
    expect(driver.get('status')).toBe(15n)
  })

  it.each([
    ['another BAR', 20, 1, 1],
    ['a length of 0', 20, 0, 0],
    ['a length of 3', 20, 3, 0],
    ['a length of 8', 16, 8, 0],
    ['an offset that is not aligned', 18, 4, 0],
    ['an offset beyond the BAR', 0x8000, 1, 0],
    ['an end beyond the BAR', 0xfffffffc, 4, 0],
  ])('is no access with %s', (_, offset, length, bar) => {
    const { pci, at, aim, driver } = window()
    aim(offset, length, bar)
    pci.config.write(at + 16, 0x03030303n, 4)
    expect(pci.config.read(at + 16, 4)).toBe(0x03030303n)
    expect(driver.get('status')).toBe(0n)
  })
})

describe('resets', () => {
  it('PCIe 5.0 6.6.2: a function level reset stops the device and clears all that it had', () => {
    const device = made()
    const { pci, driver, backend } = device
    const ats: [boolean, number][] = []
    pci.onAts((enabled, stu) => ats.push([enabled, stu]))
    enableMsix(device)
    driver.start()
    pci.config.write(0x100 + 6, 0x8001n, 2)
    pci.config.write(0x10, 0xfe000000n, 4)
    const express = find(pci.config, 0x10)
    pci.config.write(express + 8, pci.config.read(express + 8, 2) | 0x8000n, 2)
    expect(backend.running).toBe(false)
    expect(backend.log.filter((entry) => entry === 'stop')).toHaveLength(1)
    expect(driver.get('status')).toBe(0n)
    expect(pci.msix.enabled).toBe(false)
    expect(ats).toEqual([
      [true, 1],
      [false, 0],
    ])
    expect(pci.config.read(4, 2)).toBe(0n)
    expect(pci.config.barAddress(0)).toBe(0n)
    expect(driver.start()).toBe(15)
  })

  it("the bus's reset does the same", () => {
    const { pci, driver, backend } = made()
    driver.start()
    pci.reset()
    expect(backend.running).toBe(false)
    expect(pci.config.read(4, 2)).toBe(0n)
  })

  it('a reset of the device alone leaves configuration space and MSI-X', () => {
    const device = made()
    enableMsix(device)
    const { pci, driver } = device
    driver.start()
    driver.set('status', 0)
    expect(pci.msix.enabled).toBe(true)
    expect(pci.config.busMaster).toBe(true)
  })

  it('disposing stops the backend and lets go of it', () => {
    const { pci, driver, backend } = made()
    driver.start()
    pci[Symbol.dispose]()
    expect(backend.running).toBe(false)
    expect(backend.listeners).toBe(0)
  })

  it('ATS is heard by 8, 16 and 32 bits, as Linux and as others write it', () => {
    const { pci } = made()
    const heard: boolean[] = []
    pci.onAts((enabled) => heard.push(enabled))
    pci.config.write(0x106, 0x8000n, 2)
    pci.config.write(0x107, 0n, 1)
    pci.config.write(0x104, 0x80000000n, 4)
    expect(heard).toEqual([true, false, true])
  })
})

describe('a hostile guest', () => {
  /** What a guest can do: the two register windows, and everything that the backend may do then. */
  const steps = fc.record({
    window: fc.constantFrom('config', 'bar', 'common', 'common', 'call', 'fail', 'start'),
    accesses: accesses(0x8010, 12),
  })

  it('cannot make a write throw, run a backend out of order, or write what is read-only', () => {
    const devices = [new RecordingBackend(), new ResettingBackend()].map((backend) => {
      const failures: unknown[] = []
      const device = made({ backend })
      device.pci.onFailure((cause) => failures.push(cause))
      return { ...device, failures }
    })
    let runs = 0
    fc.assert(
      fc.property(fc.array(steps, { maxLength: 6 }), fc.constantFrom(0, 1), (list, which) => {
        runs++
        const { pci, driver, backend, failures } = devices[which]
        backend.log.length = 0
        pci.reset()
        for (const { window, accesses: some } of list) {
          if (window === 'call') backend.call(some.length % 2)
          else if (window === 'fail') backend.fail(some.length % 2)
          else if (window === 'start') driver.start()
          for (const { offset, size, value, write } of some) {
            const space = window === 'config' ? pci.config : pci.bar
            const at = window === 'common' ? offset % 64 : offset
            if (write) space.write(at, value, size)
            else if (space.read(at, size) >> BigInt(8 * size) !== 0n) throw new Error('too wide')
          }
          expect(backend.running).toBe(pci.transport.running)
        }
        // The recorder throws at a second start, at a stop or kick without a start.
        expect(failures).toEqual([])
        expect(pci.config.read(0, 4)).toBe(0x10411af4n)
        expect(capabilityList(pci.config)).toHaveLength(7)
        pci.reset()
        expect(backend.running).toBe(false)
        expect(driver.start()).toBe(15)
        expect(backend.running).toBe(true)
      }),
      { numRuns: 10_000 },
    )
    expect(runs).toBeGreaterThanOrEqual(10_000)
  })
})

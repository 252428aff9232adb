import { describe, expect, it } from 'vitest'
import { InvalidState } from '../../lib/errors'
import { features } from '../../lib/virtio/net'
import { STATUS } from '../../lib/pci/virtio-transport'
import { NEEDED, OFFERED, RING, RecordingBackend, ResettingBackend, made } from './virtio-support'

const { ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, DEVICE_NEEDS_RESET, FAILED } = STATUS
const READY = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK

describe('features (virtio 1.3 2.2)', () => {
  it('offered are those of the backend and of the configuration', () => {
    const configured = features('VIRTIO_NET_F_MAC', 'VIRTIO_NET_F_STATUS', 'VIRTIO_NET_F_MTU')
    expect(made().driver.offered()).toBe(OFFERED | configured)
  })

  it('of the kernel alone are not offered: they would mean something else to a driver', () => {
    const backend = new RecordingBackend()
    backend.features |=
      features('VHOST_F_LOG_ALL', 'VIRTIO_F_ANY_LAYOUT', 'VIRTIO_F_RING_PACKED') |
      features('VIRTIO_F_NOTIFICATION_DATA', 'VIRTIO_F_IN_ORDER')
    expect(made({ backend }).driver.offered()).toBe(made().driver.offered())
  })

  it('can be fewer, by an option', () => {
    const { driver } = made({ features: NEEDED })
    expect(driver.offered()).toBe(NEEDED)
  })

  it('are 0 beyond the first two words', () => {
    const { driver } = made()
    driver.set('deviceFeatureSelect', 2)
    expect(driver.get('deviceFeature')).toBe(0n)
    driver.set('deviceFeatureSelect', 0xffffffffn)
    expect(driver.get('deviceFeature')).toBe(0n)
  })

  it.each<[string, 'VIRTIO_F_VERSION_1' | 'VIRTIO_F_ACCESS_PLATFORM']>([
    ['modern', 'VIRTIO_F_VERSION_1'],
    ['behind an IOMMU', 'VIRTIO_F_ACCESS_PLATFORM'],
  ])('of a backend must let it be %s', (_, name) => {
    const backend = new RecordingBackend()
    backend.features &= ~features(name)
    expect(() => made({ backend })).toThrow(InvalidState)
  })

  it.each([
    ['without VERSION_1', features('VIRTIO_F_ACCESS_PLATFORM')],
    [
      'without ACCESS_PLATFORM (6.1: a device may fail to operate then)',
      features('VIRTIO_F_VERSION_1'),
    ],
    ['with one that was not offered', NEEDED | features('VIRTIO_NET_F_CTRL_VQ')],
    ['with bit 63', NEEDED | (1n << 63n)],
  ])('%s are not agreed on: FEATURES_OK does not stick', (_, accept) => {
    const { driver, log } = made()
    expect(driver.start({ accept })).toBe(ACKNOWLEDGE | DRIVER)
    expect(log).toEqual([])
  })

  it("agreed on are the driver's, and the backend gets those that it has offered", () => {
    const { driver, backend } = made()
    const accept = NEEDED | features('VIRTIO_NET_F_MAC', 'VIRTIO_NET_F_MRG_RXBUF')
    driver.start({ accept })
    expect(backend.agreed).toBe(NEEDED | features('VIRTIO_NET_F_MRG_RXBUF'))
    driver.set('driverFeatureSelect', 0)
    expect(driver.get('driverFeature')).toBe(accept & 0xffffffffn)
  })

  it('3.1.1: cannot be changed after FEATURES_OK', () => {
    const { driver, pci } = made()
    driver.start()
    driver.accept(0n)
    expect(pci.transport.driverFeatures).toBe(NEEDED)
  })

  it('without an IOMMU ACCESS_PLATFORM is neither offered nor asked for', () => {
    const { driver } = made({ accessPlatform: false })
    expect(driver.offered() & features('VIRTIO_F_ACCESS_PLATFORM')).toBe(0n)
    expect(driver.start({ accept: features('VIRTIO_F_VERSION_1') })).toBe(READY)
  })
})

describe('device status (virtio 1.3 2.1, 3.1)', () => {
  it('a driver that goes through 3.1.1 gets the backend configured, then started', () => {
    const { driver, backend, log } = made()
    expect(driver.start()).toBe(READY)
    expect(log).toEqual(['setFeatures', 'setQueue 0', 'setQueue 1', 'start', 'kick 0', 'kick 1'])
    expect(backend.rings.get(1)).toEqual({ size: 256, ...RING })
  })

  it('2.1.1: a bit that is set stays set until the reset', () => {
    const { driver } = made()
    driver.start()
    driver.set('status', ACKNOWLEDGE)
    expect(driver.get('status')).toBe(BigInt(READY))
  })

  it('DRIVER_OK is nothing before FEATURES_OK', () => {
    const { driver, log } = made()
    driver.enableFunction()
    driver.queue(0)
    expect(driver.status(ACKNOWLEDGE | DRIVER | DRIVER_OK)).toBe(ACKNOWLEDGE | DRIVER)
    expect(log).toEqual([])
  })

  it('FAILED is kept', () => {
    const { driver } = made()
    expect(driver.status(FAILED)).toBe(FAILED)
  })

  it('bits that do not exist are not kept', () => {
    const { driver } = made()
    expect(driver.status(0x30)).toBe(0)
    expect(driver.status(DEVICE_NEEDS_RESET)).toBe(0)
  })

  it('2.4.1: writing 0 stops the backend, and reads 0 at once', () => {
    const { driver, backend, log, pci } = made()
    driver.start()
    driver.set('configVector', 1)
    driver.set('status', 0)
    expect(driver.get('status')).toBe(0n)
    expect(backend.running).toBe(false)
    expect(log.at(-1)).toBe('stop')
    expect(pci.transport.driverFeatures).toBe(0n)
    expect(driver.get('queueSelect')).toBe(0n)
    expect(driver.get('configVector')).toBe(0xffffn)
    for (const name of ['queueEnable', 'queueDesc', 'queueDriver', 'queueDevice'] as const) {
      expect(driver.get(name)).toBe(0n)
    }
  })

  it('a reset of what does not run asks nothing of the backend', () => {
    const { driver, log } = made()
    driver.set('status', 0)
    driver.set('status', 0)
    expect(log).toEqual([])
  })

  it('2.4: the next driver gets none of the queues that the last one had placed', () => {
    const backend = new ResettingBackend()
    const { driver, log } = made({ backend })
    driver.start()
    log.length = 0
    driver.start({ queues: [1] })
    expect(log).toEqual([
      ...['stop', 'resetQueue 0', 'resetQueue 1'],
      ...['setFeatures', 'setQueue 1', 'start', 'kick 1'],
    ])
  })

  it('can be gone through again after a reset', () => {
    const { driver, log } = made()
    driver.start()
    expect(driver.start()).toBe(READY)
    expect(log.filter((entry) => /^(start|stop)$/.test(entry))).toEqual(['start', 'stop', 'start'])
  })

  it('a device without an enabled queue is not started', () => {
    const { driver, log } = made()
    expect(driver.start({ queues: [] })).toBe(READY)
    expect(log).toEqual(['setFeatures'])
  })

  it('only queues that are enabled are configured', () => {
    const { driver, log } = made()
    driver.start({ queues: [1] })
    expect(log).toEqual(['setFeatures', 'setQueue 1', 'start', 'kick 1'])
  })
})

describe('a host that refuses', () => {
  it('2.1.2: features: FEATURES_OK does not stick, and the device needs a reset', () => {
    const { driver, backend, pci } = made()
    const causes: unknown[] = []
    pci.onFailure((cause) => causes.push(cause))
    backend.refuse = 'setFeatures'
    expect(driver.start()).toBe(ACKNOWLEDGE | DRIVER | DEVICE_NEEDS_RESET)
    expect(causes).toEqual([new Error('setFeatures refused')])
  })

  it("2.2.1: a combination of features that can't be is the driver's mistake, not a failure", () => {
    const { driver, backend, pci } = made()
    const causes: unknown[] = []
    pci.onFailure((cause) => causes.push(cause))
    backend.refuse = 'setFeatures'
    backend.refusal = new RangeError('one requires the other')
    expect(driver.start()).toBe(ACKNOWLEDGE | DRIVER)
    expect(causes).toEqual([])
  })

  it.each(['setQueue', 'start'])('2.1.2: %s: the device does not run and needs a reset', (name) => {
    const { driver, backend, pci } = made()
    const causes: unknown[] = []
    pci.onFailure((cause) => causes.push(cause))
    backend.refuse = name
    expect(driver.start()).toBe(READY | DEVICE_NEEDS_RESET)
    expect(pci.transport.running).toBe(false)
    expect(causes).toEqual([new Error(`${name} refused`)])
    driver.enableFunction()
    expect(pci.transport.running).toBe(false)
  })

  it('is asked again after the reset', () => {
    const { driver, backend } = made()
    backend.refuse = 'start'
    driver.start()
    backend.refuse = undefined
    expect(driver.start()).toBe(READY)
    expect(backend.running).toBe(true)
  })

  it("a queue that can't go on needs a reset of the device", () => {
    const { driver, backend } = made()
    driver.start()
    backend.fail(1)
    expect(driver.get('status')).toBe(BigInt(READY | DEVICE_NEEDS_RESET))
    driver.set('status', 0)
    expect(backend.running).toBe(false)
  })
})

describe('queues (virtio 1.3 4.1.4.3)', () => {
  it.each([
    ['a power of two up to the maximum', 64, 64n],
    ['one', 1, 1n],
    ['not a power of two', 96, 256n],
    ['0', 0, 256n],
    ['more than the maximum', 512, 256n],
  ])('a size of %s', (_, size, reads) => {
    const { driver } = made()
    driver.set('queueSize', size)
    expect(driver.get('queueSize')).toBe(reads)
  })

  it('4.1.4.3.1: one that is not there reads as size 0, and takes nothing', () => {
    const { driver, backend } = made()
    driver.queue(2)
    expect(driver.get('queueSize')).toBe(0n)
    expect(driver.get('queueEnable')).toBe(0n)
    expect(driver.get('queueDesc')).toBe(0n)
    driver.start()
    expect(backend.rings.size).toBe(2)
  })

  it('keep size and addresses once they are enabled', () => {
    const { driver } = made()
    driver.queue(0)
    driver.set('queueSize', 16)
    driver.set('queueDesc', 0)
    driver.set('queueEnable', 0)
    expect(driver.get('queueSize')).toBe(256n)
    expect(driver.get('queueDesc')).toBe(RING.desc)
    expect(driver.get('queueEnable')).toBe(1n)
  })

  it.each([
    ['2.7: a descriptor table not aligned to 16', { desc: 0x10008n }],
    ['2.7: an available ring not aligned to 2', { avail: 0x11001n }],
    ['2.7: a used ring not aligned to 4', { used: 0x12002n }],
    ['a used ring beyond 2^64', { used: 0xffff_ffff_ffff_fffcn }],
    ['a descriptor table beyond 2^64', { desc: 0xffff_ffff_ffff_f010n }],
  ])('%s needs a reset, and is not enabled', (_, ring) => {
    const { driver } = made()
    driver.queue(0, ring)
    expect(driver.get('queueEnable')).toBe(0n)
    expect(driver.get('status')).toBe(BigInt(DEVICE_NEEDS_RESET))
  })

  it('can end with the address space', () => {
    const { driver } = made()
    driver.queue(0, { desc: 0xffff_ffff_ffff_f000n })
    expect(driver.get('queueEnable')).toBe(1n)
  })

  it('are not enabled while the device runs', () => {
    const { driver, log } = made()
    driver.start({ queues: [0] })
    driver.queue(1)
    expect(driver.get('queueEnable')).toBe(0n)
    expect(log).not.toContain('setQueue 1')
  })

  it('are kicked only where they are enabled and the device runs', () => {
    const { driver, log } = made()
    driver.kick(0)
    driver.start({ queues: [0] })
    log.length = 0
    driver.kick(0)
    driver.kick(1)
    driver.kick(2)
    driver.kick(1023)
    driver.set('status', 0)
    driver.kick(0)
    expect(log).toEqual(['kick 0', 'stop'])
  })
})

describe('queue reset (virtio 1.3 2.6.1, 4.1.4.3)', () => {
  const withReset = NEEDED | features('VIRTIO_F_RING_RESET')

  it('is offered where the backend can do it', () => {
    const reset = features('VIRTIO_F_RING_RESET')
    expect(made().driver.offered() & reset).toBe(0n)
    expect(made({ backend: new ResettingBackend() }).driver.offered() & reset).toBe(reset)
  })

  it('takes one queue back, and lets it be enabled again while the device runs', () => {
    const backend = new ResettingBackend()
    const { driver, log } = made({ backend })
    driver.start({ accept: withReset })
    log.length = 0
    driver.set('queueSelect', 1)
    driver.set('queueReset', 1)
    expect(driver.get('queueReset')).toBe(0n)
    expect(driver.get('queueEnable')).toBe(0n)
    driver.kick(1)
    driver.queue(1, { size: 32 })
    driver.kick(1)
    expect(log).toEqual(['resetQueue 1', 'setQueue 1', 'kick 1'])
    expect(backend.rings.get(1)?.size).toBe(32)
  })

  it('is nothing where the driver has not accepted it', () => {
    const { driver, log } = made({ backend: new ResettingBackend() })
    driver.start()
    driver.set('queueSelect', 1)
    driver.set('queueReset', 1)
    expect(driver.get('queueEnable')).toBe(1n)
    expect(log).not.toContain('resetQueue 1')
  })
})

describe('bus mastering (PCIe 5.0 7.5.1.1.3)', () => {
  it('without it the device does not start; with it it does', () => {
    const { driver, log, pci } = made()
    driver.start()
    driver.set('status', 0)
    pci.config.write(4, 2n, 2)
    log.length = 0
    driver.status(ACKNOWLEDGE | DRIVER)
    driver.accept(NEEDED)
    driver.status(FEATURES_OK)
    driver.queue(0)
    driver.status(DRIVER_OK)
    expect(log).toEqual(['setFeatures', 'setQueue 0'])
    driver.enableFunction()
    expect(log).toEqual(['setFeatures', 'setQueue 0', 'start', 'kick 0'])
  })

  it('taken away stops the backend, and given back starts it where it was', () => {
    const { driver, log, pci } = made()
    driver.start()
    log.length = 0
    pci.config.write(4, 2n, 2)
    driver.kick(0)
    expect(log).toEqual(['stop'])
    expect(driver.get('status')).toBe(BigInt(READY))
    driver.enableFunction()
    expect(log).toEqual(['stop', 'start', 'kick 0', 'kick 1'])
  })
})

describe('the options', () => {
  it.each([
    ['no queue', { queues: 0 }],
    ['1025 queues', { queues: 1025 }],
    ['a queue size of 100', { queueSize: 100 }],
    ['a queue size of 65536', { queueSize: 65536 }],
    ['257 vectors', { vectors: 257 }],
    ['no vector', { vectors: 0 }],
  ])('refuse %s', (_, options) => {
    expect(() => made(options)).toThrow(RangeError)
  })
})

import { inspect } from 'node:util'
import { describe, expect, it } from 'vitest'
import { MiB, gpa, iova } from '../lib/address'
import { IntelIommuDriver } from '../lib/guest/intel-iommu-driver'
import { IovaAllocator } from '../lib/guest/iova-allocator'
import { NetDriver } from '../lib/guest/net-driver'
import { PageAllocator } from '../lib/guest/page-allocator'
import { TableBuilder } from '../lib/guest/table-builder'
import { IntelIommu } from '../lib/iommu/intel/intel-iommu'
import { Shadow } from '../lib/iotlb/shadow'
import { MissHandler } from '../lib/iotlb/miss-handler'
import { AddressSpaceAlias } from '../lib/memory/alias'
import { GuestMemory } from '../lib/memory/guest-memory'
import { Monitor } from '../lib/monitor/monitor'
import { VirtioPci } from '../lib/pci/virtio-pci'
import { NetConfig } from '../lib/pci/virtio-net-config'
import { FakeAddressSpace } from '../lib/testing/fake-address-space'
import { FakeVhost } from '../lib/testing/fake-channel'
import { LoopbackDevice } from '../lib/testing/loopback-device'
import { ExposureMeter } from '../lib/trace/exposure'
import { physicalView } from '../lib/virtio/dma-view'
import { DriverQueue } from '../lib/virtio/driver-queue'
import { SplitQueue } from '../lib/virtio/split-queue'
import { RecordingBackend } from './pci/virtio-support'

const line = (value: unknown): string => inspect(value, { breakLength: Infinity })

describe('what objects show of themselves', () => {
  it('guest memory: its regions, and whether somebody needs it', () => {
    using memory = GuestMemory.allocate(2 * MiB)
    expect(line(memory)).toBe(
      'GuestMemory { bytes: 2097152, regions: [ 0x0-0x1fffff ], pinned: false }',
    )
    memory.close()
    expect(line(memory)).toBe('GuestMemory { bytes: 0, regions: [], closed: true }')
  })

  it('an IOMMU and its driver: what is switched on, and what is mapped', () => {
    using memory = GuestMemory.allocate(8 * MiB)
    const iommu = new IntelIommu(memory)
    expect(line(iommu)).toBe("IntelIommu { translation: 'off', queue: 'off', rootTable: 0x0 }")
    using driver = new IntelIommuDriver(iommu, memory, { requester: '00:03.0', mode: 'strict' })
    driver.enable()
    driver.map(gpa(0x1000), 4096, 'read')
    expect(line(iommu)).toMatch(/^IntelIommu \{ translation: 'on', queue: 'on', rootTable: 0x[1-9]/)
    expect(line(driver)).toMatch(
      /^IntelIommuDriver \{ mode: 'strict', requester: 00:03.0, enabled: true, mapped: 1, /,
    )
  })

  it('a shadow: what the device holds, the oldest first', () => {
    const shadow = new Shadow(4)
    shadow.insert(16, 17, 0, 1)
    shadow.insert(2, 2, 0, 3)
    expect(line(shadow)).toBe(
      'Shadow { entries: 2, limit: 4, pages: 3, evictions: 0, ' +
        'ranges: [ 0x10000-0x11fff read, 0x2000-0x2fff readwrite ] }',
    )
  })

  it('a miss handler: its policy, its counters and its shadow', () => {
    using memory = GuestMemory.allocate(2 * MiB)
    const channel = new FakeVhost()
    using handler = new MissHandler({ channel, addressSpace: new FakeAddressSpace(), memory })
    expect(line(handler)).toMatch(/^MissHandler \{ state: 'answering', lookAhead: 'off', /)
    expect(line(handler)).toContain('shadow: Shadow { entries: 0')
  })

  it('a driver: its state and its counters', async () => {
    using memory = GuestMemory.allocate(8 * MiB)
    const nic = new LoopbackDevice({ memory })
    using driver = NetDriver.attach(nic, { memory, mapping: 'off' })
    expect(line(driver)).toMatch(/^NetDriver \{ state: 'new', mapping: 'off', /)
    await driver.start()
    expect(line(driver)).toContain("state: 'started'")
  })

  it('a channel of tests: its entries and its questions', () => {
    expect(line(new FakeVhost({ limit: 8 }))).toMatch(
      /^FakeVhost \{ limit: 8, entries: 0, unread: 0, pending: 0, counters: /,
    )
  })

  it('the two views of a ring: what is offered, and what is free', () => {
    using memory = GuestMemory.allocate(2 * MiB)
    const ring = { size: 4, desc: 0x1000n, avail: 0x2000n, used: 0x3000n }
    const driver = new DriverQueue(memory, ring)
    driver.add([{ address: 0x4000n, length: 60, writable: false }], 0)
    driver.publish()
    expect(line(driver)).toBe('DriverQueue { size: 4, free: 3, inFlight: 1, availIndex: 1 }')
    expect(line(new SplitQueue(physicalView(memory), ring))).toBe(
      'SplitQueue { size: 4, availIndex: 0 }',
    )
  })

  it('an allocator: what is left', () => {
    using memory = GuestMemory.allocate(2 * MiB)
    const pages = new PageAllocator(memory)
    expect(line(pages)).toMatch(
      /^PageAllocator \{ freePages: \d+, extents: \[ \{ first: \d+, pages: /,
    )
    expect(line(pages)).toContain(`freePages: ${pages.freePages},`)
  })

  it('an allocator of iovas, and the tables that lead there', () => {
    const iovas = new IovaAllocator({ firstPage: 1, lastPage: 100 })
    iovas.reserve(10, 19)
    expect(line(iovas)).toBe(
      'IovaAllocator { freePages: [ { first: 1, last: 9 }, { first: 20, last: 100 } ], ' +
        'cachedRanges: 0 }',
    )
    using memory = GuestMemory.allocate(2 * MiB)
    const tables = new TableBuilder(memory, new PageAllocator(memory), 4)
    expect(line(tables)).toMatch(/^TableBuilder \{ levels: 4, rootPage: 0x[0-9a-f]+ \}$/)
  })

  it('an address space and its alias: whose it is, and what it stands for', () => {
    using memory = GuestMemory.allocate(2 * MiB)
    const space = new IntelIommu(memory).addressSpace('00:03.0')
    expect(line(space)).toBe(
      "IntelAddressSpace { requester: 00:03.0, state: 'off', ats: false, generation: 0, " +
        'notifiers: 0 }',
    )
    const alias = new AddressSpaceAlias(space, {
      range: { first: iova(0x4000), last: iova(0x5fff) },
      target: iova(0x1000),
    })
    expect(line(alias)).toMatch(
      /^AddressSpaceAlias \{ window: 0x4000-0x5fff, standsFor: 0x1000, target: IntelAddressSpace /,
    )
  })

  it('devices: how far the driver has come, and what they counted', () => {
    using memory = GuestMemory.allocate(2 * MiB)
    using device = new LoopbackDevice({ memory })
    expect(line(device)).toBe(
      'LoopbackDevice { started: false, queues: 2, features: 0x0, transmitted: 0, received: 0, ' +
        'dropped: 0, errors: 0 }',
    )
    using pci = new VirtioPci({
      backend: new RecordingBackend(),
      configuration: new NetConfig(),
      queues: 2,
    })
    expect(line(pci)).toMatch(/^VirtioPci \{ status: 0x0, memorySpace: false, busMaster: false, /)
    expect(line(pci.config)).toContain('id: 0x10411af4')
  })

  it('meters: what they read', () => {
    const meter = new ExposureMeter(() => 7)
    expect(line(meter)).toMatch(/^ExposureMeter \{ seconds: 0, staleBytes: 0, byteSeconds: 0, /)
    using monitor = new Monitor([])
    expect(line(monitor)).toBe('Monitor { devices: [] }')
  })

  it('no more than a name where the depth is used up', () => {
    using memory = GuestMemory.allocate(2 * MiB)
    expect(line({ a: { b: { memory } } })).toContain('[GuestMemory]')
  })
})

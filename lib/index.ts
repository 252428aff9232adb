/** The public surface; nothing is defined here. */
export {
  GiB,
  KiB,
  MiB,
  accessBits,
  accessOf,
  gpa,
  hva,
  iova,
  iovaOfPage,
  iovaRange,
  pageOf,
} from './address'
export type { Access, AccessBits, Gpa, Hva, Iova, Range } from './address'
export { InvalidState, SystemError } from './errors'
export type { InvalidStateCode, SystemErrorDetail } from './errors'
export { raw } from './raw'
export type { Descriptor, Poller, RawListener, RawMapping, RawPollOptions } from './raw'

export { GuestMemory } from './memory/guest-memory'
export type { HugePages, MemoryRegion, RegionOptions, SharedMemory } from './memory/guest-memory'
export { AddressSpaceAlias } from './memory/alias'
export type { AliasWindow } from './memory/alias'
export { PageTranslation } from './memory/address-space'
export type {
  AddressSpace,
  AddressSpaceState,
  Fault,
  FaultReason,
  InvalidationSource,
  Notifier,
  SharedAddressSpaceMaker,
  SharedTranslation,
  Translation,
} from './memory/address-space'
export type { Region } from './memory/region'

export { requesterName, sourceId } from './iommu/iommu'
export type { Iommu, MmioDevice, Requester, WalkStep } from './iommu/iommu'
export { IntelIommu } from './iommu/intel/intel-iommu'
export type { Capabilities, IntelIommuOptions } from './iommu/intel/capabilities'
export type { IntelIommuEvents, RecordedFault } from './iommu/intel/intel-iommu'
export type { Interrupt } from './iommu/intel/event-message'
export type { TableMemory, TableRegion } from './iommu/table-memory'

export { SplitQueue } from './virtio/split-queue'
export type { SplitQueueOptions } from './virtio/split-queue'
export { DriverQueue } from './virtio/driver-queue'
export type {
  Completion,
  DriverQueueOptions,
  IndirectTables,
  Segment,
  UsedRefusal,
} from './virtio/driver-queue'
export { Chain } from './virtio/chain'
export type { ChainRefusal } from './virtio/chain'
export { physicalView, translatedView } from './virtio/dma-view'
export type { ByteSpace, DmaView, Located, RegionViews } from './virtio/dma-view'
export { ringLayout } from './virtio/ring-layout'
export type { RingAddresses, RingLayout } from './virtio/ring-layout'
export { FEATURE, featureNames, features, hasFeature } from './virtio/net'
export { NetHeader } from './virtio/net'
export type { Feature, Offload } from './virtio/net'
export type { NetDevice } from './virtio/net-device'

export { Miss } from './iotlb/channel'
export type { IotlbChannel } from './iotlb/channel'
export { diagnostics, observed } from './iotlb/diagnostics'
export type {
  DiagnosticSource,
  FaultMessage,
  InvalidateMessage,
  MissMessage,
  UpdateMessage,
} from './iotlb/diagnostics'
export { MissHandler } from './iotlb/miss-handler'
export type { FaultPolicy, MissHandlerOptions } from './iotlb/miss-handler'
export type { MissStats } from './iotlb/stats'
export type { MissCause, UnansweredMiss } from './iotlb/unanswered'
export type { LookAheadMode, RingOutlook } from './iotlb/look-ahead'
export { exact, merged } from './iotlb/reply-policy'
export type { GrowingReply, ReplyPolicy } from './iotlb/reply-policy'
export { Shadow } from './iotlb/shadow'
export type { ShadowEntry } from './iotlb/shadow'
export type { HostMemory, HostRegion } from './iotlb/reply'

export { Ats } from './pci/ats'
export type { AtsOptions } from './pci/ats'
export { ConfigSpace } from './pci/config-space'
export type { ResetKind } from './pci/config-space'
export { RootPort } from './pci/root-port'
export type { RootPortOptions } from './pci/root-port'
export { NetConfig } from './pci/virtio-net-config'
export type { LinkState, NetConfigOptions } from './pci/virtio-net-config'
export { VirtioPci } from './pci/virtio-pci'
export type { VirtioIdentity, VirtioPciOptions } from './pci/virtio-pci'
export type { Capability, CapabilityRegisters } from './pci/capabilities'
export type { ConfigRegister } from './pci/config-register'
export type { DeviceConfiguration, VirtioBackend, VirtioTransport } from './pci/virtio-transport'
export type { Message, Msix } from './pci/msix'
export { buildDmar, parseDmar } from './acpi/dmar'
export type {
  Andd,
  Atsr,
  Decoded,
  DecodedDmar,
  Dmar,
  Drhd,
  Rhsa,
  Rmrr,
  Satc,
  Sidp,
} from './acpi/dmar-structures'
export type { TableIdentity } from './acpi/table'
export type { DecodedScope, DeviceScope, DeviceScopeType } from './acpi/device-scope'

export { DirtyLog } from './vhost/dirty-log'
export { KernelChannel } from './vhost/kernel-channel'
export type { KernelChannelOptions } from './vhost/kernel-channel'
export { VhostDevice } from './vhost/vhost-device'
export type { RingEvents, VhostDeviceOptions } from './vhost/vhost-device'
export { VhostNet } from './vhost/net'
export type {
  ChannelDecorator,
  Clock,
  HandlerMaker,
  StallMessage,
  StallReason,
  StallReport,
  VhostNetOptions,
  VhostNetStats,
} from './vhost/net'
export { Tap } from './vhost/tap'
export type { TapOptions } from './vhost/tap'
export type { QueueState } from './vhost/vring'
export * as uapi from './vhost/uapi'

export { IntelIommuDriver } from './guest/intel-iommu-driver'
export type { DrivenIommu, IntelIommuDriverOptions, PageSize } from './guest/intel-iommu-driver'
export { frameStream, webFrameStreams } from './guest/frame-ports'
export type { FramePortOptions, WebFramePort } from './guest/frame-ports'
export { NetDriver } from './guest/net-driver'
export type {
  Abortable,
  FrameListener,
  FrameSink,
  InPlaceOptions,
  Mapping,
  NetDriverOptions,
  NetDriverStats,
  SendOptions,
  SentListener,
} from './guest/net-driver'
export { IovaAllocator } from './guest/iova-allocator'
export type { IovaAllocatorOptions } from './guest/iova-allocator'
export { PageAllocator } from './guest/page-allocator'
export type { Extents } from './guest/page-allocator'
export { TableBuilder } from './guest/table-builder'
export type { LeafLevel, Levels } from './guest/table-builder'
export type { DmaPool, GuestDma } from './guest/dma'
export type { DriverOrder, UnitFault } from './guest/intel-iommu-unit'

export { Recorder, recorded } from './trace/recorder'
export type { RecordedPort, RecordingOptions } from './trace/recorder'
export type { RecordableDevice, RecordedDeviceOptions } from './trace/recorded-device'
export { TraceWriter, readTrace, traceFile } from './trace/codec'
export type { Trace, TraceHeader } from './trace/codec'
export type { EventKind, TraceClock, TraceEvent, TraceSink } from './trace/event'
export { replay } from './trace/replayer'
export type { Divergence, ReplayResult } from './trace/replayer'
export { PcapngWriter, exportPcapng } from './trace/pcapng'
export { ExposureMeter } from './trace/exposure'
export type { Exposure, SecondsClock } from './trace/exposure'
export { simulate } from './trace/simulator'
export type { SimulatedPolicy, SimulationResult } from './trace/simulator'
export type { DeviceSnapshot, FlyingChain, ReplaySnapshot } from './trace/replay-state'

export { Monitor, rates } from './monitor/monitor'
export type { DeviceRates, DeviceSample, Latency, MonitorSample, Watched } from './monitor/monitor'
export { iovaMap, plainLines, screen } from './monitor/screen'
export { serveMetrics, serveStats } from './monitor/serve'
export type { ServeMetricsOptions, ServeStatsOptions, Served } from './monitor/serve'
export { metricsText } from './monitor/metrics'

export { FAULT_KINDS, FaultyChannel, faulty } from './trace/fault-injector'
export type { FaultKind, FaultyOptions } from './trace/fault-injector'

export { FakeClock } from './testing/fake-clock'
export { FakeAddressSpace } from './testing/fake-address-space'
export { FakeVhost } from './testing/fake-channel'
export type { FakeEntry, FakeVhostOptions } from './testing/fake-channel'
export { LoopbackDevice } from './testing/loopback-device'
export type { LoopbackOptions, LoopbackStats } from './testing/loopback-device'
export type { FakeAccess, FakeAccessState, FakeRings } from './testing/fake-queue'

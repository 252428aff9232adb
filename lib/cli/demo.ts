/**
 * The demonstration: echo requests leave through our TX ring and the kernel's vhost-net, the
 * kernel's own network stack answers them on the other side of the tap, and the answers come back
 * through our RX ring. Nothing that is counted as received can have been made by this process.
 */
import { release } from 'node:os'
import { GuestMemory } from '../memory/guest-memory'
import { IntelIommu } from '../iommu/intel/intel-iommu'
import { NetDriver } from '../guest/net-driver'
import type { Mapping } from '../guest/net-driver'
import type { Recorder } from '../trace/recorder'
import { MiB } from '../address'
import { Tap } from '../vhost/tap'
import { setAddress } from '../vhost/interface'
import { VhostNet } from '../vhost/net'
import { featureNames } from '../virtio/net'
import { arpAnswer, arpReply, arpRequest, echoReply, echoRequest } from './echo'
import type { Station } from './echo'
import { FRAME_BYTES } from './record'

export interface DemoResult {
  readonly kernel: string
  readonly mapping: Mapping
  /** Frames handed to the TX ring, and frames that came out of the RX ring: answers only. */
  readonly sent: number
  readonly received: number
  readonly misses: number
  readonly updates: number
  readonly invalidates: number
  readonly faults: number
  /** Device accesses to buffers that needed no miss, 0 to 1. */
  readonly hitRate: number
  /** Every request was answered, byte for byte, and nothing faulted. */
  readonly ok: boolean
}

interface Stage {
  readonly name: string
  readonly frames: number
  /** Frame lengths in bytes, used in turn. */
  readonly sizes: readonly number[]
}

const STAGES: readonly Stage[] = [
  { name: 'cold, 64 bytes', frames: 128, sizes: [64] },
  { name: 'warm, 64 bytes', frames: 512, sizes: [64] },
  { name: 'sizes 60 to 1514', frames: 256, sizes: [60, 61, 127, 128, 576, 1024, 1500, 1514] },
]
/** RFC 5737: addresses for documentation, which no network uses. */
const HOST_IP = Uint8Array.of(192, 0, 2, 1)
const GUEST: Station = {
  mac: Uint8Array.of(0x02, 0, 0, 0, 0, 2),
  ip: Uint8Array.of(192, 0, 2, 2),
}
/** Requests in flight at a time: fewer than a ring holds. */
const WINDOW = 32
const REPLY_TIMEOUT_MS = 10_000

/** Runs on this host. @throws SystemError where the host refuses */
export async function demonstrate(
  mapping: Mapping,
  print: (line: string) => void,
  recorder?: Recorder,
): Promise<DemoResult> {
  using tap = Tap.open('iotlb%d')
  setAddress(tap.name, HOST_IP, 24)
  using memory = GuestMemory.allocate(32 * MiB)
  const iommu = new IntelIommu(recorder?.tables(memory) ?? memory)
  const addressSpace = iommu.addressSpace('00:03.0')
  const port = recorder?.port()
  using nic = VhostNet.open({ memory, addressSpace, backend: tap, ...port?.options })
  using driver = NetDriver.attach(
    port?.device(nic, { memory, addressSpace, frameBytes: FRAME_BYTES }) ?? nic,
    { memory, iommu: recorder?.iommu(iommu) ?? iommu, mapping },
  )

  print(`Linux ${release()}, the device offers 0x${nic.features.toString(16)}`)
  await driver.start()
  print(`negotiated ${featureNames(driver.acknowledged).join(' ')}`)
  print(`${tap.name} is ${HOST_IP.join('.')}, our side of the rings is ${GUEST.ip.join('.')}`)
  print('')
  print(row(['stage', 'sent', 'received', 'misses', 'updates', 'invalidates']))

  const exchange = new Exchange(driver)
  let before = nic.stats()
  const line = (name: string, sent: number, received: number): void => {
    const now = nic.stats()
    const change = [now.misses - before.misses, now.updates - before.updates]
    print(row([name, sent, received, ...change, now.invalidates - before.invalidates]))
    before = now
  }
  print(row(['rings, by start()', 0, 0, before.misses, before.updates, before.invalidates]))
  const host = await exchange.resolve(HOST_IP)
  line('ARP', 1, 1)
  for (const stage of STAGES) {
    const answered = await exchange.run(stage, host)
    line(stage.name, stage.frames, answered)
  }
  await driver.flush()

  const stats = nic.stats()
  const result: DemoResult = {
    kernel: release(),
    mapping,
    sent: exchange.sent,
    received: exchange.received,
    misses: stats.misses,
    updates: stats.updates,
    invalidates: stats.invalidates,
    faults: stats.faults,
    hitRate: stats.hitRate,
    ok: exchange.sent === exchange.received && exchange.corrupt === 0 && stats.faults === 0,
  }
  print('')
  for (const [name, value] of Object.entries(result)) print(`${name.padEnd(12)} ${value}`)
  return result
}

/** Requests and their answers over one driver. */
class Exchange {
  sent = 0
  received = 0
  /** Answers that were not what was asked, byte for byte. */
  corrupt = 0
  #sequence = 0
  readonly #waiting = new Set<number>()
  #arp: ((mac: Uint8Array) => void) | undefined
  #progress: (() => void) | undefined

  constructor(private readonly driver: NetDriver) {
    driver.onFrame((frame) => {
      this.#take(frame)
    })
  }

  /** The MAC address of the other side. */
  async resolve(ip: Uint8Array): Promise<Station> {
    const answered = new Promise<Uint8Array>((resolve) => (this.#arp = resolve))
    this.#send(arpRequest(GUEST, ip))
    const mac = await within(answered, 'no answer to ARP')
    return { mac, ip }
  }

  /** How many of the stage's requests were answered. */
  async run(stage: Stage, to: Station): Promise<number> {
    const before = this.received
    for (let i = 0; i < stage.frames; i++) {
      while (this.#waiting.size >= WINDOW) await this.#answer()
      const sequence = this.#sequence++ & 0xffff
      this.#waiting.add(sequence)
      this.#send(echoRequest(GUEST, to, sequence, stage.sizes[i % stage.sizes.length]))
    }
    while (this.#waiting.size > 0) await this.#answer()
    return this.received - before
  }

  async #answer(): Promise<void> {
    const progress = new Promise<void>((resolve) => (this.#progress = resolve))
    await within(progress, `no answer to ${this.#waiting.size} echo requests`)
  }

  #send(frame: Uint8Array): void {
    this.driver.send(frame)
    this.sent++
  }

  #take(frame: Uint8Array): void {
    const mac = this.#arp === undefined ? undefined : arpAnswer(frame, HOST_IP)
    if (mac !== undefined) {
      this.received++
      this.#arp?.(mac)
      this.#arp = undefined
      return
    }
    const reply = arpReply(frame, GUEST)
    if (reply !== undefined) {
      this.driver.send(reply)
      return
    }
    const sequence = echoReply(frame, GUEST)
    if (sequence === undefined) return
    if (this.#waiting.delete(sequence)) this.received++
    else this.corrupt++
    this.#progress?.()
  }
}

async function within<T>(promise: Promise<T>, complaint: string): Promise<T> {
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => {
      reject(new Error(`${complaint} within ${REPLY_TIMEOUT_MS / 1000} s`))
    }, REPLY_TIMEOUT_MS)
  })
  try {
    return await Promise.race([promise, late])
  } finally {
    clearTimeout(timer)
  }
}

function row(cells: readonly (string | number)[]): string {
  const [name, ...rest] = cells
  return String(name).padEnd(20) + rest.map((cell) => String(cell).padStart(12)).join('')
}

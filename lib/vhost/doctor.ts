/**
 * When the rings of a pair are examined, what is done about it, and how often which reason was
 * found.
 *
 * Occasions are the tick of an error eventfd and the watchdog's look; `stall.ts` says what is
 * wrong, and this file kicks and reports. It stops nothing: that is the fault policy's.
 */
import type { DmaView } from '../virtio/dma-view'
import type { MissLoop } from './miss-worker'
import { STALL_REASONS, examine } from './stall'
import type { StallReason, StallReport } from './stall'
import type { VhostDevice } from './vhost-device'
import type { Vring } from './vring'
import { Standstill } from './watchdog'
import type { Clock } from './watchdog'

const TX = 1

export interface DoctorOptions {
  readonly device: VhostDevice
  /** The index of the pair's receiving queue among all queues. */
  readonly firstQueue: number
  readonly clock: Clock
  /** Whether frames can come and go. */
  readonly backend: () => 'up' | 'down' | 'gone'
  readonly onStall: (report: StallReport) => void
  /** What the kernel refused where nobody called. */
  readonly onFailure: (error: unknown) => void
}

export class Doctor {
  /** Reports, by their reason, and those of them that ended in a kick. */
  readonly stalls: Record<StallReason, number>
  healed = 0
  readonly #options: DoctorOptions
  readonly #rings: readonly Vring[]
  readonly #standstills: readonly Standstill[]
  #view: DmaView | undefined
  #handler: MissLoop | undefined
  #backend: 'up' | 'down' | 'gone' = 'up'

  constructor(options: DoctorOptions, rings: readonly Vring[]) {
    this.#options = options
    this.#rings = rings
    this.#standstills = rings.map(() => new Standstill())
    const none = STALL_REASONS.map((reason) => [reason, 0])
    this.stalls = Object.fromEntries(none) as Record<StallReason, number>
  }

  /** @param handler of a device that translates */
  sees(view: DmaView, handler: MissLoop | undefined): void {
    this.#view = view
    this.#handler = handler
  }

  /** The error eventfd of a ring ticked. */
  ticked(ring: Vring): void {
    if (!ring.running) return
    this.#standstills[ring.index].moved(ring.usedIndex())
    this.#attempt(() => {
      this.#examine(ring, 'error')
    })
  }

  /** Once a period: examines rings that owe work and do not move, and the backend. */
  look(): void {
    if (!this.#rings.some(({ running }) => running)) return
    this.#attempt(() => {
      this.#lookAtBackend()
    })
    const asked = this.#handler?.asked ?? 0
    const waiting = (this.#handler?.waiting ?? 0) > 0
    for (const ring of this.#rings) {
      if (!ring.running) continue
      const used = ring.usedIndex()
      const offers = used < 0 || ring.availIndex() !== used
      const still = this.#standstills[ring.index]
      if (!still.look(used, offers, asked, ring.index === TX || waiting)) continue
      this.#attempt(() => {
        this.#examine(ring, 'watchdog')
      })
    }
  }

  /**
   * A ring that has a right to stand still is kicked all the same: if it does not, it asks again.
   */
  #examine(ring: Vring, noticed: StallReport['noticed']): void {
    // It was told, and no kick brings it back.
    if (this.#backend === 'gone') return
    const { device, clock, firstQueue } = this.#options
    const still = this.#standstills[ring.index]
    const began = clock.now()
    const finding = examine({
      vring: ring,
      queue: firstQueue + ring.index,
      availIndex: device.ringBase(ring.index),
      view: this.#view!,
      handler: this.#handler,
      noticed,
      baffled: still.baffled,
    })
    if (finding === undefined || finding.healed) ring.kick()
    if (finding === undefined) return
    const { reason, repaired } = finding
    const baffling = noticed === 'error' && (reason === 'lost-kick' || reason === 'stale-entry')
    if (baffling) still.baffled++
    // One tick may be older than the last repair; it says more only if another one follows.
    if (baffling && still.baffled === 1) return
    const fresh = still.told !== reason || repaired > 0
    still.told = reason
    if (fresh) this.#report({ ...finding, microseconds: (clock.now() - began) * 1000 })
  }

  /** Told once, when it changes: both rings stand or fall with it. */
  #lookAtBackend(): void {
    const before = this.#backend
    const now = this.#options.backend()
    this.#backend = now
    if (now === before || now === 'up') return
    this.#report({
      queue: this.#options.firstQueue,
      reason: now === 'gone' ? 'backend-gone' : 'tap-down',
      noticed: 'watchdog',
      availIndex: this.#options.device.ringBase(0),
      repaired: 0,
      healed: false,
      refused: [],
      microseconds: 0,
    })
  }

  #report(report: StallReport): void {
    this.stalls[report.reason]++
    if (report.healed) this.healed++
    this.#options.onStall(report)
  }

  #attempt(action: () => void): void {
    try {
      action()
    } catch (error) {
      this.#options.onFailure(error)
    }
  }
}

/**
 * The device's IOTLB as we drive it: the channel and the shadow, kept in step.
 *
 * It exists for one promise: the device never holds what the shadow does not. An entry enters the
 * shadow before its UPDATE is written, and leaves it after its INVALIDATE was. When a write fails
 * nobody knows what the device holds (it may have evicted an entry for an UPDATE that it then
 * refused), so the table is in doubt until it was flushed as a whole: removing too much is right.
 * What to grant, and when, is decided in `miss-handler.ts`.
 */
import { LAST_PAGE } from '../address'
import type { IotlbChannel } from './channel'
import type { Reply } from './reply'
import { Shadow } from './shadow'
import { count } from './stats'

/** The first page of the upper half: a size of 2^64 is 0 on the wire (K10). */
const HALF = 2 ** 51

export class DeviceTable {
  readonly shadow: Shadow
  #doubt = false

  constructor(
    private readonly channel: IotlbChannel,
    private readonly counters: Float64Array,
  ) {
    this.shadow = new Shadow(channel.limit)
  }

  /** Nothing may be written or left unsent before a `flush()`. */
  get doubtful(): boolean {
    return this.#doubt
  }

  /**
   * Writes one UPDATE. The range must touch no entry.
   * @throws SystemError when the device refuses; the table is in doubt then
   */
  grant(reply: Reply, turn: number): void {
    const { firstPage, lastPage, hvaPage, access } = reply
    this.shadow.insert(firstPage, lastPage, hvaPage, access, turn)
    try {
      this.channel.updatePages(firstPage, lastPage, hvaPage, access)
    } catch (error) {
      this.#refused()
      this.shadow.remove(firstPage, lastPage)
      throw error
    }
    this.counters[count.updates]++
  }

  /**
   * Takes back every entry that the range touches, whole (K4).
   * @param always sends also what the shadow knows to be without effect
   * @throws SystemError when the device refuses; the table is in doubt then
   */
  takeBack(firstPage: number, lastPage: number, always = false): void {
    if (firstPage < HALF && lastPage >= HALF) {
      if (always || this.shadow.touches(firstPage, HALF - 1)) this.#invalidate(firstPage, HALF - 1)
      if (always || this.shadow.touches(HALF, lastPage)) this.#invalidate(HALF, lastPage)
    } else {
      this.#invalidate(firstPage, lastPage)
    }
    this.shadow.remove(firstPage, lastPage)
  }

  /** @throws SystemError when the device refuses; the table is in doubt then */
  flush(): void {
    this.takeBack(0, LAST_PAGE, true)
    this.#doubt = false
  }

  /** The device's table was emptied by another way. */
  reset(): void {
    this.shadow.clear()
    this.#doubt = false
  }

  #invalidate(firstPage: number, lastPage: number): void {
    try {
      this.channel.invalidatePages(firstPage, lastPage)
    } catch (error) {
      this.#refused()
      throw error
    }
    this.counters[count.invalidates]++
  }

  #refused(): void {
    this.#doubt = true
    this.counters[count.refused]++
  }
}

/**
 * Who answers at an address: devices at ranges that do not overlap. One of these is the machine's
 * physical addresses outside memory, another its ports.
 *
 * Nothing is an error: where there is no device, reads are all ones and writes go nowhere.
 */
import { writeWord } from '../iommu/iommu'
import type { MmioDevice } from '../iommu/iommu'

interface Place {
  readonly first: number
  readonly last: number
  readonly device: MmioDevice
}

export class Bus {
  #places: readonly Place[] = []

  /** Later devices are behind earlier ones where they overlap, since a guest can move some. */
  add(first: number, bytes: number, device: MmioDevice): Disposable {
    const place = { first, last: first + bytes - 1, device }
    this.#places = [...this.#places, place]
    return {
      [Symbol.dispose]: () => {
        this.#places = this.#places.filter((other) => other !== place)
      },
    }
  }

  read(address: number, size: number): bigint {
    const place = this.#find(address, size)
    if (place === undefined) return (1n << BigInt(8 * size)) - 1n
    return place.device.read(address - place.first, size)
  }

  write(address: number, value: bigint, size: number): void {
    const place = this.#find(address, size)
    place?.device.write(address - place.first, value, size)
  }

  /** As `write` of 4 bytes. */
  writeWord(address: number, value: number): void {
    const place = this.#find(address, 4)
    if (place !== undefined) writeWord(place.device, address - place.first, value)
  }

  #find(address: number, size: number): Place | undefined {
    for (const place of this.#places) {
      if (address >= place.first && address + size - 1 <= place.last) return place
    }
    return undefined
  }
}

/** Ethernet frames of the experimental type (IEEE 802, 0x88b5), told apart by number. */
export const ETHERTYPE = 0x88b5
const HEAD = 18

/** A frame to everybody: its number at 14, then bytes that follow from it, or one byte. */
export function testFrame(number: number, length = 60, fill?: number): Uint8Array {
  const bytes = new Uint8Array(length)
  bytes.set([0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02, 0, 0, 0, 0, 0x01])
  const view = new DataView(bytes.buffer)
  view.setUint16(12, ETHERTYPE)
  view.setUint32(14, number)
  for (let i = HEAD; i < length; i++) bytes[i] = fill ?? (number * 7 + i) & 0xff
  return bytes
}

export function frameNumber(bytes: Uint8Array): number {
  return new DataView(bytes.buffer, bytes.byteOffset).getUint32(14)
}

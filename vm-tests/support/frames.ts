/** Ethernet frames of an experimental type (IEEE 802, 0x88b5), told apart by number and content. */

export const ETHERTYPE = 0x88b5
const GUEST = [0x02, 0, 0, 0, 0, 0x01]
const HOST = [0x02, 0, 0, 0, 0, 0x02]
const HEAD = 18

/** A frame of `length` bytes: its number at 14, then bytes that follow from both. */
export function frame(
  number: number,
  length: number,
  from: 'guest' | 'host' = 'guest',
): Uint8Array {
  const bytes = new Uint8Array(length)
  bytes.set([0xff, 0xff, 0xff, 0xff, 0xff, 0xff, ...(from === 'guest' ? GUEST : HOST)])
  const view = new DataView(bytes.buffer)
  view.setUint16(12, ETHERTYPE)
  view.setUint32(14, number)
  for (let i = HEAD; i < length; i++) bytes[i] = (number * 7 + i) & 0xff
  return bytes
}

export function frameNumber(bytes: Uint8Array): number {
  return new DataView(bytes.buffer, bytes.byteOffset).getUint32(14)
}

/** Those of our type, so that what the host's own stack sends does not count. */
export function ours(frames: readonly Uint8Array[]): Uint8Array[] {
  return frames.filter((bytes) => bytes[12] === ETHERTYPE >> 8 && bytes[13] === (ETHERTYPE & 0xff))
}

/**
 * Where two lists of frames differ, in words, and how long they are: equal lists give
 * `{ lengths: [n, n], differ: [] }`. Comparing them byte by byte in a matcher takes ages.
 */
export function compared(
  seen: readonly Uint8Array[],
  expected: readonly Uint8Array[],
): { readonly lengths: readonly number[]; readonly differ: readonly string[] } {
  const differ = expected.flatMap((bytes, i) => {
    if (i >= seen.length) return [`frame ${i} is missing`]
    if (Buffer.compare(seen[i], bytes) === 0) return []
    const at = bytes.findIndex((byte, j) => byte !== seen[i][j])
    return [`frame ${i}: ${seen[i].length} bytes for ${bytes.length}, the first wrong one at ${at}`]
  })
  return { lengths: [seen.length, expected.length], differ }
}

export function identical(count: number): ReturnType<typeof compared> {
  return { lengths: [count, count], differ: [] }
}

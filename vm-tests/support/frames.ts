/** Ethernet frames of an experimental type (IEEE 802, 0x88b5), told apart by number and content. */
import { ETHERTYPE, frameNumber, testFrame } from '../../lib/testing/conformance/frames'

export { ETHERTYPE, frameNumber }
const HOST = [0x02, 0, 0, 0, 0, 0x02]

/** A frame of `length` bytes: its number at 14, then bytes that follow from both. */
export function frame(
  number: number,
  length: number,
  from: 'guest' | 'host' = 'guest',
): Uint8Array {
  const bytes = testFrame(number, length)
  if (from === 'host') bytes.set(HOST, 6)
  return bytes
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

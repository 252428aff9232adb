/**
 * Copies the bytes of a frame into guest memory without making an object.
 *
 * `TypedArray.prototype.set` of a part needs a view of that part, an object for each frame; and its
 * call costs more than the few words of a short frame do.
 */

/** Longer ones are left to `set`. */
const SHORT = 256

/** Views of the same memory. */
export interface Target {
  readonly u8: Uint8Array
  readonly u32: Uint32Array
}

/** `bytes` of `u8` from `from` on; to `at` of the target. All of it must be there. */
export function copyBytes(
  u8: Uint8Array,
  from: number,
  bytes: number,
  target: Target,
  at: number,
): void {
  if (bytes > SHORT) {
    const whole = from === 0 && bytes === u8.length
    target.u8.set(whole ? u8 : u8.subarray(from, from + bytes), at)
    return
  }
  let done = 0
  if (u8 === target.u8 && (from & 3) === 0 && (at & 3) === 0) {
    const { u32 } = target
    const words = bytes >>> 2
    const first = from >>> 2
    const to = at >>> 2
    for (let word = 0; word < words; word++) u32[to + word] = u32[first + word]
    done = words << 2
  }
  const to = target.u8
  for (; done < bytes; done++) to[at + done] = u8[from + done]
}

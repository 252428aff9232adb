import { describe, expect, it } from 'vitest'
import fc from 'fast-check'
import {
  ECHO_OVERHEAD,
  arpAnswer,
  arpReply,
  arpRequest,
  echoReply,
  echoRequest,
} from '../../lib/cli/echo'

const us = { mac: Uint8Array.of(2, 0, 0, 0, 0, 2), ip: Uint8Array.of(192, 0, 2, 2) }
const them = { mac: Uint8Array.of(2, 0, 0, 0, 0, 1), ip: Uint8Array.of(192, 0, 2, 1) }

/** What the other side does with a request: swaps the ends and answers (RFC 792). */
function answered(request: Uint8Array): Uint8Array {
  const reply = request.slice()
  reply.set(request.subarray(6, 12), 0)
  reply.set(request.subarray(0, 6), 6)
  reply.set(request.subarray(26, 30), 30)
  reply.set(request.subarray(30, 34), 26)
  reply[34] = 0
  return reply
}

/** RFC 1071: the sum over data and its checksum is all ones. */
function sumOf(bytes: Uint8Array): number {
  let sum = 0
  for (let i = 0; i < bytes.length; i += 2) sum += (bytes[i] << 8) | (bytes[i + 1] ?? 0)
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >>> 16)
  return sum
}

describe('echo requests', () => {
  it('carry checksums that hold, at any length', () => {
    fc.assert(
      fc.property(
        fc.nat(0xffff),
        fc.integer({ min: ECHO_OVERHEAD, max: 1514 }),
        (sequence, length) => {
          const frame = echoRequest(us, them, sequence, length)
          expect(frame.length).toBe(length)
          expect(sumOf(frame.subarray(14, 34))).toBe(0xffff)
          expect(sumOf(frame.subarray(34))).toBe(0xffff)
        },
      ),
    )
  })

  it('are recognised in their answers by their sequence number', () => {
    expect(echoReply(answered(echoRequest(us, them, 0xabc, 100)), us)).toBe(0xabc)
  })

  it('do not pass for answered when a byte of the payload is another', () => {
    const reply = answered(echoRequest(us, them, 7, 100))
    reply[99] ^= 1
    expect(echoReply(reply, us)).toBe(-1)
  })

  it('are not their own answers, nor answers to someone else', () => {
    const request = echoRequest(us, them, 7, 100)
    expect(echoReply(request, us)).toBeUndefined()
    expect(echoReply(answered(request), them)).toBeUndefined()
  })
})

describe('ARP', () => {
  it('resolves an address', () => {
    const reply = arpReply(arpRequest(us, them.ip), them)
    expect(reply).toBeDefined()
    expect(arpAnswer(reply!, them.ip)).toEqual(them.mac)
    expect(reply!.subarray(0, 6)).toEqual(us.mac)
  })

  it('is answered by nobody but the one asked for', () => {
    expect(arpReply(arpRequest(us, them.ip), us)).toBeUndefined()
  })

  it('never throws on frames of any content', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 128 }), (frame) => {
        arpReply(frame, us)
        arpAnswer(frame, them.ip)
        echoReply(frame, us)
      }),
    )
  })
})
